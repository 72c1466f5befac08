#!/usr/bin/env bash
# Tests and benchmarks of the CUDA backend on the machine it runs on, one table at the end:
#   tests/bench/gpu/run.sh [BINARIES]      (default build/cuda/bin)
# Needs the `cuda` preset's cuda_tests and *_bench programs, and libcublasLt.so.13 on
# LD_LIBRARY_PATH. Runs compute-sanitizer as well where it is on the PATH. Exit status 0 when
# everything passed.
set -uo pipefail

bin="${1:-build/cuda/bin}"
logs=$(mktemp -d)
table=()
failed=0

# run NAME SECONDS COMMAND...: the command with a time limit, its output in a log.
run() {
  local name="$1" limit="$2" begin=$SECONDS result=passed
  shift 2
  if ! timeout "$limit" "$@" >"$logs/$name.log" 2>&1; then
    result=FAILED
    failed=1
    tail -n 40 "$logs/$name.log"
  fi
  table+=("$(printf '%-22s %-8s %4d s' "$name" "$result" $((SECONDS - begin)))")
}

run tests 300 "$bin/cuda_tests" --gtest_brief=1
if command -v compute-sanitizer >/dev/null; then
  # The small cases: the tools slow kernels down a hundredfold. sanitize.sh runs all.
  small="RowsCudaTest.*:LowRankCudaTest.Takes*:MatmulCudaTest.NotFinite*"
  small="$small:SampleCudaTest.Two*:SampleCudaTest.Reports*:*SegmentsOfACall*:*EmitsAre*:Units*"
  small="--gtest_filter=$small"
  run memcheck 300 compute-sanitizer --tool memcheck --error-exitcode 1 "$bin/cuda_tests" "$small"
  run racecheck 300 compute-sanitizer --tool racecheck --error-exitcode 1 "$bin/cuda_tests" "$small"
else
  table+=("memcheck, racecheck    skipped: compute-sanitizer is not on the PATH")
fi
for bench in gemv_bench gpu_mixer_bench gpu_selection_bench; do
  run "$bench" 300 "$bin/$bench"
  cat "$logs/$bench.log"
done
printf '\n'
printf '%s\n' "${table[@]}"
rm -rf "$logs"
exit "$failed"
