#!/usr/bin/env bash
# Runs `flaxbert finetune` on every worker of a Cloud TPU VM. See README.md beside this file.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tpu_scripts/finetune.sh --name TPU --zone ZONE [--project PROJECT] [--folder FOLDER] [--dry-run] -- OPTIONS...

  --name TPU         name of the TPU VM
  --zone ZONE        its zone, for example us-east5-a
  --project PROJECT  Google Cloud project (default: that of gcloud)
  --folder FOLDER    folder on the workers, below the home folder (default: flaxbert)
  --dry-run          print the commands instead of running them
  OPTIONS            what `flaxbert finetune` gets on every worker, for example --config configs/sst2.yaml

Copies the last commit of this repository to every worker, installs it there with the tpu extra, and starts the same
command on all of them at once; JAX finds the other workers by itself.
END
}

fail() {
  printf 'finetune.sh: %s\n' "$1" >&2
  usage >&2
  exit 2
}

name="" zone="" project="" folder="flaxbert" dry_run=false
while (($#)); do
  case "$1" in
    --name | --zone | --project | --folder)
      (($# >= 2)) || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1" ;;
  esac
done
[[ -n "$name" ]] || fail "--name is missing"
[[ -n "$zone" ]] || fail "--zone is missing"
[[ "$folder" =~ ^[A-Za-z0-9._/-]+$ && "$folder" != /* ]] || fail "--folder must be a plain relative path, not '$folder'"
(($#)) || fail "the options of flaxbert finetune are missing after --"

where=("$name" --zone "$zone" --worker=all)
[[ -z "$project" ]] || where+=(--project "$project")

run() {
  if "$dry_run"; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "${where[@]}" --command "$1"
}

archive="$(mktemp -d)/flaxbert.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz --output "$archive" HEAD

run gcloud compute tpus tpu-vm scp "$archive" "${where[0]}:flaxbert.tar.gz" "${where[@]:1}"
on_workers "mkdir -p $folder && tar -xzf flaxbert.tar.gz -C $folder && cd $folder && python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
printf -v options '%q ' "$@"
on_workers "cd $folder && .venv/bin/flaxbert finetune ${options% }"
