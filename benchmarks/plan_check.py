"""Whether ``flaxbert plan`` tells the truth: its time and memory of a training step beside those of the same step run here.

    python -m benchmarks.plan_check --size mini small --precision float32 bfloat16 --json results/plan_check.json

Every case has a process of its own. The peaks of this machine are measured (``planning.calibration``, a few seconds); then the step is
compiled, estimated and run. Time is the median of the timed steps, with the smallest beside it. Memory is the size of the live arrays of
state and batch, plus what a step takes beyond them: the rise of the kernel's high-water mark of the process, reset before the step, with the
C library told to give freed pages back, so that they can not serve unseen.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from flaxbert.core.runtime import configure

configure(use_compilation_cache=False)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.runner import machine, write_json  # noqa: E402
from benchmarks.settings import peak_bytes  # noqa: E402
from flaxbert.config import MeshConfig, PretrainConfig, PretrainData, PretrainModel, TrainConfig  # noqa: E402
from flaxbert.core.hlo import parse_module  # noqa: E402
from flaxbert.core.sharding import build_mesh, place_batch  # noqa: E402
from flaxbert.families.graph import initialize_params  # noqa: E402
from flaxbert.planning.calibration import measure_cpu  # noqa: E402
from flaxbert.planning.roofline import estimate_step  # noqa: E402
from flaxbert.planning.topology import make_interconnect, parse_topology  # noqa: E402
from flaxbert.planning.workloads import pretraining_workloads  # noqa: E402
from flaxbert.train.memory import estimate_step_memory  # noqa: E402
from flaxbert.train.recipes.plan import lower_step  # noqa: E402
from flaxbert.train.state import create_state  # noqa: E402

M_TRIM_THRESHOLD, M_MMAP_MAX, MAPPINGS = -1, -4, 65_536
"""Settings of glibc's malloc, and how many blocks it maps by itself at most."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One step that is estimated and run.

    Attributes:
      size: Size of a BERT.
      precision: Type that products are computed in.
      batch_size: Rows of a batch.
      length: Tokens of a row.
      rounds: Timed steps.
    """

    size: str
    precision: str
    batch_size: int
    length: int
    rounds: int


def _config(case: Case) -> Any:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = PretrainModel(size=case.size, precision=case.precision, architecture=dropout)  # type: ignore[arg-type]
    data = PretrainData(row_length=case.length)
    return PretrainConfig(model, data, train=TrainConfig(batch_size=case.batch_size, num_steps=1000))


def _batch(job: Any, vocab_size: int) -> dict[str, Any]:
    """Returns a batch of random tokens, all real, in one segment a row."""
    random, rows = np.random.default_rng(0), job.batch_size
    batch: dict[str, Any] = {
        name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in job.example.items()
    }
    length, slots = job.example["input_ids"].shape[1], job.example["masked_positions"].shape[1]
    batch["input_ids"][:] = random.integers(1000, vocab_size, (rows, length))
    batch["segment_ids"][:] = 1
    batch["position_ids"][:] = np.arange(length)
    places = np.stack([np.sort(random.permutation(length)[:slots]) for _ in range(rows)])
    batch["masked_positions"][:] = places
    batch["labels"][:] = np.take_along_axis(batch["input_ids"], places, axis=1)
    batch["example_weight"][:] = 1.0
    return batch


def _give_back_pages() -> None:
    """Lets the C library give freed memory back to the system from now on, and what it holds of it at once."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, MAPPINGS)
    library.mallopt(M_TRIM_THRESHOLD, 1 << 17)
    gc.collect()
    library.malloc_trim(0)


def _held_bytes() -> int:
    """Returns the memory that this process holds now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def _run_step(program: Any, state: Any, batch: Any, rounds: int) -> tuple[list[float], int]:
    """Returns the seconds of each step, and the bytes that one takes beyond what the process holds already."""
    key, seconds = jax.random.key(0), []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    _give_back_pages()
    held = _held_bytes()
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts again
    jax.block_until_ready(program(state, batch, key))
    return seconds[2:], peak_bytes() - held


def run_case(case: Case) -> dict[str, Any]:
    """Estimates and runs one step in this process.

    Args:
      case: The step.

    Returns:
      Predicted and measured seconds and bytes.
    """
    topology, chip = parse_topology("cpu:1"), measure_cpu()
    workload = pretraining_workloads(_config(case))[0]
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    job = workload.job(mesh, case.batch_size)
    lowered = lower_step(job, case.batch_size)
    with jax.set_mesh(mesh):
        program = lowered.compile()
    network = make_interconnect(topology, list(mesh.devices.flat), chip)
    estimate, memory = estimate_step(parse_module(program.as_text()), network), estimate_step_memory(program)
    params = initialize_params(workload.model, "fill-mask", 0)
    optimizer = job.optimizer
    state, _ = create_state(params, (), optimizer, leaf_axes=job.leaf_axes, mesh=mesh)
    del params
    batch = place_batch(_batch(job, workload.model.vocab_size), mesh)
    live = sum(array.nbytes for array in jax.tree.leaves((state, batch)))
    seconds, scratch = _run_step(program, state, batch, case.rounds)
    return {
        "case": dataclasses.asdict(case),
        "predicted_seconds": estimate.seconds,
        "measured_seconds": statistics.median(seconds),
        "smallest_seconds": min(seconds),
        "predicted_bytes": memory.total,
        "measured_bytes": live + scratch,
        "live_bytes": live,
        "scratch_bytes": scratch,
        "bound_seconds": {name: getattr(estimate, f"{name}_seconds") for name in ("matmul", "vector", "memory")},
        "chip": dataclasses.asdict(chip),
    }


def _run_apart(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.plan_check", "--one", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _line(row: dict[str, Any]) -> str:
    case = row["case"]
    predicted, measured = row["predicted_seconds"], row["measured_seconds"]
    bytes_predicted, bytes_measured = row["predicted_bytes"] / 1e6, row["measured_bytes"] / 1e6
    return (
        f"{case['size']:<6} {case['precision']:<9} {case['batch_size']:>3} x {case['length']:<4} "
        f"{predicted * 1e3:>10.1f} {measured * 1e3:>10.1f} {row['smallest_seconds'] * 1e3:>10.1f} {predicted / measured:>6.2f} "
        f"{bytes_predicted:>10.1f} {bytes_measured:>10.1f} {bytes_predicted / bytes_measured:>6.2f}"
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["mini", "small"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps")
    parser.add_argument("--json", default="results/plan_check.json", help="file of the results")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_case(Case(**json.loads(arguments.one)))))
        return
    rows = []
    print(
        f"{'model':<6} {'precision':<9} {'batch':<10} {'predicted':>10} {'measured':>10} {'smallest':>10} {'ratio':>6} "
        f"{'predicted':>10} {'measured':>10} {'ratio':>6}\n{'':<27} {'ms':>10} {'ms':>10} {'ms':>10} {'':>6} {'MB':>10} {'MB':>10}"
    )
    for size in arguments.size:
        for precision in arguments.precision:
            case = Case(size, precision, arguments.batch_size, arguments.length, arguments.rounds)
            rows.append(_run_apart(case))
            print(_line(rows[-1]), flush=True)
    write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
