#include "server/raw_message.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/slice.h>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "server/errors.h"

namespace morphserve {

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message) {
  // A client may end its side without a message: then there is no buffer at all.
  if (!bytes.Valid()) return FieldInvalid("request", "is missing");
  grpc::ByteBuffer copy = bytes;  // Shares the bytes; the reader needs one it may change.
  grpc::ProtoBufferReader reader(&copy);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  return FieldInvalid(
      "request", absl::StrFormat("is not a valid %s: truncated, malformed, or a string that is "
                                 "not UTF-8",
                                 message->GetTypeName()));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  grpc::Slice slice(size);
  auto* begin = const_cast<uint8_t*>(slice.begin());  // Fresh, and nobody else's yet.
  MS_CHECK(message.SerializeWithCachedSizesToArray(begin) == begin + size);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace morphserve
