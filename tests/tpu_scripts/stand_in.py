"""Stands in for gcloud, kubectl, xpk and the programs of Slurm: checks the arguments, notes the call, plays back answers.

`cloud.Cloud` makes a small program of each name that calls `main`. Few modules are imported: it is started often. The folder ``STAND_IN_FOLDER`` holds ``answers.json`` (command to a list of answers, the
last of which repeats) and gets ``calls.jsonl``. An answer is what is printed, or ``[exit code, output, errors]``. A
command, flag or number of arguments that the program's documentation does not know ends with exit code 64. The versions
of the documentation are in ``tpu_scripts/README.md``.
"""

import json
import os
import signal
import sys


class Command:
    """What a command takes: flags with a value, switches, those it needs, and how many other words (-1: any)."""

    def __init__(self, values: str, switches: str = "", needed: str = "", words: int = 1) -> None:
        self.values = values.split()
        self.switches = switches.split()
        self.needed = set(needed.split())
        self.words = words


GCLOUD_VALUES = "--project --format --verbosity --account --configuration "
GCLOUD_SWITCHES = "--quiet "
TPU_CREATE = (
    "--zone --data-disk --boot-disk --description --labels --metadata --metadata-from-file --network --range --scopes "
    "--service-account --subnetwork --tags --accelerator-type --topology --type "
)
TPU_SSH = "--zone --ssh-flag --ssh-key-file --strict-host-key-checking --worker --command --output-directory --ssh-key-expiration "
TPU_SCP = "--zone --scp-flag --ssh-key-file --strict-host-key-checking --worker --ssh-key-expiration "
KUBECTL = "--context --namespace --selector --output "
XPK = "--project --project-number --zone --cluster "
XPK_SWITCHES = "--dry-run --skip-validation --quiet "
SLURM = (
    "--job-name --nodes --ntasks --ntasks-per-node --gpus-per-node --time --partition --account --qos --constraint "
    "--cpus-per-task --mem --output --error --export --chdir "
)

COMMANDS = {
    "gcloud compute tpus tpu-vm create": Command(
        GCLOUD_VALUES + TPU_CREATE + "--version --queue-count",
        GCLOUD_SWITCHES + "--async --internal-ips --preemptible --reserved --shielded-secure-boot --spot",
        "--zone --version",
    ),
    "gcloud compute tpus tpu-vm delete": Command(GCLOUD_VALUES + "--zone", GCLOUD_SWITCHES + "--async", "--zone"),
    "gcloud compute tpus tpu-vm describe": Command(GCLOUD_VALUES + "--zone", GCLOUD_SWITCHES, "--zone"),
    "gcloud compute tpus tpu-vm ssh": Command(
        GCLOUD_VALUES + TPU_SSH,
        GCLOUD_SWITCHES + "--dry-run --force-key-file-overwrite --internal-ip --plain",
        "--zone",
    ),
    "gcloud compute tpus tpu-vm scp": Command(
        GCLOUD_VALUES + TPU_SCP,
        GCLOUD_SWITCHES + "--compress --dry-run --force-key-file-overwrite --internal-ip --plain --recurse",
        "--zone",
        2,
    ),
    "gcloud compute tpus queued-resources create": Command(
        GCLOUD_VALUES
        + TPU_CREATE
        + "--runtime-version --node-id --node-count --node-prefix --valid-after-duration --valid-after-time "
        + "--valid-until-duration --valid-until-time --reservation-host-folder --reservation-host-project",
        GCLOUD_SWITCHES + "--async --guaranteed --internal-ips --reserved --shielded-secure-boot --spot",
        "--zone --runtime-version",
    ),
    "gcloud compute tpus queued-resources delete": Command(
        GCLOUD_VALUES + "--zone", GCLOUD_SWITCHES + "--async --force", "--zone"
    ),
    "gcloud compute tpus queued-resources describe": Command(GCLOUD_VALUES + "--zone", GCLOUD_SWITCHES, "--zone"),
    "gcloud compute tpus queued-resources ssh": Command(
        GCLOUD_VALUES + TPU_SSH + "--node --batch-size",
        GCLOUD_SWITCHES + "--dry-run --force-key-file-overwrite --plain --internal-ip --tunnel-through-iap",
        "--zone",
    ),
    "gcloud compute tpus queued-resources scp": Command(
        GCLOUD_VALUES + TPU_SCP + "--node --batch-size",
        GCLOUD_SWITCHES + "--compress --dry-run --plain --recurse --internal-ip --tunnel-through-iap",
        "--zone",
        2,
    ),
    "kubectl apply": Command("--context --namespace --filename --dry-run", "--server-side", "--filename", 0),
    "kubectl get jobset": Command(KUBECTL),
    "kubectl get pods": Command(KUBECTL, "--watch", "", 0),
    "kubectl delete jobset": Command("--context --namespace --timeout", "--wait"),
    "kubectl logs": Command(
        KUBECTL + "--tail --max-log-requests --container --since", "--follow --prefix --all-containers", "", 0
    ),
    "xpk workload create": Command(
        XPK + "--workload --command --tpu-type --device-type --storage --num-nodes --scheduler --docker-image "
        "--base-docker-image --script-dir --docker-name --num-slices --priority --max-restarts --env --env-file "
        "--ttl-seconds-after-finished --termination-grace-period-seconds --restart-on-exit-codes --debug-dump-gcs",
        XPK_SWITCHES + "--on-demand --spot --flex --enable-debug-logs --deploy-stacktrace-sidecar",
        "--workload --cluster --command",
        0,
    ),
    "xpk workload list": Command(
        XPK + "--filter-by-status --filter-by-job --wait-for-job-completion --timeout", XPK_SWITCHES, "--cluster", 0
    ),
    "xpk workload delete": Command(
        XPK + "--workload --filter-by-job --filter-by-status", XPK_SWITCHES + "--force", "--cluster", 0
    ),
    "sbatch": Command(SLURM + "--signal --open-mode", "--parsable --requeue --no-requeue --exclusive --wait", "", -1),
    "srun": Command(SLURM + "--kill-on-bad-exit --cpu-bind --wait", "--label --unbuffered --exact", "", -1),
    "squeue": Command("--jobs --format --states --user --name", "--noheader --me", "", 0),
    "scontrol requeue": Command("", "", "", 1),
    "scontrol update": Command("", "", "", 2),
    "scancel": Command("--signal --name --user --state", "--batch --full --quiet", "", 1),
}


