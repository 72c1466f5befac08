#include "server/listener.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

constexpr int kMetadataBytesMax = 16 << 10;

int Milliseconds(int seconds) { return seconds * 1000; }

void SetLimits(const ServerConfig::Grpc& limits, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(limits.receive_bytes_max));
  builder->SetMaxSendMessageSize(static_cast<int>(limits.send_bytes_max));
  // A second process on the same port would get a share of the connections, unnoticed.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits.streams_per_connection_max);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                              Milliseconds(limits.connection_age_s));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                              Milliseconds(limits.connection_age_grace_s));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(limits.keepalive_time_s));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              Milliseconds(limits.keepalive_timeout_s));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              Milliseconds(limits.client_ping_min_s));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, limits.ping_strikes);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
}

}  // namespace

absl::StatusOr<Listener> StartListener(const ListenerOptions& options,
                                       const ServerConfig::Grpc& limits) {
  if (limits.reflection) {
    // The plugin is one for all servers of the process, made once.
    static const bool made = (grpc::reflection::InitProtoReflectionServerBuilderPlugin(), true);
    static_cast<void>(made);
  }
  grpc::ServerBuilder builder;
  SetLimits(limits, &builder);
  // Reflection is the only synchronous service: one thread a listener is enough.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  Listener listener;
  builder.AddListeningPort(options.address, options.credentials, &listener.port);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || listener.port == 0) {
    return absl::UnavailableError(
        absl::StrFormat("%s: cannot listen on %s", options.key, options.address));
  }
  return listener;
}

}  // namespace morphserve
