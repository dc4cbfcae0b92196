#!/usr/bin/env bash
# TPU VMs through Google's queue: asked for now, given when there are some; one or several slices. See README.md.
# shellcheck source=pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

usage() {
  cat <<'END'
Usage: tpu_scripts/queued_resource.sh ACTION --name NAME --zone ZONE [OPTIONS] [-- COMMAND OPTIONS...]

Actions
  create    asks for the TPUs and returns; nothing is paid before they are given
  await     waits until they are given (ACTIVE)
  install   copies the last commit of this repository to every worker and installs it there with the tpu extra
  run       starts `flaxbert COMMAND OPTIONS...` in the background on every worker of every slice
  wait      waits for its end; exit code 0: finished, 143: stopped with its state saved, else that of the run
  resume    all of the above where needed, again after every preemption, until the command has finished
  logs      prints what the run wrote
  state     prints the state of the request and of the run on each worker
  stop      asks the run to save and end; the TPUs stay
  delete    deletes the request and its TPUs; until then they cost money

Where
  --name NAME              name of the request, and of its TPU VMs
  --zone ZONE              its zone, for example us-east5-a (default: CLOUDSDK_COMPUTE_ZONE)
  --project PROJECT        Google Cloud project (default: that of gcloud)
  --folder FOLDER          folder on the workers, below the home folder (default: flaxbert)
create, resume
  --type TYPE              accelerator type of one slice, for example v5litepod-16, v5p-128, v6e-256
  --slices N               slices that train together (default: 1)
  --software VERSION       software of the TPU VMs (default: the one that belongs to the type)
  --spot | --reserved | --guaranteed
                           how the TPUs are paid for; spot is cheaper and may be taken away at any time
  --valid-until DURATION   give up when nothing was given by then, for example 6h
  --network NETWORK, --subnetwork SUBNETWORK, --internal-ips, --service-account ACCOUNT
                           as gcloud takes them
await, resume
  --timeout-seconds N      how long to wait for ACTIVE (default: 0, without end)
install, resume
  --python VERSION         Python on the workers (default: 3.11)
run, resume
  --env NAME=VALUE         a variable of the run's environment; can be repeated
  --max-restarts N         resume: how often at most (default: 20)
logs
  --slice N, --worker N    which one, or all (default: 0)
  --follow                 goes on until you interrupt it
all
  --poll-seconds N         seconds between two questions about a state (default: 15)
  --dry-run                prints every command that would run, and runs none
END
}

kind=(compute tpus queued-resources)
every_worker=(--node=all --worker=all)
state_field=state.state
ready="ACTIVE"
gone="FAILED SUSPENDED"
stopped="DELETING"
# Without --force only requests without TPUs can be deleted.
delete_flags=(--force)

create_pod() {
  local slices="${option[slices]:-1}" nodes
  if ((slices > 1)); then
    nodes=(--node-count "$slices" --node-prefix "${option[name]}")
  else
    nodes=(--node-id "${option[name]}")
  fi
  pod create "${nodes[@]}" --accelerator-type "${option[type]}" --runtime-version "$software" "${creation_flags[@]}"
}

check_request() {
  local name how=0
  for name in spot reserved guaranteed; do [[ -z "${option[$name]:-}" ]] || how=$((how + 1)); done
  ((how <= 1)) || wrong "only one of --spot, --reserved and --guaranteed can be given"
  require_form slices '[1-9][0-9]*' "a whole number from 1 on"
  require_form valid-until '[0-9]+[smhd]' "a duration such as 6h"
  check_creation "spot reserved guaranteed internal-ips"
  [[ -z "${option[valid-until]:-}" ]] || creation_flags+=(--valid-until-duration "${option[valid-until]}")
}

action="${1:-}"
(($# == 0)) || shift
switches="spot reserved guaranteed internal-ips"
case "$action" in
  create) parse_options "$WHERE $CREATION slices valid-until" "$switches" "$@" ;;
  await) parse_options "$WHERE poll-seconds timeout-seconds" "" "$@" ;;
  install) parse_options "$WHERE python" "" "$@" ;;
  run) parse_options "$WHERE env" "" "$@" ;;
  wait) parse_options "$WHERE poll-seconds" "" "$@" ;;
  resume) parse_options "$WHERE $CREATION slices valid-until python env max-restarts" "$switches" "$@" ;;
  logs) parse_options "$WHERE slice worker" "follow" "$@" ;;
  state | stop | delete) parse_options "$WHERE" "" "$@" ;;
  -h | --help) usage && exit 0 ;;
  *) wrong "the first argument must be an action, not '$action'; actions are: create, await, install, run, wait, resume, logs, state, stop, delete" ;;
esac
check_where
require_form worker '[0-9]+|all' "a number or all"
require_form slice '[0-9]+|all' "a number or all"
one_worker=(--node="${option[slice]:-0}" --worker="${option[worker]:-0}")
case "$action" in run | resume) require_command ;; *) refuse_command ;; esac
case "$action" in create | resume) check_request ;; esac

case "$action" in
  create)
    create_pod
    remind_of_costs
    ;;
  await)
    wait_until_ready || fail "nothing was given to ${option[name]}; look at it with the state action, and delete it"
    remind_of_costs
    ;;
  *) pod_action "$action" ;;
esac
