#!/usr/bin/env bash
# From a fresh clone to a streamed answer: installs packages, builds, gets the default model, starts
# the server with the model's linear branches, asks it something under two layer plans, shows what
# each costs at long context, and keeps serving until Ctrl-C. A second run takes seconds.
set -euo pipefail
# shellcheck source=deploy/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The linear halves of the default model's layers, part of this repository.
BRANCHES="${ROOT}/deploy/models/smollm2-135m-instruct.branches.safetensors"
# Full layers of the hybrid plan of the demonstration; the tokens of its long prompts.
HYBRID_LAYERS=7
LONG_PROMPT=3500
QUESTION="${MORPHSERVE_QUICKSTART_QUESTION:-Explain in two sentences why the sky is blue.}"
BIN="${ROOT}/build/release/bin"
RUN="${CACHE}/quickstart"
server_pid=

usage() {
  cat <<'TEXT'
usage: deploy/quickstart.sh [--exit]

  --exit   stop the server after the demonstration; the exit code says whether all went well

Ports 8001 to 8003 are used when they are free, others when they are not.
TEXT
}

stop_server() {
  local pid="${server_pid}"
  [[ -n "${pid}" ]] || return 0
  server_pid=
  kill -TERM "${pid}" 2>/dev/null || true
  wait "${pid}"
}

build() {
  say "Building morphserve and morphctl (release, $(build_jobs) jobs; the first time takes minutes)"
  # A stranger who serves needs no GoogleTest; tests/run.sh turns the rest on in the same folder.
  configure release -DMORPHSERVE_TESTS=OFF -DMORPHSERVE_BENCH=OFF
  cmake --build "${ROOT}/build/release" --target morphserve morphctl -j "$(build_jobs)"
}

# Prints the port when nothing listens there, else 0, which lets the system choose.
port_or_any() {
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then echo 0; else echo "$1"; fi
}

start_server() {
  local ready="${RUN}/ready.json" inference http admin
  inference="$(port_or_any 8001)" http="$(port_or_any 8002)" admin="$(port_or_any 8003)"
  mkdir -p "${RUN}"
  rm -f "${ready}"
  say "Starting the server (its log: ${RUN#"${ROOT}/"}/server.log)"
  # A process group of its own: Ctrl-C reaches this script only, which then stops the server.
  set -m
  "${BIN}/morphserve" --model "${MODEL}" --branches "${BRANCHES}" --ready_file "${ready}" \
    --set "listen.inference=127.0.0.1:${inference}" --set "listen.http=127.0.0.1:${http}" \
    --set "listen.admin=127.0.0.1:${admin}" --set drain.withdraw_s=0 \
    >"${RUN}/server.log" 2>&1 &
  server_pid=$!
  set +m
  for ((tenths = 0; tenths < 1200; ++tenths)); do
    if ! kill -0 "${server_pid}" 2>/dev/null; then
      tail -n 20 "${RUN}/server.log" >&2
      server_pid=
      die "the server ended before it was ready; the end of its log is above"
    fi
    [[ -s "${ready}" ]] && break
    sleep 0.1
  done
  [[ -s "${ready}" ]] || die "the server was not ready after 120 s"
  read -r INFERENCE HTTP ADMIN < <(/usr/bin/python3 - "${ready}" <<'PYTHON'
import json, sys

bound = json.load(open(sys.argv[1]))
print(*(f"127.0.0.1:{bound[name]}" for name in ("inference", "http", "admin")))
PYTHON
  )
  note "ready: inference ${INFERENCE}, metrics http://${HTTP}/metrics, admin ${ADMIN}"
}

ask() {
  say "${QUESTION}"
  note "every layer full:"
  "${BIN}/morphctl" --addr "${INFERENCE}" chat --prompt "${QUESTION}" --plan full \
    --temperature 0 --max-tokens 100 --stats
  echo
  note "${HYBRID_LAYERS} layers full, the others linear:"
  "${BIN}/morphctl" --addr "${INFERENCE}" chat --prompt "${QUESTION}" --plan "${HYBRID_LAYERS}" \
    --temperature 0 --max-tokens 100 --stats
}

# One long request under each plan.
compare_plans() {
  local plan report
  say "The same two plans behind a prompt of ${LONG_PROMPT} tokens (half a minute)"
  for plan in full "${HYBRID_LAYERS}"; do
    report="${RUN}/bench-${plan}.txt"
    "${BIN}/morphctl" --addr "${INFERENCE}" bench --plan "${plan}" --requests 1 --warmup 0 \
      --prompt-tokens "${LONG_PROMPT}" --output-tokens 64 --temperature 0 --ignore-eos >"${report}"
    awk -v plan="${plan}" '/^TTFT/ {first = $2} /^TPOT/ {token = $2} END {
      printf "    plan %-4s  first token after %5.2f s, then %5.2f ms a token\n",
             plan, first / 1000, token}' "${report}"
  done
  echo
  "${BIN}/morphctl" --addr "${INFERENCE}" --admin-addr "${ADMIN}" plans --context "${LONG_PROMPT}"
}

