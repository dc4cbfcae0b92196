"""What each way of compressing fine-tuned models costs: bytes, quality with paired intervals over several seeds, and speed.

    python -m benchmarks.compression sst2 --models runs/sst2-0/model runs/sst2-1/model runs/sst2-2/model
    python -m benchmarks.compression sentences   # MiniLM as it is, STS-B without fine-tuning

A task is one of ``configs/``; the models are fine-tuned on it with different seeds, for example by ``flaxbert finetune``. Every mode compresses every
model; modes that must know the inputs measure them on 256 training examples, curvature on 64. The quality is the task's first metric on its held-out
split. Intervals are of the difference to the uncompressed models: the same held-out examples are drawn again for all seeds, and the difference is the
mean over seeds. The last modes train on for ``--tune-steps`` steps, with zeros that stay (``2:4, tuned``) or while they are pruned or rounded. Speed is that of a forward pass of 32 rows of 64 tokens, modes in turn,
medians. The data lie in ``FLAXBERT_TEST_DATA``.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.models import installed_minilm
from benchmarks.runner import machine, write_json
from benchmarks.settings import root

NUM_RESAMPLES = 1000
ROWS, LENGTH = 32, 64


@dataclasses.dataclass(frozen=True)
class Subject:
    """What modes compress and how that is judged.

    Attributes:
      models: Uncompressed models, one a seed.
      judge: Returns predictions and references of a model, example by example.
      statistic: Metric of such rows.
      metric: Its name.
      calibration: Tokenized training examples with labels (none for sentences).
      config: Data options of the task, for training on; None for sentences.
    """

    models: Sequence[Any]
    judge: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    statistic: Callable[[np.ndarray, np.ndarray], float]
    metric: str
    calibration: Any
    run: Any = None


Mode = Callable[[Any, Subject], Any]


def _quantized(**options: Any) -> Mode:
    def apply(model: Any, subject: Subject) -> Any:
        from flaxbert.compression.quantization import quantize_model
        from flaxbert.transforms import QuantizationSpec

        return quantize_model(model, QuantizationSpec(**options), subject.calibration)[0]

    return apply


def _mixed(budget: float, rounding: str) -> Mode:
    def apply(model: Any, subject: Subject) -> Any:
        from flaxbert.compression.quantization import candidate_specs, mix_bits

        specs = candidate_specs((2, 3, 4, 8), 0, rounding)
        return mix_bits(model, subject.calibration, specs, num_iterations=4, part_size=16).within(budget)[0]

    return apply


def _sparse(spec: Any) -> Mode:
    def apply(model: Any, subject: Subject) -> Any:
        from flaxbert.core.rules import match_rules
        from flaxbert.evaluation.calibrate import measure_statistics
        from flaxbert.transforms import default_sparsity_rules, sparsify

        rules, statistics = default_sparsity_rules(spec), {}
        if spec.criterion == "second_moment":
            matched = match_rules(model.params, rules, purpose="sparsity")
            names = [name for name, chosen in matched.items() if chosen is not None]
            statistics = measure_statistics(model, subject.calibration, names, second_moments=True)
        return model.replace(params=sparsify(model.params, rules, statistics)[0])

    return apply


def _trained(steps: int, before: Mode | None = None, **sections: Any) -> Mode:
    """Returns a mode that trains on, from a model that was compressed before or by what sections of the run do to it."""

    def apply(model: Any, subject: Subject) -> Any:
        from flaxbert.config import OutputConfig
        from flaxbert.train.recipes.finetune import finetune

        with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as name:
            folder = pathlib.Path(name)
            (before(model, subject) if before else model).save(folder / "start")
            run = subject.run
            evaluations = 3 if before else 1  # what is rounded or pruned step by step counts at its end alone
            train = dataclasses.replace(
                run.train, num_steps=steps, evaluate_every=max(1, steps // evaluations), resume="never", log_every=50
            )
            run = dataclasses.replace(
                run,
                model=dataclasses.replace(run.model, path=str(folder / "start")),
                train=train,
                output=OutputConfig(folder=str(folder / "run"), tensorboard=False, plots=False, progress="off"),
                **sections,
            )
            return finetune(run, say=lambda _: None).model

    return apply


def modes(tune_steps: int) -> dict[str, Mode]:
    """Returns what is done to a model in each mode, by its name.

    Args:
      tune_steps: Steps of training on.
    """
    return {**_one_shot_modes(), **_trained_modes(tune_steps)}


def _one_shot_modes() -> dict[str, Mode]:
    from flaxbert.transforms import GroupSparsity, MagnitudeSparsity

    return {
        "float32": lambda model, _: model,
        "int8": _quantized(),
        "int8 gptq": _quantized(rounding="gptq"),
        "int8 static": _quantized(activations="static"),
        "int8 static, 99.99 %": _quantized(activations="static", activation_range="percentile"),
        "int8 static, entropy": _quantized(activations="static", activation_range="entropy"),
        "int8 static, smooth 0.5": _quantized(activations="static", smoothing=0.5),
        "float8": _quantized(scheme="float8"),
        "int4, groups of 64": _quantized(bits=4, group_size=64),
        "int4 gptq": _quantized(bits=4, group_size=64, rounding="gptq"),
        "int4 awq": _quantized(bits=4, group_size=64, rounding="awq"),
        "int3 gptq": _quantized(bits=3, group_size=64, rounding="gptq"),
        "int2 gptq": _quantized(bits=2, group_size=64, rounding="gptq"),
        "mixed 2 3 4 8, 0.120": _mixed(0.12, "gptq"),
        "ternary": _quantized(bits=2, scheme="ternary"),
        "binary": _quantized(bits=1),
        "2:4": _sparse(GroupSparsity(2, 4)),
        "2:4, second moment": _sparse(GroupSparsity(2, 4, "second_moment")),
        "magnitude, half": _sparse(MagnitudeSparsity(0.5)),
        "second moment, half": _sparse(MagnitudeSparsity(0.5, criterion="second_moment")),
        "random, half": _sparse(MagnitudeSparsity(0.5, criterion="random")),
    }


def _trained_modes(steps: int) -> dict[str, Mode]:
    from flaxbert.config import PruneConfig, TrainQuantizeConfig
    from flaxbert.transforms import GroupSparsity

    gradual: dict[str, Any] = {"begin_rate": 0.0, "end_rate": 0.6}
    moving = {**gradual, "begin_rate": 0.1}  # scores have to learn first
    return {
        "2:4, tuned": _trained(steps, _sparse(GroupSparsity(2, 4))),
        "2:4, second moment, tuned": _trained(steps, _sparse(GroupSparsity(2, 4, "second_moment"))),
        "2:4, in steps": _trained(steps, prune=PruneConfig("magnitude", pattern="2:4", **gradual)),
        "magnitude, half, in steps": _trained(steps, prune=PruneConfig("magnitude", 0.5, **gradual)),
        "movement, half": _trained(steps, prune=PruneConfig("movement", 0.5, **moving)),
        "heads and neurons, half": _trained(
            steps, prune=PruneConfig("movement", 0.5, block="units", shrink=True, **moving)
        ),
        "int8 trained": _trained(steps, quantize=TrainQuantizeConfig(8)),
        "int4 trained": _trained(steps, quantize=TrainQuantizeConfig(4)),
        "int2 trained": _trained(steps, quantize=TrainQuantizeConfig(2)),
    }


def read_pairs(file: pathlib.Path) -> tuple[list[str], list[str], np.ndarray]:
    """Returns first and second sentences and the people's scores.

    Args:
      file: ``sts-dev.csv`` as published: tab-separated, without quoting or header.
    """
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    return [row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows])


def sentences(data: pathlib.Path, folders: Sequence[str]) -> Subject:
    """Returns sentence encoders that are judged by the cosine of pairs.

    Args:
      data: Folder of the data.
      folders: Models; none takes the installed MiniLM.
    """
    import flaxbert
    from flaxbert.data.tokenization import tokenize
    from flaxbert.evaluation.metrics import METRICS

    first, second, scores = read_pairs(data / "stsb" / "sts-dev.csv")
    models = [flaxbert.load(folder) for folder in folders or [str(installed_minilm())]]

    def judge(model: Any) -> tuple[np.ndarray, np.ndarray]:
        vectors = [np.asarray(model.encode(texts, normalize=True), np.float64) for texts in (first, second)]
        return np.sum(vectors[0] * vectors[1], axis=1), scores

    texts = read_pairs(data / "stsb" / "sts-train.csv")[0][:256]
    calibration = tokenize(models[0].tokenizer, texts, max_length=128)
    return Subject(models, judge, METRICS["regression"]["spearman"].function, "spearman", calibration)


def fine_tuned(task: str, folders: Sequence[str]) -> Subject:
    """Returns models that are judged on the held-out examples of their task.

    Args:
      task: Name of a file in ``configs/``.
      folders: Fine-tuned models.
    """
    import flaxbert
    from benchmarks.tasks import read_run
    from flaxbert.compression.examples import read_judge

    arguments = argparse.Namespace(epochs=0, learning_rate=0, model=folders[0], precision="float32")
    run = read_run(task, arguments, pathlib.Path(), 0)
    models = [flaxbert.load(folder) for folder in folders]
    judge = read_judge(models[0], run.data.validation, run.data, run.task)
    limited = dataclasses.replace(run.data, max_validation_examples=256)
    calibration = read_judge(models[0], run.data.train, limited, run.task).features(models[0])
    scored = judge.score(models[0])
    statistic = scored.statistics[judge.metric]
    if isinstance(statistic, str):
        from flaxbert.evaluation.bootstrap import _statistic

        statistic = _statistic(statistic)
    return Subject(models, lambda model: judge.score(model).rows, statistic, judge.metric, calibration, run)


def difference(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], references: Sequence[np.ndarray], statistic: Any
) -> tuple[float, float, float]:
    """Returns the mean change of the metric over seeds, with the ends of its interval of 95 %.

    Args:
      before: Predictions of the uncompressed models.
      after: Predictions of the compressed ones.
      references: What they should be.
      statistic: Metric of predictions and references.
    """

    def change(rows: Any) -> float:
        pairs = zip(before, after, references, strict=True)
        return float(
            np.mean([statistic(new[rows], true[rows]) - statistic(old[rows], true[rows]) for old, new, true in pairs])
        )

    generator, count = np.random.default_rng(0), len(references[0])
    draws = [change(generator.integers(0, count, count)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return change(slice(None)), float(low), float(high)


def disk_bytes(model: Any) -> int:
    """Returns the size of a model's files of weights.

    Args:
      model: The model.
    """
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as folder:
        model.save(pathlib.Path(folder) / "model")
        return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.safetensors"))


def forward_seconds(models: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Returns the median time of a forward pass of each model, all in turn.

    Args:
      models: Models by mode.
      rounds: Timed passes of each.
    """
    import jax

    if not rounds:
        return dict.fromkeys(models, float("nan"))
    generator = np.random.default_rng(0)
    ids = generator.integers(1000, 20000, (ROWS, LENGTH))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    placed = {name: jax.device_put(model.params) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            jax.block_until_ready(model.apply(placed[name], batch))
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Compresses, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="sentences", help="a file of configs/, or sentences")
    parser.add_argument("--models", nargs="*", default=[], help="folders of the fine-tuned models, one a seed")
    parser.add_argument("--only", nargs="*", default=[], help="names of the modes beside float32; default all")
    parser.add_argument("--tune-steps", type=int, default=500, help="steps of training on")
    parser.add_argument("--rounds", type=int, default=7, help="timed forward passes of each mode; 0 times none")
    parser.add_argument("--json", default="", help="file of the results; default results/compression-TASK.json")
    arguments = parser.parse_args()
    from flaxbert.core.runtime import configure

    configure()
    data = os.environ.get("FLAXBERT_TEST_DATA")
    if not data:
        raise SystemExit("Set FLAXBERT_TEST_DATA to the folder of the data sets.")
    if arguments.task != "sentences" and not arguments.models:
        raise SystemExit(f"Name the models that were fine-tuned on {arguments.task}: --models FOLDER …")
    known = modes(arguments.tune_steps)
    unknown = set(arguments.only) - set(known)
    if unknown:
        raise SystemExit(f"There are no modes {', '.join(sorted(unknown))}; known are {', '.join(known)}.")
    if arguments.task == "sentences":
        subject = sentences(pathlib.Path(data), arguments.models)
        known = {name: mode for name, mode in _one_shot_modes().items() if "mixed" not in name}
    else:
        subject = fine_tuned(arguments.task, arguments.models)
    chosen = {name: mode for name, mode in known.items() if not arguments.only or name in (*arguments.only, "float32")}
    rows = measure(subject, chosen, arguments.rounds)
    file = arguments.json or str(root() / "results" / f"compression-{arguments.task}.json")
    write_json(file, {"machine": machine(), "options": vars(arguments), "metric": subject.metric, "rows": rows})


