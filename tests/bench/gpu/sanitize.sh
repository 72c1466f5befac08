#!/usr/bin/env bash
# Every test of cuda_tests under compute-sanitizer, each in a process of its own and several at a
# time, as the tools slow kernels down a hundredfold and mostly on the processor:
#   tests/bench/gpu/sanitize.sh TOOL [BINARIES] [FILTER]
# TOOL: memcheck, racecheck, synccheck or initcheck. JOBS (default: half the processors, 8 at most)
# and LIMIT (seconds of a test, default 150) may be set. Prints what the tool found, and the
# tests that did not end, as they come. Exit status 0 when nothing was found and every test ended.
set -uo pipefail

tool="${1:?a tool: memcheck, racecheck, synccheck or initcheck}"
bin="${2:-build/cuda/bin}"
filter="${3:-*}"
limit="${LIMIT:-150}"
jobs="${JOBS:-$(($(nproc) / 2 > 8 ? 8 : ($(nproc) / 2 > 0 ? $(nproc) / 2 : 1)))}"
logs=$(mktemp -d)
export tool bin limit logs

# check TEST: says what was found, and leaves TEST.found or TEST.late.
check() {
  local log="$logs/${1//\//_}"
  timeout -k 10 "$limit" compute-sanitizer --tool "$tool" --error-exitcode 1 \
    --require-cuda-init no "$bin/cuda_tests" \
    --gtest_filter="$1" >"$log.log" 2>&1
  case $? in
    0) ;;
    124 | 137)
      touch "$log.late"
      echo "$1: did not end within $limit s"
      ;;
    *)
      touch "$log.found"
      printf '%s:\n%s\n' "$1" "$(grep -E "=========|FAILED|Failure" "$log.log" | head -n 12)"
      ;;
  esac
}
export -f check

# "Suite." lines, then "  Test" lines with an optional comment.
tests=$("$bin/cuda_tests" --gtest_filter="$filter" --gtest_list_tests |
  awk '/^[^ ].*\./ { suite = $1 } /^  / { print suite $1 }')
count=$(wc -l <<<"$tests")
[ -n "$tests" ] || { echo "no test matches $filter" >&2; exit 2; }
xargs -P "$jobs" -I{} bash -c 'check {}' <<<"$tests"

found=$(find "$logs" -name '*.found' | wc -l)
late=$(find "$logs" -name '*.late' | wc -l)
echo "$tool: $count tests, $found with findings, $late that did not end"
rm -rf "$logs"
[ "$found" -eq 0 ] && [ "$late" -eq 0 ]
