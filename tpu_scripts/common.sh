# What the scripts of this folder share: messages, arguments, dry runs, waiting. Sourced, never run.
# shellcheck shell=bash
# A script that sources this defines `usage` and may read `option`, `environment`, `command_words` and `scratch`.

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "these scripts need bash 4.4 or newer, not $BASH_VERSION (macOS: brew install bash)" >&2
  exit 1
fi

script="${0##*/}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# What a dry run prints goes to the script's own output, even from inside $(...).
exec 3>&1 4>&2

declare -A option=([poll-seconds]=15)
environment=()
command_words=()

# is_restart CODE: whether a run that ended so goes on when it is started again. flaxbert returns 143 when it was asked to
# stop and has saved, 75 when it hung; from 128 on a process was killed, as JAX does when a peer is lost.
is_restart() { (($1 == 75 || $1 >= 128)); }

say() { printf '%s: %s\n' "$script" "$1" >&4; }

fail() {
  say "$1"
  exit 1
}

# For wrong arguments; the message says what is wrong, the last line where to read on.
wrong() {
  say "$1"
  printf 'Run %s --help for all actions and options.\n' "$script" >&4
  exit 2
}

contains() { [[ -n "$2" && " $1 " == *" $2 "* ]]; }

# parse_options VALUES SWITCHES ARGUMENTS...: fills `option`; what follows -- becomes `command_words`.
parse_options() {
  local values="$1" switches="$2 dry-run" name
  shift 2
  while (($#)); do
    name="${1#--}"
    case "$1" in
      --)
        command_words=("${@:2}")
        return
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      --*=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        contains "$values" "${1#--}" || wrong "$1 is not an option with a value here; those are:$(list_options "$values")"
        ;;
      --*)
        if contains "$switches" "$name"; then
          option["$name"]=true
          shift
          continue
        fi
        contains "$values" "$name" || wrong "unknown argument $1; there are:$(list_options "$values $switches")"
        ;;
      *) wrong "unexpected argument '$1'; a flaxbert command stands after --" ;;
    esac
    take_value "$@"
    shift 2
  done
}

take_value() {
  (($# >= 2)) && [[ "$2" != --* ]] || wrong "$1 needs a value"
  if [[ "$1" == --env ]]; then
    [[ "$2" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || wrong "--env takes NAME=VALUE, not '$2'"
    environment+=("$2")
  else
    option["${1#--}"]="$2"
  fi
}

list_options() {
  local name
  for name in $1; do printf ' --%s' "$name"; done
}

require() {
  local name
  for name in "$@"; do [[ -n "${option[$name]:-}" ]] || wrong "--$name is missing"; done
}

# require_form NAME PATTERN MEANING: an option that was given must match the whole pattern.
require_form() {
  [[ -z "${option[$1]:-}" || "${option[$1]}" =~ ^($2)$ ]] || wrong "--$1 must be $3, not '${option[$1]}'"
}

require_numbers() {
  local name
  for name in "$@"; do require_form "$name" '[0-9]+' "a whole number"; done
}

# Words of the cloud's names: they end up in labels, host names and paths.
require_name() {
  require "$1"
  require_form "$1" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "at most 40 lower-case letters, digits and dashes that start with a letter"
}

require_command() {
  ((${#command_words[@]})) || wrong "the flaxbert command is missing after --, for example -- pretrain --config configs/pretrain_bert_small.yaml"
  [[ "${command_words[0]}" =~ ^[a-z]+$ ]] ||
    wrong "after -- comes a flaxbert command such as pretrain or finetune, not '${command_words[0]}'"
}

refuse_command() { ((${#command_words[@]} == 0)) || wrong "this action takes no flaxbert command"; }

is_dry_run() { [[ "${option[dry-run]:-}" == true ]]; }

# Words as one line that a shell reads back as the same words.
quote() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Every command of these scripts goes through here: a dry run prints it, a real run says and runs it.
run() {
  if is_dry_run; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    printf '+ %s\n' "$(quote "$@")" >&4
    "$@"
  fi
}

# state_of QUERY...: prints a resource's state, ABSENT where the cloud knows no such resource.
state_of() {
  local answer
  if answer="$(run "$@" 2>"$scratch/errors")"; then
    printf '%s' "$answer"
  elif grep -qiE 'NOT_FOUND|not found' "$scratch/errors"; then
    printf 'ABSENT'
  else
    cat "$scratch/errors" >&4
    return 1
  fi
}

# wait_for WHAT GOOD BAD QUERY...: asks until the state is one of the words GOOD. Returns 1 for a state of BAD; gives up
# after --timeout-seconds (0: never) or ten failed questions in a row. A dry run asks once.
wait_for() {
  local what="$1" good="$2" bad="$3" state before="" failures=0 start=$SECONDS limit="${option[timeout-seconds]:-0}"
  shift 3
  while true; do
    if state="$("$@")"; then failures=0; else failures=$((failures + 1)); fi
    if is_dry_run; then return 0; fi
    ((failures < 10)) || fail "the state of $what could not be read ten times in a row; see the messages above"
    if ((failures == 0)); then
      [[ "$state" == "$before" ]] || say "$what is ${state:-in no state yet}"
      before="$state"
      if contains "$good" "$state"; then return 0; fi
      if contains "$bad" "$state"; then return 1; fi
    fi
    ((limit == 0 || SECONDS - start < limit)) ||
      fail "$what is still ${before:-without a state} after $limit seconds; raise --timeout-seconds, or delete it so that it costs nothing"
    sleep "${option[poll-seconds]}"
  done
}
