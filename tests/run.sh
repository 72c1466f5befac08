#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. The last line counts them; the exit code
# is 0 only when nothing failed. Parts may be named to run only those.
set -uo pipefail
# shellcheck source=deploy/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../deploy/common.sh"

REPORTS="${ROOT}/build/test-reports"
export MORPHSERVE_TEST_MODEL="${MORPHSERVE_TEST_MODEL:-${MODEL}}"
# One report is enough to fail; leaks count. A 2-core machine runs these beside a compiler.
export ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1:${TSAN_OPTIONS:-}"

usage() {
  cat <<'TEXT'
usage: tests/run.sh [--long] [release] [asan] [tsan] [python]

  release  build all, unit tests
  asan     the same unit tests and a part of the end-to-end tests under ASan and UBSan
  tsan     engine, text, thread pool and stream logic under ThreadSanitizer
  python   tidy, deploy and end-to-end tests (needs the release build)

Without a part: everything. --long runs thousands of schedules of the parity matrix instead of a
sample.
TEXT
}

started="${SECONDS}"
# section TITLE: a heading with the time since the start.
section() { say "[$(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s] $*"; }

# A step that is no test program itself: its failure is counted as one failed test of that name.
failed_step() {
  note "FAILED: $1"
  printf '<testsuite><testcase name="%s"><failure/></testcase></testsuite>\n' "$1" \
    >"${REPORTS}/step-${1//[^a-zA-Z0-9]/-}.xml"
}

# build PRESET TARGETS...
build() {
  local preset="$1" option
  shift
  section "Building preset ${preset} ($(build_jobs) jobs)"
  # The release folder is shared with quickstart.sh, which turns these off there.
  option=(-DMORPHSERVE_TESTS=ON)
  # With CUDA always: a machine without nvcc must fail here, not leave the kernels out.
  [[ "${preset}" != release ]] || option+=(-DMORPHSERVE_BENCH=ON -DMORPHSERVE_CUDA=ON
    "-DMORPHSERVE_NVCC=${CUDA_TOOLKIT}/nvidia/cu13/bin/nvcc")
  if ! (configure "${preset}" "${option[@]}") ||
    ! cmake --build "${ROOT}/build/${preset}" -j "$(build_jobs)" --target "$@"; then
    failed_step "build of preset ${preset}"
    return 1
  fi
}

# gtest PRESET PROGRAM [arguments...]: one program in one process. A crash writes no report, so a
# missing report is a failure too.
gtest() {
  local preset="$1" program="$2" report="${REPORTS}/$1-$2.xml" code=0
  shift 2
  section "${program} (${preset})"
  # A program that hangs is a failure, not a run without an end.
  timeout --kill-after=10 1200 "${ROOT}/build/${preset}/bin/${program}" --gtest_brief=1 \
    "--gtest_output=xml:${report}" "$@" || code=$?
  if [[ ! -s "${report}" ]]; then
    failed_step "${program} of preset ${preset} ended with code ${code}"
  elif [[ "${code}" -ne 0 ]] && ! grep -q '<failure' "${report}"; then
    failed_step "${program} of preset ${preset} ended with code ${code} after its tests"
  fi
}

# py NAME [pytest arguments...]
py() {
  local name="$1" report="${REPORTS}/python-$1.xml" code=0
  shift
  section "${name} (pytest)"
  (cd "${ROOT}" && "${VENV}/bin/python" -m pytest -q -c tests/pytest.ini -p no:cacheprovider \
    --junitxml "${report}" "$@") || code=$?
  # 1 = some failed, which the report says; 5 = none collected.
  [[ "${code}" -le 1 ]] || failed_step "pytest ${name} ended with code ${code}"
}

run_release() {
  build release all || return
  section "Unit tests (release)"
  local code=0
  ctest --test-dir "${ROOT}/build/release" -j "$(nproc)" --output-on-failure --progress \
    --output-junit "${REPORTS}/release.xml" --timeout "${test_timeout_s}" || code=$?
  [[ -s "${REPORTS}/release.xml" ]] || failed_step "ctest ended with code ${code}"
}

# in_pairs FUNCTION ITEM...: calls FUNCTION with each item, two at a time; what each says comes in
# order once it has ended.
in_pairs() {
  local function="$1" item logs
  shift
  logs="$(mktemp -d)"
  for item in "$@"; do
    while [[ "$(jobs -rp | wc -l)" -ge 2 ]]; do wait -n; done
    "${function}" "${item}" >"${logs}/${item}" 2>&1 &
  done
  wait
  for item in "$@"; do cat "${logs}/${item}"; done
  rm -rf "${logs}"
}

asan_tests() {
  # The default model's goldens only repeat arithmetic that the release build has tested.
  gtest asan "$1_tests" \
    --gtest_filter='-Golden.DefaultModel*:Golden.QuantisedMode*:*.TheDefaultModel*'
}

run_asan() {
  build asan all || return
  in_pairs asan_tests morph engine kernels text loader server ctl
  compgen -G "${ROOT}/tests/e2e/test_*.py" >/dev/null || return
  MORPHSERVE_BIN_DIR="${ROOT}/build/asan/bin" py e2e-asan -m smoke tests/e2e
}

# Without the goldens and the tests that start no second thread.
tsan_tests() {
  local -A filters=(
    [engine]='-Golden.*:BranchesForward.*:BranchesGolden.*:CacheProperty.*:*.TheDefaultModel*'
    [kernels]='*PoolTest*'
    [morph]='Selection.*:WorkList.*:Runner.*:LatencyWindow.*:Controller.*'
    [stream]='*'
    [text]='*'
  )
  gtest tsan "$1_tests" --gtest_filter="${filters[$1]}"
}

run_tsan() {
  local names=(engine morph text kernels stream)
  build tsan "${names[@]/%/_tests}" || return
  in_pairs tsan_tests "${names[@]}"
}

run_python() {
  py tidy tests/tidy_test.py
  MORPHSERVE_BIN_DIR="${ROOT}/build/release/bin" py deploy tests/deploy
  compgen -G "${ROOT}/tests/e2e/test_*.py" >/dev/null || return
  MORPHSERVE_BIN_DIR="${ROOT}/build/release/bin" py e2e tests/e2e
}

parts=()
test_timeout_s=300
for argument in "$@"; do
  if [[ "${argument}" == --long ]]; then
    export MORPHSERVE_TEST_LONG=1
    test_timeout_s=7200
  else
    parts+=("${argument}")
  fi
done
[[ ${#parts[@]} -gt 0 ]] || parts=(release asan tsan python)
for part in "${parts[@]}"; do
  case "${part}" in
    release | asan | tsan | python) ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      die "unknown part ${part}"
      ;;
  esac
done

rm -rf "${REPORTS}"
mkdir -p "${REPORTS}"
section "Packages, Python environment, model"
"${ROOT}/deploy/install_packages.sh" --tests --cuda || die "the set-up failed; nothing was tested"
for part in "${parts[@]}"; do
  "run_${part}"
done
section "Result"
"${VENV}/bin/python" "${ROOT}/tests/count_results.py" "${REPORTS}"
