# What tpu_vm.sh and queued_resource.sh share: a pod's workers over ssh, a run on them, and its life through preemptions.
# Sourced, never run.
# shellcheck shell=bash
# A script that sources this defines `create_pod` and sets the variables below.

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
option[folder]=flaxbert
option[zone]="${CLOUDSDK_COMPUTE_ZONE:-}"
# shellcheck disable=SC2034 # the options that say which pod; read by the scripts
WHERE="name zone project folder"
# shellcheck disable=SC2034 # those that say which kind of pod
CREATION="type software network subnetwork service-account timeout-seconds poll-seconds"

kind=()           # the words after gcloud
every_worker=()   # the flags of ssh and scp that name all workers
one_worker=()     # and those for one of them
delete_flags=()   # what delete takes beside the name
state_field=""    # where `describe` keeps the state
ready=""          # the states in which workers answer
gone=""           # those after a preemption: delete it and create it again
stopped=""        # those that somebody else has to mend
software=""       # the image, and
creation_flags=() # the other flags of `create`, both set by check_creation
run_now=""        # what bring_up found the workers doing

check_where() {
  require_name name
  require zone
  require_form zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-east5-a"
  require_form folder '[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*' "a plain relative path"
  require_form python '[0-9]+[.][0-9]+' "a Python version such as 3.11"
  require_numbers poll-seconds timeout-seconds max-restarts
  place=(--zone "${option[zone]}")
  [[ -z "${option[project]:-}" ]] || place+=(--project "${option[project]}")
}

# The image that Google names for each generation of TPUs.
software_of() {
  case "$1" in
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v[234]-*) printf 'tpu-ubuntu2204-base' ;;
  esac
}

# check_creation SWITCHES: what `create` needs, and the flags of gcloud for it.
check_creation() {
  local name
  require type
  require_form type 'v[0-9]+[a-z]*-[0-9]+' "an accelerator type such as v5litepod-16"
  software="${option[software]:-$(software_of "${option[type]}")}"
  [[ -n "$software" ]] || wrong "no TPU software is known for --type ${option[type]}; name it with --software"
  for name in network subnetwork service-account; do
    [[ -z "${option[$name]:-}" ]] || creation_flags+=("--$name" "${option[$name]}")
  done
  for name in $1; do
    [[ -z "${option[$name]:-}" ]] || creation_flags+=("--$name")
  done
}

# pod VERB ARGUMENTS...: one gcloud command about this pod.
pod() { run gcloud "${kind[@]}" "$1" "${option[name]}" "${place[@]}" "${@:2}"; }

on_workers() { pod ssh "${every_worker[@]}" --command "$1"; }

worker_script() { printf '%s/tpu_scripts/worker.sh %s' "${option[folder]}" "$(quote "$@")"; }

pod_state() { state_of gcloud "${kind[@]}" describe "${option[name]}" "${place[@]}" --format "value($state_field)"; }

wait_until_ready() { wait_for "${option[name]}" "$ready" "$gone $stopped ABSENT" pod_state; }

delete_pod() { pod delete --quiet "${delete_flags[@]}"; }

remind_of_costs() {
  is_dry_run || say "${option[name]} costs money until you run: tpu_scripts/$script delete --name ${option[name]} --zone ${option[zone]}"
}

install_on_workers() {
  local archive="$scratch/flaxbert.tar.gz" folder="${option[folder]}"
  git -C "$repository" rev-parse --quiet --verify HEAD >"$scratch/head" 2>&1 ||
    fail "$repository is no git checkout with a commit; install copies the last commit to the workers"
  [[ -z "$(git -C "$repository" status --porcelain --untracked-files=no)" ]] ||
    say "the working tree has changes that are not committed; they do not travel"
  run git -C "$repository" archive --format=tar.gz --output "$archive" HEAD &&
    run gcloud "${kind[@]}" scp "$archive" "${option[name]}:flaxbert.tar.gz" "${place[@]}" "${every_worker[@]}" &&
    on_workers "mkdir -p $folder && rm -rf $folder/flaxbert $folder/tpu_scripts && tar -xzf flaxbert.tar.gz -C $folder && $(worker_script install "${option[python]:-3.11}" tpu)"
}

start_run() { on_workers "$(worker_script start "${environment[@]}" -- "${command_words[@]}")"; }

# Prints one word or two: running, finished, restart CODE, failed CODES, none, or unknown where the workers do not answer.
run_outcome() {
  local answer codes code restart="" failed=""
  answer="$(on_workers "$(worker_script state)")" || { printf 'unknown' && return; }
  if is_dry_run; then
    printf 'finished'
  elif grep -q '^flaxbert-run [^ ]* running' <<<"$answer"; then
    printf 'running'
  elif ! grep -q '^flaxbert-run ' <<<"$answer"; then
    printf 'unknown'
  elif grep -q '^flaxbert-run [^ ]* none' <<<"$answer"; then
    printf 'none'
  elif grep -q '^flaxbert-run [^ ]* lost' <<<"$answer"; then
    printf 'restart lost'
  else
    codes="$(sed -n 's/^flaxbert-run [^ ]* ended //p' <<<"$answer" | sort -nu)"
    # An error of one worker also ends the others; it is the one to tell.
    for code in $codes; do
      if is_restart "$code"; then restart="$code"; elif ((code)); then failed+=" $code"; fi
    done
    if [[ -n "$failed" ]]; then printf 'failed%s' "$failed"; else printf '%s' "${restart:+restart }${restart:-finished}"; fi
  fi
}

