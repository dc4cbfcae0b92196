#!/usr/bin/env bash
# What runs on one worker of a TPU VM; tpu_vm.sh and queued_resource.sh call it there over ssh.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tpu_scripts/worker.sh ACTION

  install PYTHON EXTRA      makes .venv with that Python (uv fetches it) and installs this folder with an extra
  start [NAME=VALUE...] -- COMMAND OPTIONS...
                            starts `flaxbert COMMAND OPTIONS...` in the background, with its output in .run/log
  state                     prints one line: flaxbert-run HOST running | ended CODE | lost | none
  logs [--follow]           prints what the run wrote
  stop                      asks the run to save and end
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
self="tpu_scripts/${BASH_SOURCE[0]##*/}"
boot="$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || uname -n)"

fail() {
  printf 'worker.sh on %s: %s\n' "$(uname -n)" "$1" >&2
  exit "${2:-1}"
}

install() {
  (($# == 2)) || fail "install takes a Python version and an extra" 2
  python3 -m pip --version >/dev/null || fail "python3 has no pip; install it with: sudo apt-get install python3-pip"
  # Newer images let pip install only where told so; --user leaves the system as it is.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  [[ -x .venv/bin/python ]] || python3 -m uv venv --quiet --python "$1" .venv
  python3 -m uv pip install --quiet --python .venv/bin/python --editable ".[$2]"
}

# A run is three files: .run/process (machine start and process number), .run/log, and .run/code once it has ended.
state() {
  local started process
  if [[ -f .run/code ]]; then
    printf 'ended %s' "$(cat .run/code)"
  elif [[ ! -f .run/process ]]; then
    printf 'none'
  else
    read -r started process <.run/process
    # After a restart of the machine the same number may belong to another process.
    if [[ "$started" == "$boot" ]] && kill -0 "$process" 2>/dev/null; then printf 'running'; else printf 'lost'; fi
  fi
}

start() {
  [[ "$(state)" != running ]] || fail "a run is still going on; see logs, or stop it first"
  [[ -x .venv/bin/flaxbert ]] || fail "flaxbert is not installed here; run the install action first"
  rm -f .run/process .run/code
  mkdir -p .run
  # Its own session, so that it outlives the ssh connection.
  setsid bash "$self" hold "$@" </dev/null >>.run/log 2>&1 &
  for _ in {1..600}; do
    [[ ! -f .run/process ]] || return 0
    sleep 0.1
  done
  fail "the run did not start within a minute; see .run/log"
}

# Stays beside the run and writes down how it ended.
hold() {
  local settings=() process code=0
  while (($#)) && [[ "$1" != -- ]]; do
    settings+=("$1")
    shift
  done
  shift
  printf '%s flaxbert %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"
  # FLAXBERT_JOIN: the workers of a TPU VM know each other from its metadata server, not from variables.
  env FLAXBERT_JOIN=1 "${settings[@]}" .venv/bin/flaxbert "$@" &
  process=$!
  printf '%s %s\n' "$boot" "$process" >.run/process.new
  mv .run/process.new .run/process
  wait "$process" || code=$?
  printf '%s flaxbert ended with exit code %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$code"
  printf '%s\n' "$code" >.run/code.new
  mv .run/code.new .run/code
}

logs() {
  [[ -f .run/log ]] || fail "nothing was run here yet"
  if [[ "${1:-}" == --follow ]]; then exec tail -n +1 -F .run/log; fi
  cat .run/log
}

stop() {
  local process
  [[ "$(state)" == running ]] || return 0
  read -r _ process <.run/process
  kill -TERM "$process"
}

case "${1:-}" in
  install | start | hold | logs | stop) "$1" "${@:2}" ;;
  state) printf 'flaxbert-run %s %s\n' "$(uname -n)" "$(state)" ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
