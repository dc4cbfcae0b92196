"""The model card: a ``README.md`` with front matter for the hub, written from what the run measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.architecture import PIPELINE_TAGS, ModelConfig
from flaxbert.config import DistillConfig, RunConfig
from flaxbert.core.units import format_count, format_duration
from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.report import (
    LABEL_HEADERS,
    ClassificationReport,
    comparison_rows,
    confusion_rows,
    label_rows,
    markdown_cell,
    markdown_table,
)
from flaxbert.train.callbacks import flatten_options
from flaxbert.train.provenance import is_hub_id, public_name, public_options
from flaxbert.train.usage import usage_snippets

HUB_METRICS: dict[str, str] = {
    "accuracy": "accuracy",
    "f1": "f1",
    "f1_macro": "f1",
    "f1_micro": "f1",
    "f1_weighted": "f1",
    "precision": "precision",
    "precision_macro": "precision",
    "precision_micro": "precision",
    "recall": "recall",
    "recall_macro": "recall",
    "recall_micro": "recall",
    "matthews_correlation": "matthews_correlation",
    "exact_match": "exact_match",
    "best_f1": "f1",
    "best_exact_match": "exact_match",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
    "mse": "mse",
    "mae": "mae",
    "perplexity": "perplexity",
}
"""The hub's name of each metric; others, such as the loss, stay out of the front matter."""

PLOT_CAPTIONS: dict[str, str] = {
    "loss.png": "Training loss",
    "learning_rate.png": "Learning rate",
    "metrics.png": "Validation metrics",
    "confusion_matrix.png": "Confusion matrix",
}
"""Plots in the order in which the card shows them."""

RARE_LABEL = 20
"""Evaluation examples below which a label's scores are called uncertain."""


@dataclasses.dataclass(frozen=True)
class DataSummary:
    """What a card says about the examples.

    Attributes:
      train: File, folder or hub id of the training examples.
      validation: The same for the held-out ones; empty where they were split off.
      num_train: Training examples.
      num_validation: Held-out examples.
      label_counts: Training examples per label; empty for regression.
      fingerprint: Digest of the training examples.
      num_truncated: Training examples that were longer than the maximum length.
      max_length: That length in tokens.
    """

    train: str
    validation: str = ""
    num_train: int = 0
    num_validation: int = 0
    label_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    num_truncated: int = 0
    max_length: int = 0


@dataclasses.dataclass(frozen=True)
class ModelCardContent:
    """Everything that a model card is written from.

    Attributes:
      name: Name of the model.
      task: Canonical task name.
      config: The resolved run.
      model_config: Architecture.
      data: What it was trained on.
      metrics_after: Metrics of the result on the held-out examples.
      metrics_before: The same before training; empty where not measured.
      metrics_test: The same on a test set; empty where there is none.
      primary: Metric that chose the checkpoint.
      interval: Its interval after training.
      report: Scores per label.
      step: Optimizer step of the result.
      seconds: Time spent training.
      num_parameters: Parameters of the model.
      versions: From ``library_versions``.
      devices: From ``device_summary``.
      command: From ``public_command``.
      plots: File names of plots in the folder ``plots`` beside the card.
      language: Codes such as ``en``; empty where not known.
      license: Licence id of the hub; empty where not known.
      example_text: A text for the snippets.
    """

    name: str
    task: str
    config: RunConfig
    model_config: ModelConfig
    data: DataSummary
    metrics_after: Mapping[str, float]
    metrics_before: Mapping[str, float] = dataclasses.field(default_factory=dict)
    metrics_test: Mapping[str, float] = dataclasses.field(default_factory=dict)
    primary: str = ""
    interval: Interval | None = None
    report: ClassificationReport | None = None
    step: int = 0
    seconds: float = 0.0
    num_parameters: int = 0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    devices: str = ""
    command: str = ""
    plots: Sequence[str] = ()
    language: Sequence[str] = ()
    license: str = ""
    example_text: str = "A text of the kind that the model was trained on."

    @property
    def base(self) -> str:
        """Folder or hub id of the model that this one comes from: where it was distilled, the teacher."""
        config = self.config
        return config.teacher.path if isinstance(config, DistillConfig) else config.model.path

    @property
    def is_pair(self) -> bool:
        """Whether an input is a pair of texts."""
        return bool(self.config.data.text_pair_column)


