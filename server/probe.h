// The probe client: asks a health service once, for images without a shell.
#pragma once

#include <string>

namespace morphserve {

struct ProbeOptions {
  std::string target;   // "ADDR" or "ADDR,SERVICE".
  std::string ca_file;  // PEM of the authority that signed the server; empty: plain connection.
  double timeout_s = 5;
};

// The exit code: 0 serving; 1 not serving; 2 not reached, name not known, or malformed target. Says
// which on standard error, except when serving.
int RunProbe(const ProbeOptions& options);

}  // namespace morphserve
