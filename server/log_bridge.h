// Sends the log lines of gRPC and protobuf to our own log, at a bounded rate: hostile input can
// make either library complain once a message.
#pragma once

namespace morphserve {

// Once, before gRPC is used.
void InstallLogBridge();

}  // namespace morphserve
