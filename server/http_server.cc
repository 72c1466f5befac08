#include "server/http_server.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <string_view>
#include <thread>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "server/server_config.h"

namespace morphserve {
namespace {

const char* Reason(int status) {
  switch (status) {
    case 200: return "OK";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    default: return "Service Unavailable";
  }
}

// The library's own complaints, of which a hostile client can make many, are for whoever debugs.
int LogMessage(const mg_connection*, const char* message) {
  MS_LOG(DEBUG) << "http: " << message;
  return 1;
}

// Access lines say who asked for what: not kept.
int LogAccess(const mg_connection*, const char*) { return 1; }

void Send(mg_connection* connection, const HttpPage& page, bool body) {
  const std::string head = absl::StrFormat(
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
      "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
      page.status, Reason(page.status), page.content_type, page.body.size());
  mg_write(connection, head.data(), head.size());
  if (body) mg_write(connection, page.body.data(), page.body.size());
}

// The form the library reads: it takes literal addresses only.
std::string ListeningPorts(const HostPort& address) {
  if (address.host == "localhost") return absl::StrFormat("127.0.0.1:%d", address.port);
  if (address.host.find(':') != std::string::npos) {
    return absl::StrFormat("[%s]:%d", address.host, address.port);
  }
  return absl::StrFormat("%s:%d", address.host, address.port);
}

// Opens and closes a connection to a listener of this process; a refusal is as good.
void Knock(const std::string& host, int port) {
  sockaddr_in6 six{};
  sockaddr_in four{};
  six.sin6_family = AF_INET6;
  four.sin_family = AF_INET;
  six.sin6_port = four.sin_port = htons(static_cast<uint16_t>(port));
  const bool is_six = inet_pton(AF_INET6, host.c_str(), &six.sin6_addr) == 1;
  // "localhost" and the wildcards answer on loopback.
  if (!is_six && (inet_pton(AF_INET, host.c_str(), &four.sin_addr) != 1 ||
                  four.sin_addr.s_addr == htonl(INADDR_ANY))) {
    four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  if (is_six && IN6_IS_ADDR_UNSPECIFIED(&six.sin6_addr)) six.sin6_addr = in6addr_loopback;
  const int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const int result = is_six ? connect(fd, reinterpret_cast<const sockaddr*>(&six), sizeof(six))
                            : connect(fd, reinterpret_cast<const sockaddr*>(&four), sizeof(four));
  static_cast<void>(result);
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const std::string& address,
                                                               Pages pages) {
  HostPort parsed;
  if (!ParseHostPort(address, &parsed)) {
    return absl::InvalidArgumentError(absl::StrFormat("listen.http is '%s'", address));
  }
  static const unsigned kFeatures = mg_init_library(MG_FEATURES_DEFAULT | MG_FEATURES_IPV6);
  if (parsed.host.find(':') != std::string::npos && (kFeatures & MG_FEATURES_IPV6) == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("listen.http is '%s'; IPv6 is not available", address));
  }
  const std::string ports = ListeningPorts(parsed);
  // Few threads and short waits: scrapers and probes are few, and a stalled one must not hold a
  // page.
  const char* const options[] = {"listening_ports", ports.c_str(), "num_threads", "4",
                                 "request_timeout_ms", "5000", "enable_keep_alive", "no",
                                 "max_request_size", "16384", "connection_queue", "32",
                                 // Zero would reset the connection under a page still on its way.
                                 "linger_timeout_ms", "3000", nullptr};
  mg_callbacks callbacks{};
  callbacks.log_message = &LogMessage;
  callbacks.log_access = &LogAccess;
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(pages)));
  server->context_ = mg_start(&callbacks, server.get(), const_cast<const char**>(options));
  if (server->context_ == nullptr) {
    return absl::UnavailableError(absl::StrFormat("listen.http: cannot listen on %s", address));
  }
  mg_server_port bound{};
  if (mg_get_server_ports(server->context_, 1, &bound) != 1) {
    return absl::UnavailableError(absl::StrFormat("listen.http: no port bound on %s", address));
  }
  server->host_ = parsed.host;
  server->port_ = bound.port;
  mg_set_request_handler(server->context_, "/", &HttpServer::Handle, server.get());
  return server;
}

HttpServer::~HttpServer() {
  if (context_ == nullptr) return;
  // The library looks at its stop flag once it has taken a connection, else every two seconds,
  // which would be most of an idle server's shutdown: we knock until it has noticed.
  Mutex mutex;
  CondVar changed;
  bool stopped = false;
  std::thread stopper([&] {
    mg_stop(context_);
    MutexLock lock(&mutex);
    stopped = true;
    changed.NotifyOne();
  });
  {
    MutexLock lock(&mutex);
    while (!stopped) {
      Knock(host_, port_);
      changed.WaitFor(&mutex, std::chrono::milliseconds(5));
    }
  }
  stopper.join();
}

int HttpServer::Handle(mg_connection* connection, void* self) {
  return static_cast<const HttpServer*>(self)->Serve(connection);
}

int HttpServer::Serve(mg_connection* connection) const {
  const mg_request_info* info = mg_get_request_info(connection);
  const std::string_view method = info->request_method != nullptr ? info->request_method : "";
  const char* path = info->local_uri_raw != nullptr ? info->local_uri_raw : "";
  HttpPage page;
  if (method != "GET" && method != "HEAD") {
    page.status = 405;
    page.body = "only GET and HEAD are answered\n";
  } else if (const auto found = pages_.find(path); found != pages_.end()) {
    page = found->second();
  } else {
    page.status = 404;
    page.body = "pages:";
    for (const auto& [name, make] : pages_) page.body += " " + name;
    page.body += "\n";
  }
  Send(connection, page, method != "HEAD");
  return page.status;
}

}  // namespace morphserve
