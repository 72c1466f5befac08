// Speed of the tokenizer and the detokenizer on one thread:
//   tokenizer_bench MODEL TEXT     MODEL: a GGUF file or a tokenizer.json; TEXT: any UTF-8 file
// Prints load time, encode with a cold and a warm piece cache in MB/s, one piece of 1 MB, decode in
// ns a token.

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/loader/file_reader.h"
#include "engine/loader/gguf.h"
#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer_files.h"

namespace morphserve {
namespace {

constexpr int32_t kRowsMax = 1 << 20;
constexpr int64_t kFileBytesMax = int64_t{1} << 30;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadFile(const std::string& path) {
  if (!path.ends_with(".gguf")) {
    auto text = ReadWholeFile(path, kFileBytesMax);
    if (!text.ok()) return text.status();
    const double begin = Now();
    auto tokenizer = LoadTokenizerJson(*text, "", "", kRowsMax);
    std::printf("load            %8.3f s\n", Now() - begin);
    return tokenizer;
  }
  auto reader = OpenFile(path);
  if (!reader.ok()) return reader.status();
  auto file = GgufFile::Open(*std::move(reader));
  if (!file.ok()) return file.status();
  const double begin = Now();
  auto tokenizer = LoadTokenizerGguf((*file)->metadata(), kRowsMax);
  std::printf("load            %8.3f s\n", Now() - begin);
  return tokenizer;
}

std::vector<int32_t> TimeEncode(const Tokenizer& tokenizer, std::string_view text,
                                const char* name) {
  const double begin = Now();
  auto ids = tokenizer.Encode(text, {});
  const double seconds = Now() - begin;
  if (!ids.ok()) {
    std::printf("%s: %s\n", name, std::string(ids.status().message()).c_str());
    return {};
  }
  std::printf("%s %8.2f MB/s (%zu bytes, %zu tokens)\n", name,
              static_cast<double>(text.size()) / seconds / 1e6, text.size(), ids->size());
  return *std::move(ids);
}

void TimeDecode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  const double begin = Now();
  Detokenizer detokenizer(&tokenizer, /*skip_special=*/true, /*at_text_start=*/true);
  std::string text;
  size_t bytes = 0;
  for (const int32_t id : ids) {
    text.clear();
    detokenizer.Append(id, &text);
    bytes += text.size();
  }
  const double seconds = Now() - begin;
  std::printf("decode          %8.1f ns a token (%zu bytes)\n",
              seconds / static_cast<double>(ids.size()) * 1e9, bytes);
}

int Run(const std::string& model, const std::string& text_path) {
  const auto tokenizer = LoadFile(model);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", std::string(tokenizer.status().message()).c_str());
    return 1;
  }
  const auto text = ReadWholeFile(text_path, kFileBytesMax);
  if (!text.ok()) {
    std::fprintf(stderr, "%s\n", std::string(text.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", (*tokenizer)->Describe().c_str());
  TimeEncode(**tokenizer, *text, "encode, cold   ");
  const std::vector<int32_t> ids = TimeEncode(**tokenizer, *text, "encode, warm   ");
  TimeEncode(**tokenizer, std::string(1 << 20, 'a'), "one 1 MB piece ");
  if (!ids.empty()) TimeDecode(**tokenizer, ids);
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_bench MODEL TEXT\n");
    return 2;
  }
  return morphserve::Run(argv[1], argv[2]);
}
