"""Fine-tuning on SST-2 by flaxbert and by transformers on torch: the same losses, step by step, and the same accuracy.

    python -m benchmarks.convergence --json results/convergence.json

Both start from MiniLM with one and the same new head and see the same batches in the same order, with AdamW, decay rules,
clipping and a linear schedule of the same settings. First 100 steps without dropout, loss by loss; then whole runs with
dropout for several seeds, each with its own head and order, and their accuracy on the dev split. flaxbert is run through
``flaxbert.train.recipes.finetune``, torch through a plain loop of transformers' model, ``torch.optim`` and transformers'
schedule. The data are SST-2 in ``FLAXBERT_TEST_DATA``.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.models import installed_minilm
from benchmarks.runner import machine, write_json
from benchmarks.torch_training import train_torch

LENGTH_BUCKETS = (16, 32)
MAX_LENGTH = 64
LEARNING_RATE = 5e-5
WEIGHT_DECAY = 0.01


def run_config(arguments: argparse.Namespace, folder: pathlib.Path, seed: int, num_steps: int, dropout: bool) -> Any:
    """Returns the run that both sides share.

    Args:
      arguments: Model, examples and batch size.
      folder: Where flaxbert writes.
      seed: Seed of head, order and dropout.
      num_steps: Optimizer steps.
      dropout: Whether dropout is on.
    """
    from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig

    data = os.environ.get("FLAXBERT_TEST_DATA")
    if not data:
        raise SystemExit("FLAXBERT_TEST_DATA names no folder of data.")
    sst2 = pathlib.Path(data) / "sst2"
    rate = -1.0 if dropout else 0.0  # -1 keeps the model's own
    return RunConfig(
        model=ModelSource(
            path=arguments.model or str(installed_minilm()),
            dropout_rate=rate,
            attention_dropout_rate=rate,
            classifier_dropout_rate=rate,
        ),
        data=DataConfig(
            train=str(sst2 / "train.tsv"),
            validation=str(sst2 / "dev.tsv"),
            text_column="sentence",
            label_column="label",
            quoting=False,
            labels=("0", "1"),
            max_length=MAX_LENGTH,
            length_buckets=LENGTH_BUCKETS,
        ),
        train=TrainConfig(
            batch_size=arguments.batch_size,
            num_steps=num_steps,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            seed=seed,
            log_every=1,
            evaluate_every=num_steps,
        ),
        output=OutputConfig(folder=str(folder)),
    )


def train_flaxbert(config: Any) -> tuple[list[float], float]:
    """Fine-tunes with flaxbert.

    Args:
      config: The run.

    Returns:
      The loss of every step and the accuracy on the dev split.
    """
    from flaxbert.train.callbacks import CallbackBase
    from flaxbert.train.recipes.finetune import finetune

    losses: list[float] = []

    class Record(CallbackBase):
        """Keeps the loss of every step."""

        def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
            """Appends.

            Args:
              step: Not used.
              metrics: With the losses of the steps since the last call.
            """
            losses.extend(metrics["step_losses"])

    result = finetune(config, say=lambda line: None, extra_callbacks=[Record()])
    return losses, float(result.after["accuracy"])


def first_losses(arguments: argparse.Namespace, scratch: pathlib.Path) -> dict[str, Any]:
    """Compares the first losses without dropout.

    Args:
      arguments: With the number of steps.
      scratch: Where runs are written.

    Returns:
      Both lists of losses and their largest difference.
    """
    config = run_config(arguments, scratch / "losses", 0, arguments.loss_steps, dropout=False)
    ours, _ = train_flaxbert(config)
    theirs, _ = train_torch(config, scratch)
    gaps = np.abs(np.asarray(ours) - np.asarray(theirs))
    print(f"{len(ours)} losses without dropout: from {ours[0]:.4f} to {ours[-1]:.4f}", flush=True)
    print(f"  largest difference {gaps.max():.2e} (step {gaps.argmax() + 1}), mean {gaps.mean():.2e}", flush=True)
    return {"flaxbert": ours, "torch": theirs, "largest_difference": float(gaps.max())}


def accuracies(arguments: argparse.Namespace, scratch: pathlib.Path) -> list[dict[str, float]]:
    """Compares the accuracy of whole runs with dropout.

    Args:
      arguments: With seeds and steps.
      scratch: Where runs are written.

    Returns:
      A row per seed.
    """
    rows = []
    print(
        f"{'seed':>6} {'flaxbert':>9} {'torch':>9}   ({arguments.steps} steps of {arguments.batch_size}, dev accuracy)"
    )
    for seed in arguments.seeds:
        config = run_config(arguments, scratch / f"seed-{seed}", seed, arguments.steps, dropout=True)
        ours, theirs = train_flaxbert(config)[1], train_torch(config, scratch)[1]["accuracy"]
        rows.append({"seed": seed, "flaxbert": ours, "torch": theirs})
        print(f"{seed:>6} {ours:>9.4f} {theirs:>9.4f}", flush=True)
    means = [statistics.mean(row[side] for row in rows) for side in ("flaxbert", "torch")]
    print(f"{'mean':>6} {means[0]:>9.4f} {means[1]:>9.4f}   difference {100 * (means[0] - means[1]):+.2f} points")
    return rows


def main(options: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder or hub id; default the installed MiniLM package")
    parser.add_argument("--loss-steps", type=int, default=100, help="steps that are compared loss by loss")
    parser.add_argument("--steps", type=int, default=500, help="steps of the runs whose accuracy is compared")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of these runs; none: only losses"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples of a step")
    parser.add_argument("--json", default="results/convergence.json", help="file of the results")
    arguments = parser.parse_args(options)
    from flaxbert.core.runtime import configure

    configure()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as folder:
        losses = first_losses(arguments, pathlib.Path(folder))
        rows = accuracies(arguments, pathlib.Path(folder)) if arguments.seeds else []
    write_json(arguments.json, {"machine": machine(), "first_losses": losses, "accuracy": rows})


if __name__ == "__main__":
    main()