# A time per token halfway between the fastest plan and the all-full one, for a demonstration.
middle_target() {
  "${BIN}/morphctl" --addr "${INFERENCE}" --admin-addr "${ADMIN}" --json costs >"${RUN}/costs.json"
  /usr/bin/python3 - "${RUN}/costs.json" "$1" <<'PYTHON'
import json, sys

costs, context = json.load(open(sys.argv[1])), int(sys.argv[2])
one = next(t for t in costs["terms"] if not t.get("prefill") and t["rows"] == 1)
linear = one["base_ms"]
full = linear + costs["layers"] * (one.get("layer_ms", 0) + one.get("token_ms", 0) * context)
print(f"{(linear + full) / 2:.2f}")
PYTHON
}

# A stream of the new plan, from its switch on: what the watch measures.
stream_after_switch() {
  local i
  for ((i = 0; i < 600; ++i)); do
    grep -q SWITCHED "${RUN}/morph.txt" 2>/dev/null && break
    sleep 0.1
  done
  "$@" chat --prompt "Tell me a long story about a mountain." --max-tokens 300 --ignore-eos \
    --temperature 0 --stats >"${RUN}/stream_after.txt" 2>&1
}

# The active plan changes while a stream runs, and back.
morph_live() {
  local call=("${BIN}/morphctl" --addr "${INFERENCE}" --admin-addr "${ADMIN}")
  local target stream_pid after_pid applied=yes
  say "A live morph: what do steps cost on this machine? (seconds, once)"
  target="$(middle_target "${LONG_PROMPT}")" || die "the costs were not measured"
  "${call[@]}" costs
  say "From now on ${target} ms a token at ${LONG_PROMPT} tokens, please; meanwhile a stream runs"
  "${call[@]}" chat --prompt "Tell me a long story about a river." --max-tokens 400 --ignore-eos \
    --temperature 0 --stats >"${RUN}/stream.txt" 2>&1 &
  stream_pid=$!
  rm -f "${RUN}/morph.txt"
  stream_after_switch "${call[@]}" &
  after_pid=$!
  # A busy machine can miss a target that it would meet when quiet: then the old plan serves on.
  "${call[@]}" morph --tpot-ms "${target}" --context "${LONG_PROMPT}" --batch 1 --watch 4 \
    --retry-lower | tee "${RUN}/morph.txt" || applied=no
  wait "${stream_pid}" || die "the stream was harmed: $(tail -n 3 "${RUN}/stream.txt")"
  note "the stream ran on, on the plan it began with:"
  tail -n 1 "${RUN}/stream.txt"
  if [[ "${applied}" == no ]]; then
    kill "${after_pid}" 2>/dev/null || true  # It may have ended by itself.
    note "the target was missed just now, so the plan that served goes on serving"
    return
  fi
  wait "${after_pid}" || die "the stream after the switch failed: $(tail -n 3 "${RUN}/stream_after.txt")"
  note "and one that began after the switch:"
  tail -n 1 "${RUN}/stream_after.txt"
  say "And back"
  "${call[@]}" rollback
}

what_next() {
  local ctl="${BIN#"${ROOT}/"}/morphctl --addr ${INFERENCE}"
  say "It works. What to try next, in another terminal:"
  cat <<TEXT
    ${ctl} chat                       # talk to it
    ${ctl} chat --plan fastest        # on fewer full layers
    ${ctl} --admin-addr ${ADMIN} plans
    ${ctl} --admin-addr ${ADMIN} morph --full-layers 10 --watch 5
    ${ctl} generate --prompt "Once upon a time"
    ${ctl} bench                      # load and latency
    curl http://${HTTP}/statusz
    tests/run.sh                      # every test
TEXT
}

exit_after=no
for argument in "$@"; do
  case "${argument}" in
    --exit) exit_after=yes ;;
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

"${ROOT}/deploy/install_packages.sh"
trap 'stop_server || true' EXIT
trap 'exit 130' INT TERM HUP
build
start_server
ask
compare_plans
morph_live
what_next
if [[ "${exit_after}" == yes ]]; then
  say "Stopping the server"
  stop_server || die "the server ended with code $?"
  note "done"
  exit 0
fi
trap 'echo; say "Stopping the server"; stop_server && exit 0 || exit 1' INT TERM
say "Serving until Ctrl-C"
code=0
wait "${server_pid}" || code=$?
server_pid=
tail -n 20 "${RUN}/server.log" >&2
die "the server ended with code ${code}; the end of its log is above"
