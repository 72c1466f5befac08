# shellcheck shell=bash
# Names shared by the scripts of this repository; sourced, never run.
# Everything that is fetched or generated lives below two git-ignored folders: .cache and build.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${MORPHSERVE_CACHE_DIR:-${ROOT}/.cache}"
VENV="${CACHE}/venv"
# shellcheck disable=SC2034  # Used by the scripts that source this file.
CUDA_TOOLKIT="${CACHE}/cuda"
# shellcheck disable=SC2034  # Used by the scripts that source this file.
MODEL="${CACHE}/models/SmolLM2-135M-Instruct.Q4_1.gguf"
export CCACHE_DIR="${CCACHE_DIR:-${CACHE}/ccache}"
# The build folder may be anywhere, so paths inside the tree are what makes two builds alike.
export CCACHE_BASEDIR="${ROOT}"
# So that it also keeps what is compiled with precompiled headers.
export CCACHE_SLOPPINESS="pch_defines,time_macros"
export CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-4G}"

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Compile jobs: one a processor, but no more than memory allows (about 1.5 GB a compiler), unless
# cmake's own variable says otherwise.
build_jobs() {
  local processors compilers
  [[ -z "${CMAKE_BUILD_PARALLEL_LEVEL:-}" ]] || { echo "${CMAKE_BUILD_PARALLEL_LEVEL}" && return; }
  processors="$(nproc)"
  compilers="$(awk '/^MemAvailable:/ {print int($2 / 1572864)}' /proc/meminfo)"
  [[ "${compilers}" -ge 1 ]] || compilers=1
  echo $((processors < compilers ? processors : compilers))
}

# The folder that holds google/rpc/*.proto inside the Python environment.
googleapis_dir() {
  local found
  for found in "${VENV}"/lib/python3*/site-packages; do
    [[ -f "${found}/google/rpc/error_details.proto" ]] && echo "${found}" && return 0
  done
  return 1
}

# configure PRESET [cmake arguments...]: quiet when it works, the whole story when it does not.
configure() {
  local preset="$1" log="${ROOT}/build/$1/configure.log"
  shift
  mkdir -p "${ROOT}/build/${preset}"
  if ! (cd "${ROOT}" && cmake --preset "${preset}" \
    -DMORPHSERVE_GOOGLEAPIS_DIR="$(googleapis_dir)" "$@") >"${log}" 2>&1; then
    cat "${log}" >&2
    die "cmake could not configure preset ${preset}; its output is above"
  fi
}
