"""Scores of the tasks in ``configs/``, fine-tuned from MiniLM by flaxbert and by transformers on torch, for several seeds.

    python -m benchmarks.tasks wnut17 stsb --seeds 0 1 2 --json results/tasks.json
    python -m benchmarks.tasks squad2 --sides flaxbert --seeds 0 --precision bfloat16

A configuration is run as ``flaxbert finetune`` runs it. Torch starts from the same head and sees the same batches; both keep the
best of the evaluations at the end of every pass. The data are those in ``FLAXBERT_TEST_DATA``.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.models import installed_minilm
from benchmarks.runner import machine, write_json
from benchmarks.settings import root
from benchmarks.torch_training import train_torch


def read_run(name: str, arguments: argparse.Namespace, folder: pathlib.Path, seed: int) -> Any:
    """Returns the run of a configuration, on real data.

    Args:
      name: Name of a file in ``configs/`` without its ending.
      arguments: Model, precision and passes.
      folder: Where flaxbert writes.
      seed: Seed of head, order, dropout and held-out examples.

    Raises:
      SystemExit: There are no data, or no such configuration.
    """
    import jsonargparse
    import yaml

    from flaxbert.config import OutputConfig, RunConfig

    data, file = os.environ.get("FLAXBERT_TEST_DATA"), root() / "configs" / f"{name}.yaml"
    if not data or not file.is_file():
        raise SystemExit(f"FLAXBERT_TEST_DATA names no folder of data, or {file} is no configuration.")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, "run")
    run = parser.instantiate(parser.parse_object({"run": yaml.safe_load(file.read_text("utf-8"))})).run
    sources = {split: getattr(run.data, split) for split in ("train", "validation", "test")}
    found = {s: str(pathlib.Path(data) / pathlib.Path(p).relative_to("data")) for s, p in sources.items() if p}
    train = dataclasses.replace(run.train, seed=seed, resume="never")
    if arguments.epochs:
        train = dataclasses.replace(train, num_epochs=arguments.epochs)
    if arguments.learning_rate:
        train = dataclasses.replace(train, learning_rate=arguments.learning_rate)
    model = dataclasses.replace(
        run.model, path=arguments.model or str(installed_minilm()), precision=arguments.precision
    )
    return dataclasses.replace(
        run,
        model=model,
        data=dataclasses.replace(run.data, **found),
        train=train,
        output=OutputConfig(folder=str(folder), progress="off"),
    )


def run_side(side: str, config: Any, scratch: pathlib.Path) -> dict[str, float]:
    """Returns the metrics of one run.

    Args:
      side: flaxbert or torch.
      config: The run.
      scratch: Where models are handed over.
    """
    if side == "torch":
        return train_torch(config, scratch)[1]
    from flaxbert.train.recipes.finetune import finetune

    result = finetune(config, say=lambda line: None)
    if result.reason == "preempted":
        raise SystemExit("The run was asked to stop.")
    return {**result.after, **{f"test:{name}": value for name, value in (result.test or {}).items()}}


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one configuration for all seeds on all sides, and prints its table.

    Args:
      name: The configuration.
      arguments: Seeds and sides.

    Returns:
      The rows, and means and standard deviations of the deciding metric by side.
    """
    from flaxbert.tasks.base import Setting
    from flaxbert.tasks.registry import get_task

    rows: list[dict[str, Any]] = []
    metric = ""
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as folder:
        scratch = pathlib.Path(folder)
        for seed in arguments.seeds:
            config = read_run(name, arguments, scratch / f"seed-{seed}", seed)
            task = get_task(config.model.task or "sequence-classification")
            setting = Setting(config.data, problem_type=config.model.problem_type)
            metric = task.primary(setting, config.train.metric)[0]
            for side in arguments.sides:
                start = time.perf_counter()
                metrics = run_side(side, config, scratch)
                rows.append({"seed": seed, "side": side, "seconds": time.perf_counter() - start, "metrics": metrics})
                shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if "/" not in key)
                print(f"{name}, seed {seed}, {side}, {rows[-1]['seconds']:.0f} s: {shown}", flush=True)
    summary = {}
    for side in arguments.sides:
        values = [row["metrics"][metric] for row in rows if row["side"] == side]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[side] = {"mean": statistics.mean(values), "deviation": spread}
        print(
            f"{name}, {side}: {metric} {summary[side]['mean']:.4f} ± {spread:.4f} over {len(values)} seeds", flush=True
        )
    return {"metric": metric, "rows": rows, "summary": summary}


def main(options: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="configurations, names of files in configs/")
    parser.add_argument("--sides", nargs="*", default=["flaxbert", "torch"], choices=["flaxbert", "torch"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=0.0, help="passes; default the configuration's")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="default the configuration's")
    parser.add_argument("--precision", default="float32", help="of flaxbert; torch computes in float32")
    parser.add_argument("--model", default="", help="folder or hub id; default the installed MiniLM package")
    parser.add_argument("--json", default="results/tasks.json", help="file of the results")
    arguments = parser.parse_args(options)
    from flaxbert.core.runtime import configure

    configure()
    tasks: dict[str, Any] = {}
    for name in arguments.names:
        tasks[name] = compare(name, arguments)
        write_json(arguments.json, {"machine": machine(), "options": vars(arguments), "tasks": tasks})


if __name__ == "__main__":
    main()
