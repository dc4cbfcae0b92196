"""Pre-training from new weights by flaxbert and by transformers on torch: perplexity of held-out text, step by step, over seeds.

    python -m benchmarks.pretraining_curves --size tiny --steps 1500 --seeds 0 1 2 --json results/pretraining_curves.json

Both sides start from the same weights and see the same rows with the same masks in the same order. The corpus is the novels in
``FLAXBERT_TEST_DATA`` unless ``--corpus`` names a folder that ``flaxbert prepare`` wrote.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.novels import prepare_novels
from benchmarks.runner import machine, write_json
from benchmarks.torch_pretraining import pretrain_torch


def run_config(arguments: argparse.Namespace, corpus: pathlib.Path, folder: pathlib.Path, seed: int) -> Any:
    """Returns the run of a seed.

    Args:
      arguments: Size, steps, batch, rate of masking.
      corpus: The prepared corpus.
      folder: Where flaxbert writes.
      seed: Seed of weights, rows and masks.
    """
    from flaxbert.config import MaskingConfig, OutputConfig, PretrainConfig, PretrainData, PretrainModel, TrainConfig

    architecture = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return PretrainConfig(
        model=PretrainModel(size=arguments.size, architecture=architecture, precision=arguments.precision),
        data=PretrainData(
            corpora=(str(corpus),), row_length=arguments.length, validation_rate=0.02, max_validation_rows=256
        ),
        masking=MaskingConfig(rate=arguments.rate),
        train=TrainConfig(
            batch_size=arguments.batch_size,
            num_steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            adam_beta2=0.98,
            max_grad_norm=0.5,
            evaluate_every=max(1, arguments.steps // arguments.evaluations),
            load_best_at_end=False,
            log_every=100,
            seed=seed,
        ),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def run_side(side: str, config: Any, scratch: pathlib.Path) -> list[dict[str, float]]:
    """Returns every evaluation of a run.

    Args:
      side: flaxbert or torch.
      config: The run.
      scratch: Where models are handed over.
    """
    say = lambda line: print(f"  {line}", flush=True)
    if side == "torch":
        return pretrain_torch(config, scratch, say)
    from flaxbert.train.recipes.pretrain import pretrain

    result = pretrain(config, say=say)
    return [{"step": 0, **result.before}, *({**entry} for entry in result.history)]


def plot(curves: Sequence[dict[str, Any]], path: str) -> None:
    """Draws the perplexity of every run.

    Args:
      curves: Side, seed and history of every run.
      path: A PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    styles = {"flaxbert": ("#1f77b4", "-"), "torch": ("#d62728", "--")}
    for number, curve in enumerate(curves):
        color, line = styles[curve["side"]]
        first = all(curve["side"] != earlier["side"] for earlier in curves[:number])
        label = ("transformers on torch" if curve["side"] == "torch" else "flaxbert") if first else None
        steps = [entry["step"] for entry in curve["history"]]
        values = [entry["perplexity"] for entry in curve["history"]]
        axes.plot(steps, values, color=color, linestyle=line, linewidth=1.2, label=label)
    axes.set(xlabel="step", ylabel="perplexity of hidden words, held-out text", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def summarize(curves: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns, for every evaluated step, the mean loss and deviation of each side, and the largest difference of two runs of one seed.

    Args:
      curves: Side, seed and history of every run.
    """
    steps = [entry["step"] for entry in curves[0]["history"]]
    rows = []
    for place, step in enumerate(steps):
        row: dict[str, float] = {"step": step}
        by_seed: dict[int, dict[str, float]] = {}
        for curve in curves:
            by_seed.setdefault(curve["seed"], {})[curve["side"]] = curve["history"][place]["loss"]
        for side in sorted({curve["side"] for curve in curves}):
            losses = [sides[side] for sides in by_seed.values() if side in sides]
            row[f"{side}_mean"] = statistics.mean(losses)
            row[f"{side}_deviation"] = statistics.stdev(losses) if len(losses) > 1 else 0.0
        gaps = [abs(sides["flaxbert"] - sides["torch"]) for sides in by_seed.values() if len(sides) == 2]
        row["largest_difference"] = max(gaps, default=float("nan"))
        rows.append(row)
    return rows


def main(options: Sequence[str] | None = None) -> None:
    """Trains, prints, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="", help="prepared corpus; default the novels, with 8,192 word pieces")
    parser.add_argument("--scratch", default="", help="folder that keeps the prepared novels; default a temporary one")
    parser.add_argument("--size", default="tiny", help="size of the model")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=0.15, help="share of the tokens that is hidden")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--evaluations", type=int, default=15, help="evaluations of a run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="*", default=["flaxbert", "torch"], choices=["flaxbert", "torch"])
    parser.add_argument("--precision", default="float32", help="of flaxbert; torch computes in float32")
    parser.add_argument("--plot", default="", help="PNG file of the curves")
    parser.add_argument("--json", default="results/pretraining_curves.json", help="file of the results")
    arguments = parser.parse_args(options)
    from flaxbert.core.runtime import configure

    configure()
    curves: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as temporary:
        scratch = pathlib.Path(arguments.scratch or temporary)
        corpus = pathlib.Path(arguments.corpus) if arguments.corpus else prepare_novels(scratch, 8192)
        for seed in arguments.seeds:
            for side in arguments.sides:
                folder = pathlib.Path(temporary) / f"{side}-{seed}"
                start = time.perf_counter()
                history = run_side(side, run_config(arguments, corpus, folder, seed), folder)
                seconds = time.perf_counter() - start
                curves.append({"side": side, "seed": seed, "seconds": seconds, "history": history})
                print(f"{side}, seed {seed}, {seconds:.0f} s: {history[-1]}", flush=True)
    rows = summarize(curves)
    for row in rows:
        print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
    if arguments.plot:
        plot(curves, arguments.plot)
    write_json(arguments.json, {"machine": machine(), "options": vars(arguments), "curves": curves, "rows": rows})


if __name__ == "__main__":
    main()