def _front_matter(content: ModelCardContent) -> str:
    import huggingface_hub

    base, embedding = content.base, content.task == "sentence-similarity"
    tag = PIPELINE_TAGS.get(content.task)
    shown = {name: HUB_METRICS[name] for name in content.metrics_after if name in HUB_METRICS}
    data = public_name(content.data.train)
    common: dict[str, Any] = {
        "task_type": tag or content.task,
        "dataset_type": data or "unknown",
        "dataset_name": data or "unknown",
    }
    results = [
        huggingface_hub.EvalResult(
            **common, dataset_split=split, metric_type=kind, metric_value=round(metrics[name], 6), metric_name=name
        )
        for split, metrics in (("validation", content.metrics_after), ("test", content.metrics_test))
        for name, kind in shown.items()
        if name in metrics
    ]
    card_data = huggingface_hub.ModelCardData(
        language=list(content.language) or None,
        license=content.license or None,
        library_name="sentence-transformers" if embedding else "transformers",
        tags=["flaxbert", "jax", content.model_config.family, *(["sentence-transformers"] if embedding else [])],
        datasets=[data] if data and is_hub_id(content.data.train) else None,
        metrics=list(dict.fromkeys(shown.values())) or None,
        pipeline_tag=tag,
        base_model=base if is_hub_id(base) and "/" in base else None,
        model_name=content.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card_data.to_yaml(line_break=chr(10))}\n---\n"


def _introduction(content: ModelCardContent) -> str:
    kind = content.model_config.problem_type.replace("_", " ") or content.task.replace("-", " ")
    base, model = public_name(content.base), content.model_config
    start = "trained from random weights with the shape of" if content.config.model.from_scratch else "fine-tuned from"
    if isinstance(content.config, DistillConfig):
        start = "distilled from"
    size = f"{format_count(content.num_parameters)} parameters, " if content.num_parameters else ""
    lines = [
        f"# {markdown_cell(content.name)}\n",
        f"A {model.family} encoder for **{kind}**, {start} `{base}` with flaxbert: {size}{model.num_hidden_layers} layers of "
        f"width {model.hidden_size}, inputs of up to {content.data.max_length or model.max_length} tokens"
        f"{', pairs of texts' if content.is_pair else ''}.\n",
    ]
    if content.primary in content.metrics_after:
        lines.append(f"Held-out **{content.primary}: {content.metrics_after[content.primary]:.4f}**.\n")
    return "\n".join(lines)


def _data_section(content: ModelCardContent) -> str:
    data = content.data
    rows = [["training", public_name(data.train), str(data.num_train)]]
    held_out = (
        public_name(data.validation) or f"{content.config.data.validation_rate:.0%} held out of the training examples"
    )
    rows.append(["validation", held_out, str(data.num_validation)])
    text = f"## Data\n\n{markdown_table(['split', 'source', 'examples'], rows)}"
    if data.fingerprint:
        text += f"\nFingerprint of the training examples: `{data.fingerprint}`.\n"
    if data.label_counts:
        total = max(1, sum(data.label_counts.values()))
        counts = [[name, str(count), f"{count / total:.1%}"] for name, count in data.label_counts.items()]
        text += f"\n{markdown_table(['label', 'training examples', 'share'], counts)}"
    return text


def _results_section(content: ModelCardContent) -> str:
    rows = comparison_rows(content.metrics_before, content.metrics_after, content.interval, content.primary)
    text = f"## Results\n\nOn the {content.data.num_validation} validation examples, step {content.step}:\n\n"
    text += markdown_table(["metric", "before", "after", "change"], rows)
    if content.interval is not None:
        text += f"\nIn brackets: {content.interval.confidence:.0%} bootstrap interval over the examples.\n"
    if content.metrics_test:
        test = [[name, f"{value:.4f}"] for name, value in content.metrics_test.items()]
        text += f"\nOn the test set:\n\n{markdown_table(['metric', 'value'], test)}"
    if content.report is not None:
        text += f"\n### Scores per label\n\n{markdown_table(LABEL_HEADERS, label_rows(content.report))}"
        headers, confusion = confusion_rows(content.report)
        if confusion:
            text += f"\n### Confusion\n\n{markdown_table(headers, confusion)}"
    shown = [name for name in PLOT_CAPTIONS if name in content.plots]
    if shown:
        links = "\n".join(f"![{PLOT_CAPTIONS[name]}](plots/{name})\n" for name in shown)
        text += f"\n### Training curves\n\n{links}"
    return text


