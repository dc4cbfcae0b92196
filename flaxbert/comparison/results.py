"""What a comparison found, as data, JSON and text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.comparison.deviations import LayerError, WeightErrors
from flaxbert.comparison.folders import ModelFolder
from flaxbert.comparison.lineage import lineage_of
from flaxbert.comparison.loading import Loading
from flaxbert.comparison.products import low_precision_share
from flaxbert.comparison.quality import Quality
from flaxbert.comparison.settings import ComparisonSettings
from flaxbert.comparison.speed import Latency
from flaxbert.core.units import format_bytes, format_count
from flaxbert.evaluation.report import format_metric, text_table
from flaxbert.train.provenance import public_name, public_options

FORMAT_VERSION = 1
"""Version of ``comparison.json``; ``comparison.schema.json`` beside this file describes it."""


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """What was found out about one model.

    Attributes:
      folder: The model and how it is stored.
      loading: Growth of a fresh process that loads it; None where that was not measured.
      latencies: Speed by length and batch size.
      products: Multiplications of one forward pass by type of the operands.
      quality: Its quality; None where no examples were given or it was refused.
      layers: Error of hidden states; empty for the reference and where it was refused.
      output_error: Relative error of the head's scores, or of sentence vectors, on the same texts; None where they can not be compared.
      weights: Error of weights; None for the reference and where it was refused.
      refused: Reason by ``quality``, ``hidden states``, ``weights`` or ``speed`` for what could not be compared.
    """

    folder: ModelFolder
    loading: Loading | None = None
    latencies: tuple[Latency, ...] = ()
    products: Mapping[str, float] = dataclasses.field(default_factory=dict)
    quality: Quality | None = None
    layers: tuple[LayerError, ...] = ()
    output_error: float | None = None
    weights: WeightErrors | None = None
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def low_precision_share(self, compute_type: str) -> float:
        """Returns the share of multiplications that run in lower precision than the type asked for.

        Args:
          compute_type: The type.
        """
        return low_precision_share(dict(self.products), compute_type)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A whole comparison.

    Attributes:
      models: The models, the reference first.
      settings: What was measured.
      source: What the examples are called; empty without.
      command: The command that repeats it; empty for a call from a program.
      date: When it was made, in UTC, as ISO 8601.
      machine: Processor, cores, Python.
      devices: Devices that the models ran on.
      versions: Versions of libraries by name.
    """

    models: tuple[ModelResult, ...]
    settings: ComparisonSettings
    source: str = ""
    command: str = ""
    date: str = ""
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    devices: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def reference(self) -> ModelResult:
        """The model that others are compared with."""
        return self.models[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values; paths are cut to their last part."""
        settings = dataclasses.asdict(self.settings)
        shown = public_options({name: settings[name] for name in ("examples", "texts")})
        return {
            "format_version": FORMAT_VERSION,
            "date": self.date,
            "command": self.command,
            "machine": dict(self.machine),
            "devices": self.devices,
            "versions": dict(self.versions),
            "settings": {**settings, **{name: public_name(value) for name, value in shown.items()}},
            "reference": self.reference.folder.name,
            "models": [finite(_model_to_dict(model, self.settings.precision)) for model in self.models],
        }

    def to_text(self) -> str:
        """Returns the tables that a terminal shows."""
        compute = self.settings.precision
        rows = [_overview_row(model, self.reference, compute) for model in self.models]
        text = text_table(OVERVIEW_HEADERS, rows, title="Size and products", highlight=self.reference.folder.name)
        speed = [row for model in self.models for row in speed_rows(model)]
        if speed:
            text += "\n" + text_table(SPEED_HEADERS, speed, title="Speed")
        quality = [quality_row(model) for model in self.models if model.quality is not None]
        if quality:
            text += "\n" + text_table(QUALITY_HEADERS, quality, title=f"Quality on {self.source}")
        errors = [error_row(model) for model in self.models[1:] if model.layers or model.weights]
        if errors:
            text += "\n" + text_table(ERROR_HEADERS, errors, title="Distance from the reference")
        refused = [
            f"{model.folder.name}: no {what}, since {reason}"
            for model in self.models
            for what, reason in model.refused.items()
        ]
        return text + "".join(f"{line}\n" for line in ([""] if refused else []) + refused)


def finite(value: Any) -> Any:
    """Returns plain values with None in place of numbers that are not finite, which JSON does not have.

    Args:
      value: Numbers, text, lists and dictionaries.
    """
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


OVERVIEW_HEADERS = ("model", "on disk", "in memory", "of first", "parameters", "not zero", "stored as", "low precision")
SPEED_HEADERS = ("model", "rows x tokens", "p50 ms", "p90 ms", "rows/s", "x first")
QUALITY_HEADERS = ("model", "metric", "value", "95 % interval", "difference", "95 % interval", "agreement")
ERROR_HEADERS = ("model", "last block", "outputs", "leaves", "worst rms", "worst entry")


def ratio(value: float, reference: float) -> str:
    """Returns a share of the reference for people.

    Args:
      value: The value.
      reference: The reference's.
    """
    return f"{value / reference:.3f}" if reference else "-"


def storage_text(model: ModelResult) -> str:
    """Returns how leaves are stored in one line.

    Args:
      model: The model.
    """
    return ", ".join(f"{e.num_leaves} {e.form} ({e.bits_per_weight:.3g} bits)" for e in model.folder.size.storage)


def _overview_row(model: ModelResult, reference: ModelResult, compute: str) -> list[str]:
    size = model.folder.size
    return [
        model.folder.name,
        format_bytes(model.folder.file_bytes),
        format_bytes(size.size_bytes),
        ratio(size.size_bytes, reference.folder.size.size_bytes),
        format_count(size.num_parameters),
        f"{size.num_nonzero / size.num_parameters:.1%}" if size.num_parameters else "-",
        storage_text(model),
        f"{model.low_precision_share(compute):.0%}" if model.products else "-",
    ]


def speed_rows(model: ModelResult) -> list[list[str]]:
    """Returns the rows of the table of speed.

    Args:
      model: The model.
    """
    return [
        [
            model.folder.name,
            f"{entry.batch_size} x {entry.length}",
            f"{entry.median_seconds * 1e3:.2f}",
            f"{entry.p90_seconds * 1e3:.2f}",
            f"{entry.rows_per_second:.1f}",
            f"{entry.speedup:.2f}",
        ]
        for entry in model.latencies
    ]


def quality_row(model: ModelResult) -> list[str]:
    """Returns the row of the table of quality.

    Args:
      model: A model with a quality.
    """
    quality = model.quality
    if quality is None:
        return [model.folder.name, *["-"] * (len(QUALITY_HEADERS) - 1)]
    interval, difference = quality.interval, quality.difference
    return [
        model.folder.name,
        quality.primary,
        format_metric(quality.metrics[quality.primary]),
        f"{format_metric(interval.low)} to {format_metric(interval.high)}" if interval else "-",
        f"{difference.value:+.4f}" if difference else "-",
        f"{difference.low:+.4f} to {difference.high:+.4f}" if difference else "-",
        f"{quality.agreement:.4f}" if quality.agreement is not None else "-",
    ]


def error_row(model: ModelResult) -> list[str]:
    """Returns the row of the table of errors.

    Args:
      model: A model that is not the reference.
    """
    leaves: Sequence[Any] = model.weights.leaves if model.weights else ()
    return [
        model.folder.name,
        f"{model.layers[-1].relative_error:.2%}" if model.layers else "-",
        f"{model.output_error:.2%}" if model.output_error is not None else "-",
        str(len(leaves)) if model.weights else "-",
        f"{max((leaf.rms_relative_error for leaf in leaves), default=0.0):.2%}" if leaves else "-",
        f"{max((leaf.max_relative_error for leaf in leaves), default=0.0):.2%}" if leaves else "-",
    ]


def _model_to_dict(model: ModelResult, compute: str) -> dict[str, Any]:
    folder, size, quality = model.folder, model.folder.size, model.quality
    return {
        "name": folder.name,
        "source": public_name(folder.source),
        "family": folder.config.family,
        "task": folder.task,
        "num_layers": folder.config.num_hidden_layers,
        "hidden_size": folder.config.hidden_size,
        "file_bytes": folder.file_bytes,
        "memory_bytes": size.size_bytes,
        "loading": None if model.loading is None else dataclasses.asdict(model.loading),
        "num_parameters": size.num_parameters,
        "num_nonzero": size.num_nonzero,
        "storage": [{**dataclasses.asdict(entry), "bits_per_weight": entry.bits_per_weight} for entry in size.storage],
        "products": dict(model.products),
        "low_precision_share": model.low_precision_share(compute),
        "latencies": [dataclasses.asdict(entry) for entry in model.latencies],
        "quality": None if quality is None else dataclasses.asdict(quality),
        "hidden_states": [dataclasses.asdict(entry) for entry in model.layers],
        "output_error": model.output_error,
        "weights": None
        if model.weights is None
        else {
            "leaves": [dataclasses.asdict(leaf) for leaf in model.weights.leaves],
            "left_out": dict(model.weights.left_out),
        },
        "refused": dict(model.refused),
        "lineage": lineage_of(folder.report),
        "compression_report": folder.report,
    }
