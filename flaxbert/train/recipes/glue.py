"""The tasks of GLUE, fine-tuned with several seeds, and the usual table of their scores."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxbert.config import DataConfig, RunConfig
from flaxbert.core.files import whole_file
from flaxbert.errors import ConfigError, nearest
from flaxbert.evaluation.report import text_table
from flaxbert.train.recipes.finetune import finetune
from flaxbert.train.recipes.setup import Say, say_on_first

HUB_ID = "nyu-mll/glue"
"""Where the tasks come from unless a folder is given."""

RESULTS_FILE = "glue.json"


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task of GLUE.

    Attributes:
      title: Its name in tables.
      metrics: What is reported, in the usual order; ``test:`` before a metric takes the second held-out split.
      columns: Columns on the hub: first text, second text or empty.
      file_columns: The same in the files of GLUE, and the label.
      options: Further options of ``DataConfig`` for the files.
      splits: Files (without ``.tsv``) and splits: validation and, where there is a second one, test.
      is_regression: Whether labels are numbers.
    """

    title: str
    metrics: tuple[str, ...]
    columns: tuple[str, str]
    file_columns: tuple[str, str, str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=lambda: {"validation": ("dev", "validation")}
    )
    is_regression: bool = False


_PAIR = ("sentence1", "sentence2")
_MATCHED = {
    "validation": ("dev_matched", "validation_matched"),
    "test": ("dev_mismatched", "validation_mismatched"),
}

GLUE_TASKS: dict[str, GlueTask] = {
    "cola": GlueTask("CoLA", ("matthews_correlation",), ("sentence", ""), ("3", "", "1"), {"header": False}),
    "sst2": GlueTask("SST-2", ("accuracy",), ("sentence", ""), ("sentence", "", "label")),
    "mrpc": GlueTask("MRPC", ("f1", "accuracy"), _PAIR, ("#1 String", "#2 String", "Quality")),
    "stsb": GlueTask("STS-B", ("pearson", "spearman"), _PAIR, (*_PAIR, "score"), is_regression=True),
    "qqp": GlueTask("QQP", ("f1", "accuracy"), ("question1", "question2"), ("question1", "question2", "is_duplicate")),
    "mnli": GlueTask(
        "MNLI", ("accuracy", "test:accuracy"), ("premise", "hypothesis"), (*_PAIR, "gold_label"), splits=_MATCHED
    ),
    "qnli": GlueTask("QNLI", ("accuracy",), ("question", "sentence"), ("question", "sentence", "label")),
    "rte": GlueTask("RTE", ("accuracy",), _PAIR, (*_PAIR, "label")),
    "wnli": GlueTask("WNLI", ("accuracy",), _PAIR, (*_PAIR, "label")),
}
"""The nine tasks in the usual order (Wang et al., 2019, table 1)."""


@dataclasses.dataclass(frozen=True)
class GlueScore:
    """The scores of one task.

    Attributes:
      task: Key of ``GLUE_TASKS``.
      values: Value of each seed by metric, in [-1, 1].
    """

    task: str
    values: Mapping[str, Sequence[float]]

    @property
    def mean(self) -> float:
        """Mean over seeds and metrics, which is what counts for the average of GLUE."""
        return statistics.fmean(statistics.fmean(values) for values in self.values.values())


def data_config(name: str, folder: str, base: DataConfig, changes: Mapping[str, Any]) -> DataConfig:
    """Returns where the examples of a task come from and how they are read.

    Args:
      name: Key of ``GLUE_TASKS``.
      folder: Folder with the folders of GLUE (``CoLA``, ``SST-2``…); empty for the hub.
      base: Lengths and limits.
      changes: Further options of this task, which win.

    Raises:
      ConfigError: An option is not known.
    """
    task = GLUE_TASKS[name]
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    unknown = sorted(set(changes) - fields)
    if unknown:
        raise ConfigError(f"data.{unknown[0]} of {name} is no option of data.{nearest(unknown[0], sorted(fields))}")
    if folder or "train" in changes:
        first, second, label = task.file_columns
        place = pathlib.Path(folder) / task.title
        sources: dict[str, Any] = {"format": "tsv", "quoting": False, **task.options}
        if folder:
            sources |= {"train": str(place / "train.tsv")}
            sources |= {split: str(place / f"{file}.tsv") for split, (file, _) in task.splits.items()}
    else:
        first, second, label = *task.columns, "label"
        sources = {"train": HUB_ID, "name": name, "format": "hub"}
        for split, (_, hub_split) in task.splits.items():
            sources |= {split: HUB_ID, f"{split}_split": hub_split}
    columns = {"text_column": first, "text_pair_column": second, "label_column": label}
    return dataclasses.replace(base, **{**sources, **columns, **changes})