# Waits until the run has ended on all workers. Returns 0 when it finished, 143 when it or its machine was stopped and it
# can go on from its checkpoint, else the smallest of the workers' exit codes.
wait_for_run() {
  local outcome state code before="" silent=0
  while true; do
    outcome="$(run_outcome)"
    [[ "$outcome" == "$before" ]] || is_dry_run || say "the run: $outcome"
    before="$outcome"
    case "$outcome" in
      finished) return 0 ;;
      restart*) return 143 ;;
      failed*)
        read -r _ code _ <<<"$outcome"
        say "the run ended with exit code $code; see: tpu_scripts/$script logs --name ${option[name]} --zone ${option[zone]}"
        return "$code"
        ;;
      none) fail "nothing was started on at least one worker; use the run action" ;;
      running) silent=0 ;;
      unknown)
        silent=$((silent + 1))
        state="$(pod_state)" || state=""
        if contains "$gone $stopped ABSENT" "$state"; then
          say "${option[name]} is $state"
          return 143
        fi
        ((silent < 10)) || fail "the workers did not answer ten times in a row, though ${option[name]} is ${state:-in an unknown state}"
        ;;
    esac
    sleep "${option[poll-seconds]}"
  done
}

# A machine that is ready may still take a minute until ssh answers.
wait_for_workers() {
  local attempt
  for attempt in {1..10}; do
    if on_workers true; then return 0; fi
    say "the workers do not answer yet (attempt $attempt of 10)"
    sleep "${option[poll-seconds]}"
  done
  fail "the workers of ${option[name]} do not answer over ssh; see the messages above"
}

# Makes the pod ready, creating it anew where it was preempted, with flaxbert on it. Sets `run_now`. Returns 1 where the
# pod was lost on the way.
bring_up() {
  local state
  state="$(pod_state)" || fail "the state of ${option[name]} could not be read"
  if [[ "$state" != DELETING ]] && contains "$stopped" "$state"; then
    fail "${option[name]} is $state and does not come back by itself; start it with gcloud, or delete it and resume again"
  fi
  if contains "$gone" "$state"; then
    say "${option[name]} is $state; it is deleted and created again"
    delete_pod || fail "${option[name]} could not be deleted; see the messages above"
    state=ABSENT
  fi
  if [[ "$state" == ABSENT ]] && ! create_pod; then
    (($1)) || fail "${option[name]} could not be created; see the messages above"
    say "${option[name]} could not be created again; the next attempt follows"
    sleep $((4 * option[poll-seconds]))
    return 1
  fi
  wait_until_ready || return 1
  run_now="$(run_outcome)"
  if [[ "$run_now" == unknown ]]; then
    wait_for_workers
    install_on_workers || fail "flaxbert could not be installed on the workers; see the messages above"
    run_now="$(run_outcome)"
  fi
}

# Runs until the command has finished, through preemptions; flaxbert goes on from its newest checkpoint.
resume() {
  local limit="${option[max-restarts]:-20}" restarts=0 code
  while true; do
    code=0
    if bring_up "$restarts"; then
      if [[ "$run_now" != running ]]; then start_run || fail "the run could not be started; see the messages above"; fi
      wait_for_run || code=$?
      ((code)) || return 0
      is_restart "$code" || return "$code"
    fi
    ((restarts < limit)) || fail "given up after $limit restarts; raise --max-restarts to go on"
    restarts=$((restarts + 1))
    say "restart $restarts of at most $limit"
    sleep "${option[poll-seconds]}"
  done
}

# pod_action ACTION: the actions that both scripts share.
pod_action() {
  local state
  case "$1" in
    state)
      state="$(pod_state)"
      is_dry_run || printf '%s %s\n' "${option[name]}" "$state"
      if is_dry_run || contains "$ready" "$state"; then on_workers "$(worker_script state)"; fi
      ;;
    wait) wait_for_run ;;
    install) install_on_workers ;;
    run)
      start_run
      is_dry_run || say "started; follow it with: tpu_scripts/$script logs --name ${option[name]} --zone ${option[zone]} --follow"
      ;;
    logs) pod ssh "${one_worker[@]}" --command "$(worker_script logs ${option[follow]:+--follow})" ;;
    stop) on_workers "$(worker_script stop)" ;;
    resume)
      resume
      remind_of_costs
      ;;
    delete) delete_pod ;;
  esac
}
