// What the libraries say goes where the server's goes, whichever test runs alone: protobuf's line
// for each hostile message is detail there, and not in the tests' output.
#include <gtest/gtest.h>

#include "server/log_bridge.h"

namespace morphserve {
namespace {

class LogEnvironment : public ::testing::Environment {
 public:
  void SetUp() override { InstallLogBridge(); }
};

[[maybe_unused]] ::testing::Environment* const kLogEnvironment =
    ::testing::AddGlobalTestEnvironment(new LogEnvironment);

}  // namespace
}  // namespace morphserve