def measure(subject: Subject, chosen: Mapping[str, Mode], rounds: int) -> list[dict[str, Any]]:
    """Compresses all models in all modes, prints the table and returns its rows.

    Args:
      subject: Models and judge.
      chosen: Modes by name.
      rounds: Timed forward passes.
    """
    from flaxbert.core.trees import size_bytes

    rows, firsts = [], {}
    before: list[np.ndarray] = []
    print(
        f"{'mode':<24} {'memory MB':>9} {'of f32':>7} {'disk MB':>8} {subject.metric:>9}  difference (95 %), {len(subject.models)} seeds"
    )
    for name, mode in chosen.items():
        started = time.perf_counter()
        compressed = [mode(model, subject) for model in subject.models]
        seconds = (time.perf_counter() - started) / len(compressed)
        judged = [subject.judge(model) for model in compressed]
        found, references = [pair[0] for pair in judged], [pair[1] for pair in judged]
        before = found if name == "float32" else before
        values = [subject.statistic(*pair) for pair in judged]
        change, low, high = difference(before, found, references, subject.statistic)
        firsts[name] = compressed[0]
        row = {
            "mode": name,
            "memory_bytes": size_bytes(compressed[0].params),
            "disk_bytes": disk_bytes(compressed[0]),
            "compress_seconds": seconds,
            "values": [float(value) for value in values],
            "difference": change,
            "difference_interval": [low, high],
        }
        rows.append(row)
        share = row["memory_bytes"] / rows[0]["memory_bytes"]
        print(
            f"{name:<24} {row['memory_bytes'] / 1e6:>9.2f} {share:>7.3f} {row['disk_bytes'] / 1e6:>8.2f} {np.mean(values):>9.4f}  "
            f"{change:+.4f} ({low:+.4f} to {high:+.4f})",
            flush=True,
        )
    times = forward_seconds(firsts, rounds)
    for row in rows:
        row["forward_seconds"] = times[row["mode"]]
    if rounds:
        print(f"\nforward pass of {ROWS} x {LENGTH} tokens, times as fast as float32:")
        print(", ".join(f"{name} {times['float32'] / value:.2f}" for name, value in times.items()))
    return rows


if __name__ == "__main__":
    main()
