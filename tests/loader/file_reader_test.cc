// Catches: a read past the end that is not an error, a file that changes under a running server and
// is not noticed, a path that leaks into a message, a FIFO or folder taken for a file.
#include "engine/loader/file_reader.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

std::string ReadText(const FileReader& file, int64_t offset, size_t count) {
  std::string text(count, '\0');
  EXPECT_TRUE(file.Read(offset, std::as_writable_bytes(std::span(text))).ok());
  return text;
}

TEST(FileReader, ReadsAnyRangeOfAFile) {
  const TempFolder folder;
  folder.Write("a.bin", "0123456789");
  const auto file = OpenFile(folder.Path("a.bin"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->size(), 10);
  EXPECT_EQ(ReadText(**file, 0, 10), "0123456789");
  EXPECT_EQ(ReadText(**file, 7, 3), "789");
  EXPECT_EQ(ReadText(**file, 10, 0), "");
}

TEST(FileReader, RefusesRangesThatLeaveTheFile) {
  const TempFolder folder;
  folder.Write("a.bin", "0123456789");
  const auto opened = OpenFile(folder.Path("a.bin"));
  ASSERT_TRUE(opened.ok());
  const auto memory = OpenMemory("0123456789");
  for (const FileReader* file : {opened->get(), memory.get()}) {
    std::byte out[4];
    for (const int64_t offset : {int64_t{7}, int64_t{11}, int64_t{-1}, int64_t{INT64_MAX}}) {
      const absl::Status status = file->Read(offset, out);
      EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << offset;
      EXPECT_NE(std::string(status.message()).find(std::to_string(offset)), std::string::npos);
    }
  }
}

TEST(FileReader, NoticesThatAFileChangedOrShrank) {
  const TempFolder folder;
  folder.Write("a.bin", "0123456789");
  const auto file = OpenFile(folder.Path("a.bin"));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE((*file)->CheckUnchanged().ok());
  ASSERT_EQ(truncate(folder.Path("a.bin").c_str(), 4), 0);
  EXPECT_EQ((*file)->CheckUnchanged().code(), absl::StatusCode::kAborted);
  std::byte out[8];
  EXPECT_EQ((*file)->Read(0, out).code(), absl::StatusCode::kOutOfRange);
}

TEST(FileReader, KeepsReadingAFileThatWasReplacedByName) {
  const TempFolder folder;
  folder.Write("a.bin", "old");
  const auto file = OpenFile(folder.Path("a.bin"));
  ASSERT_TRUE(file.ok());
  folder.Write("b.bin", "new");
  ASSERT_EQ(rename(folder.Path("b.bin").c_str(), folder.Path("a.bin").c_str()), 0);
  EXPECT_EQ(ReadText(**file, 0, 3), "old");
}

TEST(FileReader, OpensRegularFilesOnlyAndNeverTellsThePath) {
  const TempFolder folder;
  ASSERT_EQ(mkfifo(folder.Path("pipe").c_str(), 0600), 0);
  const auto pipe = OpenFile(folder.Path("pipe"));
  EXPECT_EQ(pipe.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenFile(folder.Path("")).status().code(), absl::StatusCode::kInvalidArgument);
  const auto missing = OpenFile(folder.Path("none"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  for (const absl::Status& status : {pipe.status(), missing.status()}) {
    EXPECT_EQ(std::string(status.message()).find('/'), std::string::npos) << status;
  }
}

TEST(FileReader, ReadWholeFileObeysItsLimit) {
  const TempFolder folder;
  folder.Write("a.txt", "12345");
  EXPECT_EQ(*ReadWholeFile(folder.Path("a.txt"), 5), "12345");
  EXPECT_EQ(ReadWholeFile(folder.Path("a.txt"), 4).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace morphserve
