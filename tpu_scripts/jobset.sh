#!/usr/bin/env bash
# flaxbert as a JobSet on the TPU slices of a GKE cluster. See README.md.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Usage: tpu_scripts/jobset.sh ACTION --name NAME [OPTIONS] [-- COMMAND OPTIONS...]

Actions
  manifest  prints the JobSet that runs `flaxbert COMMAND OPTIONS...`
  apply     gives it to the cluster, which runs it, again after every failure or preemption
  wait      waits for its end; exit code 0: completed, 1: failed
  logs      prints what the first pod wrote, or all of them
  state     prints the JobSet and its pods
  delete    deletes the JobSet; nodes of a pool that does not scale down by itself go on costing money

manifest, apply
  --image IMAGE            image made from tpu_scripts/docker/Dockerfile (target tpu), in a registry of the cluster
  --accelerator NAME       v4, v5e, v5p or v6e
  --topology AxB[xC]       chips of one slice, for example 4x4 or 2x2x4
  --chips-per-node N       chips of one machine: 1, 4 or 8 (default: 4)
  --slices N               slices that train together (default: 1)
  --max-restarts N         restarts of the whole JobSet (default: 20)
  --grace-seconds N        time for saving after SIGTERM (default: 120)
  --claim NAME             persistent volume claim with data, models and output, mounted in every pod
  --mount-path PATH        where (default: /data)
  --service-account NAME   Kubernetes service account of the pods
  --queue NAME             local queue of Kueue
  --spot                   only spot nodes
  --run-as-root            runs as root, where the nodes give TPU devices to root alone
  --env NAME=VALUE         a variable of the run's environment; can be repeated
logs
  --all                    of all pods
  --follow                 goes on until you interrupt it
wait
  --poll-seconds N         seconds between two questions about the state (default: 15)
  --timeout-seconds N      how long to wait (default: 0, without end)
all
  --namespace NAMESPACE, --context CONTEXT
                           as kubectl takes them
  --dry-run                prints every command that would run, and runs none
END
}

# A string of JSON, which YAML reads too.
json() {
  local text="$1"
  [[ "$text" != *[$'\001'-$'\010\013\014\016'-$'\037']* ]] || wrong "control characters can not be written into a manifest: $(quote "$text")"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\r'/\\r}"
  text="${text//$'\t'/\\t}"
  # Kubernetes replaces $(NAME) by a variable; $$ stands for one dollar sign.
  printf '"%s"' "${text//\$/\$\$}"
}

json_list() {
  local word line=""
  for word in "$@"; do line+=", $(json "$word")"; done
  printf '[%s]' "${line#, }"
}

# Label of GKE for an accelerator, and the number of axes of its topologies.
accelerator_of() {
  case "$1" in
    v4) printf 'tpu-v4-podslice 3' ;;
    v5e) printf 'tpu-v5-lite-podslice 2' ;;
    v5p) printf 'tpu-v5p-slice 3' ;;
    v6e) printf 'tpu-v6e-slice 2' ;;
  esac
}

