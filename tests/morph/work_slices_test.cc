// Slices of queued work on a clock that only a wait moves, as on a device. Catches: a slice that
// looks at the clock before its work is done, and one that waits for every small job.
#include "morph/work_slices.h"

#include "gtest/gtest.h"

namespace morphserve {
namespace {

FakeClock clock;
absl::Duration queued;
int waits = 0;

// What was queued takes its time when somebody waits for it.
absl::Status Wait(kernels::Stream) {
  clock.Advance(queued);
  queued = absl::ZeroDuration();
  ++waits;
  return absl::OkStatus();
}

struct Work {
  Work() : slices(Source()) {}
  SelectionSource Source() {
    backend.wait = Wait;
    SelectionSource source;
    source.selection = &backend;
    return source;
  }
  void Add(int jobs, absl::Duration each) {
    for (int i = 0; i < jobs; ++i) {
      list.Add([this, each] {
        queued += each;
        ++done;
        return absl::OkStatus();
      });
    }
  }
  // The time that a slice took.
  absl::Duration Slice(absl::Duration budget) {
    const absl::Time begin = clock.Now();
    EXPECT_TRUE(slices.Run(&list, clock, begin + budget).ok());
    EXPECT_EQ(queued, absl::ZeroDuration()) << "everything is done";
    return clock.Now() - begin;
  }

  kernels::SelectionBackend backend;
  WorkList list;
  WorkSlices slices;
  int done = 0;
};

TEST(WorkSlices, WaitForAFewSmallJobsAtATime) {
  Work work;
  work.Add(1000, absl::Microseconds(10));
  waits = 0;
  EXPECT_EQ(work.Slice(absl::Seconds(1)), absl::Milliseconds(10));
  EXPECT_TRUE(work.list.empty());
  EXPECT_LT(waits, 100);
}

TEST(WorkSlices, OverrunByLittle) {
  Work work;
  work.Add(1000, absl::Microseconds(100));
  for (int slice = 0; slice < 20; ++slice) {
    EXPECT_LE(work.Slice(absl::Milliseconds(2)), absl::Microseconds(2500));
  }
  // After small jobs, large ones: once a few at a time, then each alone.
  work.list.Clear();
  work.Add(20, absl::Milliseconds(3));
  work.Slice(absl::Milliseconds(1));
  work.Slice(absl::Milliseconds(1));
  work.Slice(absl::Milliseconds(1));
  EXPECT_EQ(work.Slice(absl::Milliseconds(1)), absl::Milliseconds(3));
}

TEST(WorkSlices, DoOneJobWhenTheTimeIsOver) {
  Work work;
  work.Add(1000, absl::Microseconds(1));
  work.Slice(absl::Microseconds(100));
  const int before = work.done;
  work.Slice(absl::ZeroDuration());
  EXPECT_EQ(work.done, before + 1);
}

}  // namespace
}  // namespace morphserve
