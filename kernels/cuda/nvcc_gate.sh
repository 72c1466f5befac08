#!/usr/bin/env bash
# Runs the compiler of CUDA sources, given with its arguments, and reads what ptxas -v says. Quiet
# when all is well; fails the build, and removes the object, when a kernel spills registers or when
# ptxas changed what a Hopper kernel is built on: C7508 (setmaxnreg ignored), C7510 and C7512 (wgmma
# serialised), C7517 and C7519 (waits put between wgmma). Each is a silent large slowdown.
set -uo pipefail

output=$("$@" 2>&1)
status=$?
# What is left without the report of resources.
rest=$(grep -vE '^ptxas info|^ *[0-9]+ bytes (stack frame|gmem)|^ptxas . [0-9]+ bytes' <<<"$output")
[ -n "$rest" ] && printf '%s\n' "$rest" >&2
[ "$status" -ne 0 ] && exit "$status"

faults=$(grep -E 'C75(08|10|12|17|19)' <<<"$output"
         awk '/Compiling entry function/ { kernel = $0 }
              / bytes spill/ && !/ 0 bytes spill stores, 0 bytes spill loads/ {
                print kernel; print
              }' <<<"$output")
[ -z "$faults" ] && exit 0
printf 'nvcc_gate: kernels that may not be built so:\n%s\n' "$faults" >&2
for ((i = 1; i < $#; ++i)); do
  if [ "${!i}" = -o ]; then
    next=$((i + 1))
    rm -f -- "${!next}"
  fi
done
exit 1
