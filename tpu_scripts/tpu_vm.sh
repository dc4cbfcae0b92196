#!/usr/bin/env bash
# A Cloud TPU VM or pod, from its creation to its deletion, and flaxbert on all of its workers. See README.md.
# shellcheck source=pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

usage() {
  cat <<'END'
Usage: tpu_scripts/tpu_vm.sh ACTION --name TPU --zone ZONE [OPTIONS] [-- COMMAND OPTIONS...]

Actions
  create    creates the TPU VM and waits until it is ready
  install   copies the last commit of this repository to every worker and installs it there with the tpu extra
  run       starts `flaxbert COMMAND OPTIONS...` in the background on every worker
  wait      waits for its end; exit code 0: finished, 143: stopped with its state saved, else that of the run
  resume    all of the above where needed, again after every preemption, until the command has finished
  logs      prints what the run wrote
  state     prints the state of the TPU VM and of the run on each worker
  stop      asks the run to save and end; the TPU VM stays
  delete    deletes the TPU VM; until then it costs money

Where
  --name TPU               name of the TPU VM
  --zone ZONE              its zone, for example us-east5-a (default: CLOUDSDK_COMPUTE_ZONE)
  --project PROJECT        Google Cloud project (default: that of gcloud)
  --folder FOLDER          folder on the workers, below the home folder (default: flaxbert)
create, resume
  --type TYPE              accelerator type, for example v5litepod-16, v5p-128, v6e-256
  --software VERSION       software of the TPU VM (default: the one that belongs to the type)
  --spot                   cheaper; may be taken away at any time
  --network NETWORK, --subnetwork SUBNETWORK, --internal-ips, --service-account ACCOUNT
                           as gcloud takes them
  --timeout-seconds N      how long to wait for READY (default: 1800)
install, resume
  --python VERSION         Python on the workers (default: 3.11)
run, resume
  --env NAME=VALUE         a variable of the run's environment; can be repeated
  --max-restarts N         resume: how often at most (default: 20)
logs
  --worker N               which worker, or all (default: 0)
  --follow                 goes on until you interrupt it
all
  --poll-seconds N         seconds between two questions about a state (default: 15)
  --dry-run                prints every command that would run, and runs none
END
}

kind=(compute tpus tpu-vm)
every_worker=(--worker=all)
state_field=state
ready="READY"
gone="PREEMPTED TERMINATED"
stopped="STOPPING STOPPED DELETING HIDING HIDDEN UNKNOWN"

create_pod() {
  option[timeout-seconds]="${option[timeout-seconds]:-1800}"
  pod create --accelerator-type "${option[type]}" --version "$software" "${creation_flags[@]}"
}

action="${1:-}"
(($# == 0)) || shift
case "$action" in
  create) parse_options "$WHERE $CREATION" "spot internal-ips" "$@" ;;
  install) parse_options "$WHERE python" "" "$@" ;;
  run) parse_options "$WHERE env" "" "$@" ;;
  wait) parse_options "$WHERE poll-seconds" "" "$@" ;;
  resume) parse_options "$WHERE $CREATION python env max-restarts" "spot internal-ips" "$@" ;;
  logs) parse_options "$WHERE worker" "follow" "$@" ;;
  state | stop | delete) parse_options "$WHERE" "" "$@" ;;
  -h | --help) usage && exit 0 ;;
  *) wrong "the first argument must be an action, not '$action'; actions are: create, install, run, wait, resume, logs, state, stop, delete" ;;
esac
check_where
require_form worker '[0-9]+|all' "a number or all"
one_worker=(--worker="${option[worker]:-0}")
case "$action" in run | resume) require_command ;; *) refuse_command ;; esac
case "$action" in create | resume) check_creation "spot internal-ips" ;; esac

case "$action" in
  create)
    create_pod
    wait_until_ready || fail "${option[name]} was not created; look at it with the state action, and delete it"
    remind_of_costs
    ;;
  *) pod_action "$action" ;;
esac
