// The error catalogue: what rides with a status, and that it fits a header whatever a client sent.
#include "server/errors.h"

#include <gmock/gmock.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/engine.h"
#include "morph/reasons.h"
#include "server/faults.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

template <typename T>
bool Detail(const grpc::Status& status, T* out) {
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) return false;
  EXPECT_EQ(rich.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(rich.message(), status.error_message());
  for (const auto& any : rich.details()) {
    if (any.UnpackTo(out)) return true;
  }
  return false;
}

TEST(Errors, OkStaysOkWithoutDetails) {
  const grpc::Status status = ToGrpcStatus(absl::OkStatus());
  EXPECT_TRUE(status.ok());
  EXPECT_TRUE(status.error_details().empty());
}

TEST(Errors, AReasonOfTheEngineBecomesErrorInfo) {
  const grpc::Status status =
      ToGrpcStatus(WithReason(absl::InvalidArgumentError("prompt has 9000 tokens; limit is 8192"),
                              reason::kContextTooLong));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "prompt has 9000 tokens; limit is 8192");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(Detail(status, &info));
  EXPECT_EQ(info.reason(), "CONTEXT_TOO_LONG");
  EXPECT_EQ(info.domain(), "morphserve");
  google::rpc::RetryInfo retry;
  EXPECT_FALSE(Detail(status, &retry));
}

TEST(Errors, MetadataOfTheEngineIsForPrograms) {
  absl::Status status = WithReason(absl::DeadlineExceededError("needs 900 ms; 400 ms left"),
                                   reason::kDeadlineUnreachable);
  status = WithMetadata(WithMetadata(status, "needed_ms", "900"), "left_ms", "400");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(Detail(ToGrpcStatus(status), &info));
  EXPECT_EQ(info.metadata().size(), 2u);
  EXPECT_EQ(info.metadata().at("needed_ms"), "900");
  EXPECT_EQ(info.metadata().at("left_ms"), "400");
}

TEST(Errors, RetryableReasonsSayWhenToTryAgain) {
  const struct {
    absl::StatusCode code;
    const char* reason;
  } cases[] = {{absl::StatusCode::kResourceExhausted, reason::kQueueFull},
               {absl::StatusCode::kUnavailable, reason::kStarting},
               {absl::StatusCode::kUnavailable, reason::kDraining},
               {absl::StatusCode::kAborted, reason::kAdminAbort},
               {absl::StatusCode::kDataLoss, reason::kNonFinite}};
  for (const auto& c : cases) {
    const absl::Status status = WithReason(absl::Status(c.code, "later"), c.reason);
    google::rpc::RetryInfo retry;
    ASSERT_TRUE(Detail(ToGrpcStatus(status), &retry)) << c.reason;
    const int64_t ms =
        retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1'000'000;
    EXPECT_EQ(ms, RetryAfterMs(status)) << c.reason;
    EXPECT_GT(ms, 0) << c.reason;
  }
  EXPECT_FALSE(RetryAfterMs(WithReason(absl::ResourceExhaustedError("x"), reason::kSlowReader)));
  // Settings do not change while a client waits.
  EXPECT_FALSE(
      RetryAfterMs(WithReason(absl::ResourceExhaustedError("x"), reason::kSelectionMemory)));
}

TEST(Errors, EveryFaultIsInBadRequest) {
  const grpc::Status status = ToGrpcStatus(FieldsInvalid(
      {{"options.sampling.top_p", "is 1.5; must be in (0, 1]"}, {"text", "is empty"}}));
  EXPECT_EQ(status.error_message(),
            "options.sampling.top_p is 1.5; must be in (0, 1]; and 1 more fault");
  google::rpc::BadRequest faults;
  ASSERT_TRUE(Detail(status, &faults));
  ASSERT_EQ(faults.field_violations_size(), 2);
  EXPECT_EQ(faults.field_violations(1).field(), "text");
  EXPECT_EQ(faults.field_violations(1).description(), "is empty");
}

TEST(Errors, ThousandsOfFaultsStillFitAHeader) {
  FaultList list;
  for (int i = 0; i < 4096; ++i) {
    list.Add(absl::StrFormat("options.sampling.allowed_token_ids[%d]", i), std::string(300, 'x'));
  }
  const grpc::Status status = ToGrpcStatus(list.ToStatus());
  EXPECT_THAT(status.error_message(), HasSubstr("and 4095 more faults"));
  // Both are sent as base64 or percent-encoded text, below the 8 KiB that clients take.
  EXPECT_LT(status.error_message().size() * 3 + status.error_details().size() * 4 / 3, 7000u);
  google::rpc::BadRequest faults;
  ASSERT_TRUE(Detail(status, &faults));
  EXPECT_GT(faults.field_violations_size(), 2);
}

TEST(Errors, LongTextIsCutOnACharacterAndWithoutControls) {
  std::string model;
  for (int i = 0; i < 100; ++i) model += "\xE2\x82\xAC";  // Three bytes each: 64 is inside one.
  const std::string quoted = Quoted(model);
  EXPECT_EQ(quoted, absl::StrFormat("'%s...'", model.substr(0, 63)));
  EXPECT_EQ(Quoted("a\nb\x7F"), "'a b '");
}

TEST(Errors, AnInternalErrorShowsAnIncidentAndNotItsCause) {
  const grpc::Status status = ToGrpcStatus(absl::InternalError("page 7 is on two lists"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), Not(HasSubstr("page")));
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(Detail(status, &info));
  EXPECT_EQ(info.reason(), "INVARIANT");
  EXPECT_THAT(status.error_message(), HasSubstr(info.metadata().at("incident")));
}

TEST(Errors, AnUnavailableFieldIsNamedInMetadata) {
  const grpc::Status status = ToGrpcStatus(FeatureUnavailable("options.constraint.regex"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(Detail(status, &info));
  EXPECT_EQ(info.reason(), "FEATURE_UNAVAILABLE");
  EXPECT_EQ(info.metadata().at("field"), "options.constraint.regex");
}

TEST(Errors, ACancellationHasNoReason) {
  const grpc::Status status = ToGrpcStatus(absl::CancelledError("the client cancelled"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  google::rpc::ErrorInfo info;
  EXPECT_FALSE(Detail(status, &info));
}

TEST(FaultList, FaultsComeBeforeWhatIsUnavailable) {
  FaultList list;
  list.AddUnavailable("options.cache.salt");
  EXPECT_TRUE(absl::IsUnimplemented(list.ToStatus()));
  list.Add("text", "is empty");
  EXPECT_TRUE(absl::IsInvalidArgument(list.ToStatus()));
}

}  // namespace
}  // namespace morphserve
