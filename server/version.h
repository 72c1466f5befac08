// What this binary is: set by the build.
#pragma once

#include <string>

namespace morphserve {

std::string VersionString();  // "0.1.0".
std::string CommitString();   // Short hash, or "unknown" outside a git checkout.
std::string VersionLine();    // For --version: version, commit, compiler, build type.

}  // namespace morphserve
