// The bucket sets of histograms, shared by code and documentation. Seconds, unless the name says
// tokens.
#pragma once

#include <prometheus/histogram.h>

namespace morphserve {

// Step and inter-token times.
inline prometheus::Histogram::BucketBoundaries FineBuckets() {
  return {0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.010, 0.012,
          0.016,  0.020, 0.030,  0.050, 0.080, 0.120, 0.200, 0.400, 0.800, 2,     5};
}

// Time to the first token.
inline prometheus::Histogram::BucketBoundaries FirstTokenBuckets() {
  return {0.002, 0.005, 0.010, 0.020, 0.030, 0.050, 0.080, 0.120, 0.200, 0.300,
          0.500, 0.800, 1.2,   2,     4,     8,     15,    30,    60,    120};
}

// Whole requests and calls.
inline prometheus::Histogram::BucketBoundaries LongBuckets() {
  return {0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200, 400, 800, 1600};
}

// Numbers of tokens.
inline prometheus::Histogram::BucketBoundaries TokenBuckets() {
  return {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576};
}

// Layer plans in a step.
inline prometheus::Histogram::BucketBoundaries PlanBuckets() { return {1, 2, 3, 4, 6, 8}; }

}  // namespace morphserve
