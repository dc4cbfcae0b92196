#!/usr/bin/env bash
# flaxbert on the GPU hosts of a Slurm cluster: one process per node, queued again until it has finished. See README.md.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Usage: tpu_scripts/slurm.sh submit --name NAME --nodes N --gpus N [OPTIONS] -- COMMAND OPTIONS...
       tpu_scripts/slurm.sh state|logs|stop|cancel --job ID [OPTIONS]

Actions
  submit    puts `flaxbert COMMAND OPTIONS...` into the queue and prints the number of the job
  state     prints what Slurm says of the job
  logs      prints what the job wrote
  stop      asks the run to save and end; it is not queued again
  cancel    ends the job at once; what was done since the newest checkpoint is lost

submit
  --name NAME             name of the job
  --nodes N               hosts
  --gpus N                GPUs of each host
  --time TIME             limit of one stay on the hosts, for example 1-00:00:00; the job is queued again until it is done
  --partition, --account, --qos, --constraint, --cpus, --memory
                          as sbatch takes them; --cpus and --memory are those of one host
  --notice-seconds N      time for saving before the limit (default: 120)
  --max-restarts N        how often the job is queued again at most (default: 20)
  --program PATH          flaxbert on the hosts (default: .venv/bin/flaxbert of this repository)
  --env NAME=VALUE        a variable of the run's environment; can be repeated
logs
  --follow                goes on until you interrupt it
submit, logs
  --log-folder FOLDER     where the output goes (default: runs/slurm)
all
  --dry-run               prints every command that would run, and runs none
END
}

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# The job has the same working folder, but its hosts may have another idea of a relative path.
log_folder() {
  local folder="${option[log-folder]:-runs/slurm}"
  [[ "$folder" == /* ]] || folder="$PWD/$folder"
  printf '%s' "$folder"
}

submit() {
  local program="${option[program]:-$repository/.venv/bin/flaxbert}" logs flags name
  logs="$(log_folder)"
  flags=(
    --parsable
    --job-name "${option[name]}"
    --nodes "${option[nodes]}"
    --ntasks-per-node 1
    --gpus-per-node "${option[gpus]}"
    --requeue
    --open-mode append
    --signal "B:TERM@${option[notice-seconds]:-120}"
    --output "$logs/%j.log"
  )
  for name in time partition account qos constraint; do
    [[ -z "${option[$name]:-}" ]] || flags+=("--$name" "${option[$name]}")
  done
  [[ -z "${option[cpus]:-}" ]] || flags+=(--cpus-per-task "${option[cpus]}")
  [[ -z "${option[memory]:-}" ]] || flags+=(--mem "${option[memory]}")
  is_dry_run || [[ -x "$program" ]] || fail "$program is no program; run make setup in the repository, or name flaxbert with --program"
  # Slurm does not make the folder, and a job without one fails in silence.
  run mkdir -p "$logs"
  run sbatch "${flags[@]}" "$repository/tpu_scripts/slurm_job.sh" "${option[max-restarts]:-20}" \
    env "${environment[@]}" "$program" "${command_words[@]}"
}

action="${1:-}"
(($# == 0)) || shift
case "$action" in
  submit)
    parse_options "name nodes gpus time partition account qos constraint cpus memory notice-seconds max-restarts program env log-folder" "" "$@"
    require_name name
    require nodes gpus
    require_form nodes '[1-9][0-9]*' "a whole number from 1 on"
    require_form gpus '[1-9][0-9]*' "a whole number from 1 on"
    require_form time '([0-9]+-)?[0-9]+(:[0-9]+){0,2}' "a time as sbatch takes it, such as 1-00:00:00 or 90 (minutes)"
    require_numbers cpus notice-seconds max-restarts
    require_command
    submit
    ;;
  state | logs | stop | cancel)
    case "$action" in logs) parse_options "job log-folder" "follow" "$@" ;; *) parse_options "job" "" "$@" ;; esac
    refuse_command
    require job
    require_form job '[0-9]+' "the number that submit printed"
    case "$action" in
      state) run squeue --jobs "${option[job]}" --states all --format "%i %j %T %M %D %R" ;;
      logs) run tail -n +1 ${option[follow]:+-F} "$(log_folder)/${option[job]}.log" ;;
      stop)
        run scontrol update "JobId=${option[job]}" Requeue=0
        # Only to the batch script, which hands it on in the right way.
        run scancel --batch --signal=TERM "${option[job]}"
        ;;
      cancel) run scancel "${option[job]}" ;;
    esac
    ;;
  -h | --help) usage ;;
  *) wrong "the first argument must be an action, not '$action'; actions are: submit, state, logs, stop, cancel" ;;
esac
