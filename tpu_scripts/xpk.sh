#!/usr/bin/env bash
# flaxbert as a workload of a cluster that XPK made. See README.md.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Usage: tpu_scripts/xpk.sh ACTION --name NAME --cluster CLUSTER [OPTIONS] [-- COMMAND OPTIONS...]

Actions
  create    starts `flaxbert COMMAND OPTIONS...` as a workload; it starts again after preemptions
  wait      waits for its end
  state     prints what XPK says of it
  logs      prints what its first pod wrote, or all of them (through kubectl)
  delete    deletes the workload; the cluster stays and costs money: xpk cluster delete

Where
  --name NAME              name of the workload
  --cluster CLUSTER        the cluster (not for logs, which go where kubectl points)
  --project PROJECT, --zone ZONE
                           as xpk takes them (default: those of gcloud)
create
  --image IMAGE            image made from tpu_scripts/docker/Dockerfile (target tpu), in a registry of the cluster
  --type TYPE              TPU type of one slice, for example v5litepod-16, v6e-256
  --slices N               slices that train together (default: 1)
  --max-restarts N         restarts of the whole workload (default: 20)
  --grace-seconds N        time for saving after SIGTERM (default: 120)
  --priority PRIORITY      very-low, low, medium, high or very-high (default: medium)
  --storage NAME           storage of the cluster to mount
  --env NAME=VALUE         a variable of the run's environment; can be repeated
wait
  --timeout-seconds N      how long to wait
logs
  --all                    of all pods
  --follow                 goes on until you interrupt it
all
  --dry-run                prints every command that would run, and runs none
END
}

# XPK starts a workload again after exit code 42 and those from 127 on; flaxbert returns 75 when it hung.
# With exec the signal that XPK hands on reaches flaxbert itself and not a shell around it.
create() {
  local flags setting
  flags=(
    --docker-image "${option[image]}"
    --tpu-type "${option[type]}"
    --num-slices "${option[slices]:-1}"
    --max-restarts "${option[max-restarts]:-20}"
    --termination-grace-period-seconds "${option[grace-seconds]:-120}"
    --priority "${option[priority]:-medium}"
    --restart-on-exit-codes 75
    --env FLAXBERT_JOIN=1
  )
  for setting in "${environment[@]}"; do flags+=(--env "$setting"); done
  [[ -z "${option[storage]:-}" ]] || flags+=(--storage "${option[storage]}")
  run xpk workload create --workload "${option[name]}" "${where[@]}" "${flags[@]}" --command "exec $(quote flaxbert "${command_words[@]}")"
}

action="${1:-}"
(($# == 0)) || shift
WHERE="name cluster project zone"
case "$action" in
  create) parse_options "$WHERE image type slices max-restarts grace-seconds priority storage env" "" "$@" ;;
  wait) parse_options "$WHERE timeout-seconds" "" "$@" ;;
  state | delete) parse_options "$WHERE" "" "$@" ;;
  logs) parse_options "name" "all follow" "$@" ;;
  -h | --help) usage && exit 0 ;;
  *) wrong "the first argument must be an action, not '$action'; actions are: create, wait, state, logs, delete" ;;
esac
require_name name
require_numbers timeout-seconds max-restarts grace-seconds
where=()
if [[ "$action" != logs ]]; then
  require_name cluster
  for flag in cluster project zone; do
    [[ -z "${option[$flag]:-}" ]] || where+=("--$flag" "${option[$flag]}")
  done
fi
if [[ "$action" == create ]]; then
  require image type
  require_form image '[A-Za-z0-9./:@_-]+' "the name of an image"
  require_form type '[a-z0-9][a-z0-9x-]*' "a TPU type such as v5litepod-16"
  require_form slices '[1-9][0-9]*' "a whole number from 1 on"
  require_form priority 'very-low|low|medium|high|very-high' "very-low, low, medium, high or very-high"
  require_command
else
  refuse_command
fi

case "$action" in
  create) create ;;
  wait)
    limit=()
    [[ -z "${option[timeout-seconds]:-}" ]] || limit=(--timeout "${option[timeout-seconds]}")
    run xpk workload list "${where[@]}" --wait-for-job-completion "${option[name]}" "${limit[@]}"
    ;;
  state) run xpk workload list "${where[@]}" --filter-by-job "${option[name]}" ;;
  logs)
    pods="jobset.sigs.k8s.io/jobset-name=${option[name]}"
    [[ -n "${option[all]:-}" ]] || pods+=",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    run kubectl logs --selector "$pods" --prefix --tail -1 --max-log-requests 1000 ${option[follow]:+--follow}
    ;;
  delete) run xpk workload delete --workload "${option[name]}" "${where[@]}" --force ;;
esac
