#!/usr/bin/env bash
# The batch script that slurm.sh submits: one process per node, and the job back into the queue when it can go on.
# Arguments: the most restarts, and the command. Slurm runs a copy of this file, so it sources nothing.
set -euo pipefail

job_state() { squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true; }
log() { printf '%s slurm_job.sh: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1"; }

max_restarts="$1"
shift
restarts="${SLURM_RESTART_COUNT:-0}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# JAX gives each process of a Slurm job one GPU, that of its local number. With one process a node it is to have all.
if [[ -z "${JAX_LOCAL_DEVICE_IDS:-}" && "${SLURM_GPUS_ON_NODE:-}" =~ ^[1-9][0-9]*$ ]]; then
  JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))"
  export JAX_LOCAL_DEVICE_IDS
fi

flags=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
# srun no longer takes this from sbatch (since Slurm 22.05), and would bind each process to one core.
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || flags+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

log "job $SLURM_JOB_ID on $SLURM_JOB_NUM_NODES node(s), restart $restarts: $*"
mkfifo "$scratch/errors"
tee "$scratch/messages" <"$scratch/errors" >&2 &
reader=$!
# The command is no child of a shell here: Slurm may signal only the process that srun starts.
srun "${flags[@]}" --cpu-bind=none --kill-on-bad-exit=1 --label "$@" 2>"$scratch/errors" &
step=$!
# Slurm signals only this shell (--signal=B:TERM@...). srun must not get the signal: it would kill the processes at once.
# scancel --signal reaches them, and not this shell. Of a cancelled job Slurm has signalled all, and a second signal would
# keep flaxbert from saving.
ask_to_save() {
  log "asked to stop; the run saves its state"
  if [[ "$(job_state)" == RUNNING ]]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi
}
trap ask_to_save TERM
code=0
wait "$step" || code=$?
# A trapped signal ends `wait` early; the run itself is still saving.
while kill -0 "$step" 2>/dev/null; do
  code=0
  wait "$step" || code=$?
done
trap '' TERM
wait "$reader" || true

# 75: flaxbert hung; 143: it was asked to stop and has saved; from 128 on it was killed. Other codes are its errors. srun
# returns the largest code, and processes that lost their peer have larger ones than the peer with the error.
while read -r own; do
  if ((own != 75 && own < 128)); then code="$own"; fi
done < <(sed -n 's/^srun: error: .*: Exited with exit code \([0-9][0-9]*\)$/\1/p' "$scratch/messages")
log "the run ended with exit code $code"

if ((code != 75 && code < 128)); then exit "$code"; fi
if ((restarts >= max_restarts)); then
  log "not queued again after $restarts restarts; submit it again with a larger --max-restarts"
  exit "$code"
fi
# A job that somebody cancelled is no longer running and must stay cancelled. A preempted one is queued again by Slurm itself.
state="$(job_state)"
if [[ "$state" != RUNNING ]]; then
  log "the job is ${state:-gone}; it is not queued again here"
  exit "$code"
fi
# slurm.sh stop takes the leave to be queued again away.
if scontrol requeue "$SLURM_JOB_ID"; then
  log "queued again"
else
  log "Slurm does not queue the job again; what is saved stays"
  exit "$code"
fi
