// Catches a page that is served to the wrong path or method, and a request that a peer malformed.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/http_server.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// What the server answers to these bytes, until it closes.
std::string Exchange(int port, const std::string& bytes) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_GE(fd, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  std::string answer;
  char buffer[4096];
  for (ssize_t n = recv(fd, buffer, sizeof buffer, 0); n > 0;
       n = recv(fd, buffer, sizeof buffer, 0)) {
    answer.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  return answer;
}

class HttpTest : public ::testing::Test {
 protected:
  static std::unique_ptr<HttpServer> Start() {
    HttpServer::Pages pages;
    pages["/good"] = [] { return HttpPage{200, "text/plain", "fine\n"}; };
    pages["/bad"] = [] { return HttpPage{503, "text/plain", "not now\n"}; };
    pages["/big"] = [] { return HttpPage{200, "text/plain", std::string(1 << 20, 'x')}; };
    auto server = HttpServer::Create("127.0.0.1:0", std::move(pages));
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  std::string Ask(const std::string& line) {
    return Exchange(server_->port(), line + " HTTP/1.1\r\nHost: x\r\n\r\n");
  }

  const std::unique_ptr<HttpServer> server_ = Start();
};

TEST_F(HttpTest, PagesAreServedWithTheirStatus) {
  const std::string good = Ask("GET /good");
  EXPECT_THAT(good, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(good, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(good, HasSubstr("\r\n\r\nfine\n"));
  EXPECT_THAT(Ask("GET /bad"), StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_GT(Ask("GET /big").size(), size_t{1} << 20);
  EXPECT_THAT(Ask("GET /good?x=1"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, HeadHasNoBody) {
  const std::string head = Ask("HEAD /good");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(head, Not(HasSubstr("fine")));
}

TEST_F(HttpTest, OtherPathsAndMethodsAreRefused) {
  for (const char* path : {"/", "/nope", "/good/", "/good/more", "/../../etc/passwd", "//good"}) {
    EXPECT_THAT(Ask(std::string("GET ") + path), Not(StartsWith("HTTP/1.1 200"))) << path;
  }
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS", "PATCH"}) {
    EXPECT_THAT(Ask(std::string(method) + " /good"), StartsWith("HTTP/1.1 405")) << method;
  }
}

TEST_F(HttpTest, MalformedRequestsDisturbNobody) {
  for (const std::string& bytes :
       {std::string("\r\n\r\n"), std::string("GET\r\n\r\n"), std::string(64, '\0') + "\r\n\r\n",
        "GET /good HTTP/1.1\r\nX: " + std::string(100000, 'a') + "\r\n\r\n",
        "GET /" + std::string(20000, 'a') + " HTTP/1.1\r\n\r\n",
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}) {
    EXPECT_THAT(Exchange(server_->port(), bytes), Not(StartsWith("HTTP/1.1 200")));
  }
  EXPECT_THAT(Ask("GET /good"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, ManyAtOnceAreAllAnswered) {
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&] {
      for (int n = 0; n < 5; ++n) {
        if (Ask("GET /good").find("fine") != std::string::npos) ++good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 80);
}

TEST_F(HttpTest, ATakenPortIsRefusedByName) {
  const std::string taken = absl::StrFormat("127.0.0.1:%d", server_->port());
  const auto second = HttpServer::Create(taken, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(taken));
}

}  // namespace
}  // namespace morphserve
