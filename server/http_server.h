// HttpServer serves a fixed set of read-only pages over plain HTTP/1.1: metrics, status, health.
// Only GET and HEAD of an exact path are answered; there are no files behind it. Thread rule: pages
// are made on the server's own threads, several at a time. Ownership: whatever the pages refer to
// outlives the HttpServer.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct mg_context;
struct mg_connection;

namespace morphserve {

struct HttpPage {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  using Pages = std::map<std::string, std::function<HttpPage()>>;

  // Listens at once. UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const std::string& address,
                                                            Pages pages);
  ~HttpServer();  // Closes the listener and waits for pages under way.
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const { return port_; }  // As bound, for port 0.

 private:
  explicit HttpServer(Pages pages) : pages_(std::move(pages)) {}
  static int Handle(mg_connection* connection, void* self);
  int Serve(mg_connection* connection) const;

  const Pages pages_;
  mg_context* context_ = nullptr;
  std::string host_;
  int port_ = 0;
};

}  // namespace morphserve
