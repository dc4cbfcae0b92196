"""Runs peers in turn, A B C A B C…, each in a process of its own, and tabulates medians and ratios."""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.models import base_model
from benchmarks.settings import Settings, root
from flaxbert.train.provenance import machine


@dataclasses.dataclass
class Peer:
    """One row of a table.

    Attributes:
      name: Name in the table.
      module: Module under ``benchmarks.peers``.
      settings: What it measures.
      python: Interpreter that runs it, where it needs packages of another environment.
    """

    name: str
    module: str
    settings: Settings
    python: str = sys.executable


class Worker:
    """A peer's process, idle between its turns."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.seconds: list[float] = []
        self.value = 0.0
        self.peak_bytes = 0
        self.facts: dict[str, Any] = {}
        self.error = ""
        command = [
            peer.python, "-m", f"benchmarks.peers.{peer.module}", json.dumps(dataclasses.asdict(peer.settings))
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=root(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.facts = self._read() or {}

    def _read(self) -> dict[str, Any] | None:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if line:
            return json.loads(line)
        errors = self.process.stderr.read() if self.process.stderr else ""
        self.error = (errors.strip().splitlines() or ["ended without a word"])[-1][:300]
        return None

    def run(self) -> None:
        """Times one step."""
        if self.error or self.process.stdin is None:
            return
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._read()
        if answer is not None:
            self.seconds.append(answer["seconds"])
            self.value, self.peak_bytes = answer["value"], answer["peak_bytes"]

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()


def measure(peers: Sequence[Peer], rounds: int, group_size: int, reference: str) -> list[dict[str, Any]]:
    """Measures peers in turn.

    Args:
      peers: All rows; the reference is measured with each group, so that every ratio is of one and the same time.
      rounds: Timed steps per peer.
      group_size: Peers that are alive together, for memory; the reference counts as one of them.
      reference: Name of the peer that others are compared with.

    Returns:
      One row per peer: median and range of seconds, ratio to the reference, peak memory, facts, or the error.
    """
    base = next(peer for peer in peers if peer.name == reference)
    others = [peer for peer in peers if peer.name != reference]
    size = max(1, group_size - 1)
    rows: list[dict[str, Any]] = []
    for start in range(0, max(1, len(others)), size):
        workers = []
        for peer in [base, *others[start : start + size]]:
            print(f"starting {peer.name} …", file=sys.stderr, flush=True)
            workers.append(Worker(peer))
        for _ in range(rounds):
            for worker in workers:
                worker.run()
        rows.extend(_row(worker, workers[0], is_reference=worker is workers[0]) for worker in workers[start > 0 :])
        for worker in workers:
            worker.close()
    return rows


def _row(worker: Worker, base: Worker, is_reference: bool) -> dict[str, Any]:
    settings = worker.peer.settings
    row: dict[str, Any] = {"name": worker.peer.name, "settings": dataclasses.asdict(settings), **worker.facts}
    if worker.error or not worker.seconds:
        return {**row, "error": worker.error}
    median = statistics.median(worker.seconds)
    ratios = [b / a for a, b in zip(worker.seconds, base.seconds, strict=False)]
    return {
        **row,
        "seconds": median,
        "seconds_least": min(worker.seconds),
        "seconds_most": max(worker.seconds),
        "rounds": len(worker.seconds),
        "num_sequences": settings.num_sequences,
        "sequences_per_second": settings.num_sequences / median,
        "ratio": 1.0 if is_reference else statistics.median(ratios) if ratios else None,
        "peak_mib": worker.peak_bytes / 2**20,
        "value": worker.value,
    }


def table(rows: Sequence[dict[str, Any]], reference: str, unit: str = "seq/s") -> str:
    """Returns rows as a text table.

    Args:
      rows: From ``measure``.
      reference: Name of the peer that ratios refer to.
      unit: What is counted.
    """
    lines = [f"{'peer':<34} {unit:>8} {'min–max':>15} {f'x {reference}':>24} {'peak MiB':>9}  version"]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']:<34} {'not run: ' + row['error']}")
            continue
        size, ratio = row["num_sequences"], "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        span = f"{size / row['seconds_most']:.1f}–{size / row['seconds_least']:.1f}"
        lines.append(
            f"{row['name']:<34} {row['sequences_per_second']:>8.2f} {span:>15} {ratio:>24} "
            f"{row['peak_mib']:>9.0f}  {row.get('version', '')}"
        )
    return "\n".join(lines)


def write_json(path: str, document: dict[str, Any]) -> None:
    """Writes the results.

    Args:
      path: The file; folders are made.
      document: Settings, machine and rows.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1), encoding="utf-8")


def compare(
    job: str,
    description: str | None,
    build: Callable[[str, argparse.Namespace], list[Peer]],
    reference: str,
    *,
    rounds: int,
    group_size: int,
) -> None:
    """Runs a comparison on BERT-base from its options to its table: measures, prints and writes.

    Args:
      job: Name of the results file, and what the peers do.
      description: What ``--help`` says.
      build: Returns the rows of the table from the folder of the model and the options.
      reference: Peer that ratios refer to unless the options name another.
      rounds: Timed steps of each peer unless the options say otherwise.
      group_size: Peers alive together unless the options say otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed steps of each peer")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--group", type=int, default=group_size, help="peers alive together")
    parser.add_argument("--reference", default=reference, help="peer that ratios refer to")
    parser.add_argument("--only", nargs="*", default=[], help="names of the peers to measure; default all")
    parser.add_argument("--keras-python", default=sys.executable, help="interpreter with keras-hub")
    parser.add_argument("--json", default=f"results/{job}.json", help="file of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        folder = base_model(pathlib.Path(scratch), arguments.layers)
        peers = [peer for peer in build(str(folder), arguments) if not arguments.only or peer.name in arguments.only]
        rows = measure(peers, arguments.rounds, arguments.group, arguments.reference)
    print(table(rows, arguments.reference))
    write_json(arguments.json, {"machine": machine(), "reference": arguments.reference, "rows": rows})