def _training_section(content: ModelCardContent) -> str:
    config = content.config.to_dict()
    sections = ("teacher", "student", "distillation", "intermediate", "train", "model", "mesh")
    options = public_options(flatten_options({name: config[name] for name in sections if name in config}))
    hidden = (
        "teacher.path",
        "teacher.cache",
        "mesh.coordinator",
        "mesh.process_id",
        "mesh.num_processes",
        "model.path",
        "model.offline",
    )
    rows = [[name, value] for name, value in options.items() if name not in hidden and value not in ("", "[]")]
    facts = [f"seed {content.config.train.seed}"]
    facts += [f"{format_duration(content.seconds)} (h:mm:ss) of training"] if content.seconds else []
    facts += [f"on {content.devices}"] if content.devices else []
    text = f"## Training\n\n{', '.join(facts)}.\n"
    if content.command:
        text += f"\n```shell\n{content.command}\n```\n"
    text += f"\n<details><summary>All options</summary>\n\n{markdown_table(['option', 'value'], rows)}\n</details>\n"
    if content.versions:
        text += f"\n### Versions\n\n{markdown_table(['package', 'version'], [list(row) for row in content.versions.items()])}"
    return text


def limitations(content: ModelCardContent) -> list[str]:
    """Returns what the numbers of a run say against relying on the model.

    Args:
      content: What the card is written from.
    """
    data, lines = content.data, []
    lines.append(
        "It was measured on examples like those it was trained on; on other texts expect worse, and measure first."
    )
    if content.interval is not None:
        width = content.interval.high - content.interval.low
        lines.append(
            f"With {data.num_validation} validation examples, {content.primary} is known to about ±{width / 2:.3f}; smaller "
            "differences between models mean nothing."
        )
    if not content.metrics_test:
        lines.append("The checkpoint was chosen on the validation examples, so their scores are slightly optimistic.")
    if content.report is not None:
        pairs = list(zip(content.report.labels, content.report.scores, strict=True))
        rare = [name for name, scores in pairs if scores.support < RARE_LABEL]
        if rare:
            lines.append(f"Fewer than {RARE_LABEL} validation examples, so uncertain scores: {_names(rare)}.")
        never = [name for name, scores in pairs if scores.support and scores.recall == 0]
        if never:
            lines.append(f"Never found in the validation examples: {_names(never)}.")
    counts = [count for count in data.label_counts.values() if count]
    if counts and max(counts) >= 5 * min(counts):
        lines.append(
            f"The labels are unbalanced: the most frequent has {max(counts) / min(counts):.0f} times the examples of the rarest."
        )
    if data.num_truncated:
        lines.append(
            f"{data.num_truncated} of {data.num_train} training examples were longer than {data.max_length} tokens and were "
            "cut; what stands after that is not seen."
        )
    lines.append("It inherits the biases of the texts that it and its base model were trained on.")
    return lines


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(markdown_cell(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def build_model_card(content: ModelCardContent) -> str:
    """Returns the text of a model card: front matter, description, results, training, limits and how to use it.

    Paths are cut to their last part, so the card tells nothing about the machine it was written on.

    Args:
      content: What the run measured.
    """
    snippets = usage_snippets(content.task, content.model_config.problem_type, content.example_text, content.is_pair)
    usage = "\n".join(f"With {name}:\n\n```python\n{code}```\n" for name, code in snippets.items())
    limits = "".join(f"- {line}\n" for line in limitations(content))
    sections = [
        _introduction(content),
        f'## How to use it\n\nIn the folder of this card, or with its path in place of `"."`:\n\n{usage}',
        _results_section(content),
        _data_section(content),
        _training_section(content),
        f"## Limitations\n\n{limits}",
    ]
    return f"{_front_matter(content)}\n" + "\n".join(sections)