def refuse(message: str) -> None:
    """Ends like a program that was called in a wrong way."""
    print(f"stand-in: {message}", file=sys.stderr)
    sys.exit(64)


def parse(arguments: list[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Returns the command, its flags and its other words; refuses what the command does not know."""
    found = [name for name in COMMANDS if arguments[: len(name.split())] == name.split()]
    if not found:
        refuse(f"no such command: {' '.join(arguments)}")
    name = max(found, key=len)
    command = COMMANDS[name]
    flags: dict[str, list[str]] = {}
    words: list[str] = []
    rest = arguments[len(name.split()) :]
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            words.append(word)
            if command.words < 0:
                words.extend(rest)
                break
        elif flag in command.values:
            if not equals and not rest:
                refuse(f"{name}: {flag} needs a value")
            flags.setdefault(flag, []).append(value if equals else rest.pop(0))
        elif word in command.switches:
            flags[word] = []
        else:
            refuse(f"{name} knows no {word}")
    if command.words >= 0 and len(words) != command.words:
        refuse(f"{name} takes {command.words} words, not {words}")
    if missing := command.needed - set(flags):
        refuse(f"{name} needs {' '.join(sorted(missing))}")
    return name, flags, words


def answer_key(name: str, flags: dict[str, list[str]]) -> str:
    """Returns under which name the answers are: the command and, for ssh, the action of worker.sh."""
    if not name.endswith(" ssh"):
        return name
    command = flags["--command"][0].split("worker.sh ")
    return f"{name} {command[-1].split()[0]}" if len(command) > 1 else f"{name} {flags['--command'][0]}"


def run_step(command: list[str], note: str) -> int:
    """Runs one process as srun does; like srun, kills it when srun itself gets SIGTERM. Notes its number in a file."""
    process = os.fork()
    if not process:
        os.execvp(command[0], command)
    with open(note, "w", encoding="utf-8") as step:  # noqa: PTH123
        step.write(str(process))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(process, signal.SIGKILL))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def main() -> None:
    """Checks, notes and answers one call."""
    arguments = [sys.argv[0].rpartition("/")[2], *sys.argv[1:]]
    name, flags, words = parse(arguments)
    folder = os.environ["STAND_IN_FOLDER"]
    text = sys.stdin.read() if flags.get("--filename") == ["-"] else ""
    key = answer_key(name, flags)
    with open(f"{folder}/calls.jsonl", "a+", encoding="utf-8") as calls:  # noqa: PTH123 - pathlib is slow to import
        calls.seek(0)
        before = sum(json.loads(line)["key"] == key for line in calls)
        calls.write(json.dumps({"key": key, "arguments": arguments, "input": text}) + "\n")
    if name == "srun":
        sys.exit(run_step(words, f"{folder}/step"))
    if name == "scancel" and "--signal" in flags and "--batch" not in flags:
        with open(f"{folder}/step", encoding="utf-8") as step:  # noqa: PTH123
            os.kill(int(step.read()), getattr(signal, f"SIG{flags['--signal'][0]}"))
    with open(f"{folder}/answers.json", encoding="utf-8") as recorded:  # noqa: PTH123
        answers = json.load(recorded).get(key) or [""]
    answer = answers[min(before, len(answers) - 1)]
    code, output, errors = [0, answer, ""] if isinstance(answer, str) else answer
    sys.stdout.write(output + "\n" if output else "")
    sys.stderr.write(errors + "\n" if errors else "")
    sys.exit(code)
