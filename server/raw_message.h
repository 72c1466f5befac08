// Messages to and from the bytes of a raw callback method. gRPC would answer a request it cannot
// parse with UNIMPLEMENTED and no text; read here, it becomes FIELD_INVALID.
// Thread rule: functions without state, any thread.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace morphserve {

// FIELD_INVALID when the bytes are truncated, malformed, or hold a string that is not UTF-8.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message);

}  // namespace morphserve
