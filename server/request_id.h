// Names of requests: what a client may choose, and what the server makes when it chooses none.
// Thread rule: functions without state, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace morphserve {

inline constexpr size_t kRequestIdBytesMax = 64;

// [A-Za-z0-9._:-]{1,64}.
bool IsValidRequestId(std::string_view id);

// "r-" and 32 random hex digits; distinct for all practical purposes.
std::string MakeRequestId();

// Random bits for a request that names no seed.
uint64_t MakeSeed();

// A W3C traceparent ("00-<32 hex>-<16 hex>-<2 hex>"), the only form that is handed back.
bool IsValidTraceparent(std::string_view value);

}  // namespace morphserve
