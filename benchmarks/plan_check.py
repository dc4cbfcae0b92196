"""Whether ``flaxbert plan`` tells the truth: its time and memory of a training step beside those of the same step run here.

    python -m benchmarks.plan_check --size small --precision float32 bfloat16 --json results/plan_check.json

Every case runs in two processes of its own. In the first, the peaks of this machine are measured (``planning.calibration``, a few
seconds), then the step is compiled, estimated and run; time is the median of the timed steps, with the smallest beside it. The second is
for memory: it gives freed pages back (``FLAXBERT_KEEP_PAGES=0``), so that the kernel's high-water mark, reset after compiling, rises by the
scratch of a step; the state and the batch, which the process holds already, are added by the size of their live arrays.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.runner import machine, write_json
from benchmarks.settings import peak_bytes
from flaxbert.core.runtime import KEEP_PAGES_VARIABLE


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
    from flaxbert.config import PretrainConfig, PretrainData, PretrainModel, TrainConfig

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = PretrainModel(size=case.size, precision=case.precision, architecture=dropout)  # type: ignore[arg-type]
    data = PretrainData(row_length=case.length)
    return PretrainConfig(model, data, train=TrainConfig(batch_size=case.batch_size, num_steps=1000))


def _batch(job: Any, vocab_size: int) -> dict[str, Any]:
    """Returns a batch of random tokens, all real, in one segment a row."""
    import numpy as np

    random, rows = np.random.default_rng(0), job.batch_size
    batch = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in job.example.items()}
    length, slots = batch["input_ids"].shape[1], batch["masked_positions"].shape[1]
    batch["input_ids"][:] = random.integers(1000, vocab_size, (rows, length))
    batch["segment_ids"][:] = 1
    batch["position_ids"][:] = np.arange(length)
    batch["masked_positions"][:] = np.sort(random.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :slots])
    batch["labels"][:] = np.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
    batch["example_weight"][:] = 1.0
    return batch


def _reset_peak() -> None:
    """Sets the kernel's high-water mark of this process to what it holds now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _trim() -> None:
    """Gives what the C library holds of freed memory back to the system."""
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def run_case(case: Case) -> dict[str, Any]:
    """Estimates and runs one step in this process.

    Args:
      case: The step.

    Returns:
      Predicted and measured seconds and bytes.
    """
    from flaxbert.core.runtime import configure

    configure(use_compilation_cache=False)
    import jax

    from flaxbert.config import MeshConfig
    from flaxbert.families.graph import initialize_params
    from flaxbert.planning.calibration import measure_cpu
    from flaxbert.planning.planner import Planner
    from flaxbert.planning.topology import parse_topology
    from flaxbert.planning.workloads import pretraining_workload
    from flaxbert.train.memory import BatchPlan
    from flaxbert.train.recipes.plan import compile_run

    workload = pretraining_workload(_config(case))
    planner = Planner(workload, parse_topology("cpu:1"), measure_cpu(), lambda line: None)
    plan = planner.plan(MeshConfig(), case.batch_size, find_largest=False)
    estimate = plan.estimate
    if estimate is None:
        raise SystemExit("The step does not fit on this machine; choose a smaller case.")
    mesh = planner.mesh(MeshConfig())
    job = workload.job(mesh, case.batch_size)
    model = workload.model
    job = dataclasses.replace(job, params=initialize_params(model, "fill-mask", 0))
    compiled = compile_run(job, BatchPlan(case.batch_size, case.batch_size), lambda line: None)
    job = dataclasses.replace(job, params={})
    state, batch = compiled.initial_state(), jax.device_put(_batch(job, model.vocab_size))
    with jax.set_mesh(mesh):
        program = compiled.step.lower(state, batch, jax.random.key(0)).compile()
        live = sum(array.nbytes for array in jax.tree.leaves((state, batch)))
        _trim()
        held = peak_bytes_now()
        _reset_peak()
        seconds = []
        for _ in range(case.rounds + 2):
            start = time.perf_counter()
            state, metrics = program(state, batch, jax.random.key(0))
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    timed = seconds[2:]
    scratch = peak_bytes() - held
    shown = {name: getattr(estimate, f"{name}_seconds") for name in ("matmul", "vector", "memory", "copy")}
    return {
        "case": dataclasses.asdict(case),
        "predicted_seconds": estimate.seconds,
        "measured_seconds": statistics.median(timed),
        "smallest_seconds": min(timed),
        "predicted_bytes": plan.memory.total,
        "measured_bytes": live + scratch,
        "live_bytes": live,
        "scratch_bytes": scratch,
        "chip": dataclasses.asdict(planner.chip),
        "bound_seconds": shown,
    }


def peak_bytes_now() -> int:
    """Returns the memory that this process holds now, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _run_apart(case: Case, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.plan_check", "--one", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
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
            timed, held = (
                _run_apart(case, {}),
                _run_apart(dataclasses.replace(case, rounds=1), {KEEP_PAGES_VARIABLE: "0"}),
            )
            memory = {name: value for name, value in held.items() if name.endswith("_bytes")}
            rows.append({**timed, **memory})
            print(_line(rows[-1]), flush=True)
    write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