def run_glue(
    config: RunConfig,
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    folder: str = "",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    say: Say = say_on_first,
    train: Callable[..., Any] = finetune,
) -> list[GlueScore]:
    """Fine-tunes a model on the tasks of GLUE with several seeds and prints the table.

    Args:
      config: Model, training, mesh and output folder of every run; of its data the lengths and limits.
      tasks: Keys of ``GLUE_TASKS``; empty takes all nine.
      seeds: Seeds; each is a run.
      folder: Folder with the files of GLUE; empty takes the hub.
      changes: Options of data by task, for example other files.
      say: Where lines for the user go.
      train: Runs one fine-tuning.

    Returns:
      The scores by task; they are also in ``glue.json`` of the output folder.

    Raises:
      ConfigError: A task is unknown, or there is no seed.
    """
    chosen, changes = [name.lower().replace("-", "") for name in tasks] or list(GLUE_TASKS), changes or {}
    for name in [*chosen, *changes]:
        if name not in GLUE_TASKS:
            raise ConfigError(
                f"There is no task '{name}' of GLUE; known are {', '.join(GLUE_TASKS)}.{nearest(name, GLUE_TASKS)}"
            )
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"The seeds are {list(seeds)}; name at least one, each once.")
    root = pathlib.Path(config.output.folder)
    scores: list[GlueScore] = []
    for name in chosen:
        values: dict[str, list[float]] = {metric: [] for metric in GLUE_TASKS[name].metrics}
        for seed in seeds:
            say(f"{GLUE_TASKS[name].title}, seed {seed}")
            result = train(
                _one_run(config, name, seed, root, data_config(name, folder, config.data, changes.get(name, {}))),
                say=say,
            )
            if result.reason == "preempted":
                say("Asked to stop; the same command goes on from there.")
                return scores
            for metric, found in values.items():
                source = result.test if metric.startswith("test:") else result.after
                found.append(float(source[metric.removeprefix("test:")]))
        scores.append(GlueScore(name, values))
        _write(root, scores, seeds)
    say(glue_table(scores))
    return scores


def _one_run(config: RunConfig, name: str, seed: int, root: pathlib.Path, data: DataConfig) -> RunConfig:
    task = GLUE_TASKS[name]
    kind = "regression" if task.is_regression else "single_label_classification"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, task="sequence-classification", problem_type=kind),
        data=data,
        train=dataclasses.replace(config.train, seed=seed, metric=task.metrics[0]),
        output=dataclasses.replace(config.output, folder=str(root / name / f"seed-{seed}")),
    )


def _write(root: pathlib.Path, scores: Sequence[GlueScore], seeds: Sequence[int]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    document = {"seeds": list(seeds), "scores": {score.task: score.values for score in scores}}
    with whole_file(root / RESULTS_FILE) as partial:
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")


def glue_table(scores: Sequence[GlueScore]) -> str:
    """Returns the usual table: a row per task with mean and standard deviation over seeds times 100, and the average.

    Args:
      scores: Scores by task.
    """
    rows = []
    for score in scores:
        names = [metric.replace("test:", "mismatched ") for metric in score.values]
        cells = [_spread(values) for values in score.values.values()]
        runs = len(next(iter(score.values.values())))
        rows.append([GLUE_TASKS[score.task].title, "/".join(names), " / ".join(cells), str(runs)])
    if scores:
        average = statistics.fmean(score.mean for score in scores)
        rows.append([f"average of {len(scores)}", "", f"{100 * average:.1f}", ""])
    return text_table(
        ["task", "metrics", "score x 100", "runs"], rows, title="GLUE, held-out examples", highlight="average"
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