check_manifest() {
  local sizes size
  require image accelerator topology
  require_form image '[A-Za-z0-9./:@_-]+' "the name of an image"
  require_form accelerator 'v4|v5e|v5p|v6e' "v4, v5e, v5p or v6e"
  require_form topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}' "chips along each axis, such as 4x4 or 2x2x4"
  require_form chips-per-node '1|4|8' "1, 4 or 8"
  require_form slices '[1-9][0-9]*' "a whole number from 1 on"
  require_numbers max-restarts grace-seconds
  require_form claim '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' "the name of a claim"
  require_form queue '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' "the name of a queue"
  require_form service-account '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' "the name of a service account"
  require_form mount-path '/[A-Za-z0-9._/-]*' "an absolute path"
  read -r label axes <<<"$(accelerator_of "${option[accelerator]}")"
  read -ra sizes <<<"${option[topology]//x/ }"
  ((${#sizes[@]} == axes)) || wrong "a topology of ${option[accelerator]} has $axes axes, unlike ${option[topology]}"
  chips="${option[chips-per-node]:-4}"
  nodes=1
  for size in "${sizes[@]}"; do nodes=$((nodes * size)); done
  ((nodes % chips == 0)) || wrong "the $nodes chips of ${option[topology]} are no multiple of --chips-per-node $chips"
  nodes=$((nodes / chips))
  ((nodes > 1 || ${option[slices]:-1} == 1)) || wrong "GKE joins only slices of several machines; ${option[topology]} is a single one"
  require_command
  json_list "${command_words[@]}" "${environment[@]}" >"$scratch/checked"
}

# line TEXT OPTION: a line of the manifest, only where the option was given.
line() { [[ -z "${option[$2]:-}" ]] || printf '%s\n' "$1"; }

container() {
  local setting
  cat <<END
              containers:
                - name: flaxbert
                  image: ${option[image]}
                  command: $(json_list flaxbert "${command_words[@]}")
                  env:
                    - {name: FLAXBERT_JOIN, value: "1"}
END
  for setting in "${environment[@]}"; do
    printf '                    - {name: %s, value: %s}\n' "${setting%%=*}" "$(json "${setting#*=}")"
  done
  cat <<END
                  ports: [{containerPort: 8471}, {containerPort: 8080}, {containerPort: 8482}]
                  resources:
                    limits:
                      google.com/tpu: $chips
END
  line "                  securityContext: {runAsUser: 0}" run-as-root
  cat <<END
                  volumeMounts:
                    - {name: shared-memory, mountPath: /dev/shm}
END
  line "                    - {name: shared-folder, mountPath: ${option[mount-path]:-/data}}" claim
  cat <<END
              volumes:
                - name: shared-memory
                  emptyDir: {medium: Memory}
END
  line "                - name: shared-folder" claim
  line "                  persistentVolumeClaim: {claimName: ${option[claim]:-}}" claim
}

# Errors that flaxbert explains (1), a wrong command (2) and a wrong image (126, 127) would only come back. Any other end
# starts the JobSet anew, from the checkpoint.
manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${option[name]}
END
  line "  labels: {kueue.x-k8s.io/queue-name: ${option[queue]:-}}" queue
  cat <<END
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${option[max-restarts]:-20}
    rules:
      - name: wouldComeBack
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: ${option[slices]:-1}
      template:
        spec:
          parallelism: $nodes
          completions: $nodes
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: flaxbert, operator: In, values: [1, 2, 126, 127]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${option[grace-seconds]:-120}
              securityContext: {fsGroup: 1000}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $label
                cloud.google.com/gke-tpu-topology: ${option[topology]}
END
  line '                cloud.google.com/gke-spot: "true"' spot
  line "              serviceAccountName: ${option[service-account]:-}" service-account
  container
}

kube() { run kubectl "$@" "${where[@]}"; }

# The manifest goes to kubectl's input; a dry run prints both, as one command that can be pasted.
apply() {
  manifest >"$scratch/manifest.yaml"
  if is_dry_run; then
    printf "kubectl %s <<'END'\n%s\nEND\n" "$(quote apply --filename - "${where[@]}")" "$(cat "$scratch/manifest.yaml")"
  else
    kube apply --filename - <"$scratch/manifest.yaml"
    say "follow it with: tpu_scripts/$script logs --name ${option[name]} --follow"
  fi
}

jobset_state() {
  state_of kubectl get jobset "${option[name]}" --output 'jsonpath={.status.terminalState}' "${where[@]}"
}

action="${1:-}"
(($# == 0)) || shift
WHERE="name namespace context"
POD="image accelerator topology chips-per-node slices max-restarts grace-seconds claim mount-path service-account queue env"
case "$action" in
  manifest | apply) parse_options "$WHERE $POD" "spot run-as-root" "$@" ;;
  wait) parse_options "$WHERE poll-seconds timeout-seconds" "" "$@" ;;
  logs) parse_options "$WHERE" "all follow" "$@" ;;
  state | delete) parse_options "$WHERE" "" "$@" ;;
  -h | --help) usage && exit 0 ;;
  *) wrong "the first argument must be an action, not '$action'; actions are: manifest, apply, wait, logs, state, delete" ;;
esac
require_name name
require_numbers poll-seconds timeout-seconds
where=()
for flag in context namespace; do
  [[ -z "${option[$flag]:-}" ]] || where+=("--$flag" "${option[$flag]}")
done
pods="jobset.sigs.k8s.io/jobset-name=${option[name]}"
[[ "$action" == manifest || "$action" == apply ]] || refuse_command

case "$action" in
  manifest)
    check_manifest
    manifest
    ;;
  apply)
    check_manifest
    apply
    ;;
  wait)
    wait_for "${option[name]}" Completed "Failed ABSENT" jobset_state ||
      fail "${option[name]} did not complete; see: tpu_scripts/$script logs --name ${option[name]}"
    ;;
  logs)
    [[ -n "${option[all]:-}" ]] || pods+=",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    kube logs --selector "$pods" --prefix --tail -1 --max-log-requests 1000 ${option[follow]:+--follow}
    ;;
  state)
    kube get jobset "${option[name]}" --output wide
    kube get pods --selector "$pods" --output wide
    ;;
  delete) kube delete jobset "${option[name]}" ;;
esac
