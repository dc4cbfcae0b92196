"""``export_model``: a model as a folder for another engine, complete and compared, or not at all."""

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.core.arrays import QuantizedArray, is_quantized, is_typed, materialize
from flaxbert.core.low_bit_arrays import StaticQuantizedArray
from flaxbert.core.trees import computes_in_int8, flatten_names, map_leaves
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, WeightsError, nearest
from flaxbert.export import engines, verify
from flaxbert.export.signature import Signature, signature_of
from flaxbert.model import Model
from flaxbert.transforms import quantize
from flaxbert.weights.save import write_description, write_manifest
from flaxbert.weights.writers import fresh_folder

FORMATS = ("onnx", "stablehlo", "openvino", "hf")
"""What a model can be exported as."""

INT8_CHOICES = ("auto", "off", "dynamic", "static")
"""How int8 is exported."""

REDUCED_CODE = 63
"""Largest code of the reduced range: two products of a byte with one of these fit 16 bits."""

_FULL_CODE = 127

_WRITTEN_AS_STORED = ("quantized", "static", "grouped", "channel_grouped")
"""Kinds of leaves whose codes stand in ONNX files."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
      format: A name of ``FORMATS``.
      int8: ``auto`` keeps what the model has, ranges of static leaves too; ``off`` writes float32; ``dynamic`` rounds activations as they come; ``static`` in ranges
        that were measured beforehand. A float32 model is quantized first.
      reduced_range: Whether codes are kept within 63, for processors without VNNI or AMX, whose sums of byte products overflow.
      quantize_attention: Whether static int8 rounds queries and keys too, as NNCF does.
      verify: Whether the files are run and compared with the model.
      tolerance: Largest difference relative to the largest output, for int8 the root mean square of the differences relative to that of
        the outputs; 0 takes ``FLOAT_TOLERANCE`` or ``INT8_TOLERANCE``.
      calibration_method: As for ``Calibration``.
      percentile: The same.
      num_samples: The same.
    """

    format: str = "onnx"
    int8: str = "auto"
    reduced_range: bool = False
    quantize_attention: bool = False
    verify: bool = True
    tolerance: float = 0.0
    calibration_method: str = "min-max"
    percentile: float = 99.99
    num_samples: int = 300

    def __post_init__(self) -> None:
        for name, value, known in (("format", self.format, FORMATS), ("int8", self.int8, INT8_CHOICES)):
            if value not in known:
                raise ConfigError(f"Unknown {name} '{value}'; choose {', '.join(known)}.{nearest(value, known)}")
        if self.int8 in ("dynamic", "static") and self.format not in ("onnx", "openvino"):
            raise ConfigError(
                f"--int8 {self.int8} is for onnx and openvino; {self.format} takes 'auto', which keeps what the model has, or 'off'."
            )
        if self.tolerance < 0.0:
            raise ConfigError(f"tolerance is {self.tolerance}, but must not be negative.")


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
      files: Names of the files in the folder.
      comparisons: How far each output is from flaxbert's; empty where nothing was compared.
      notices: What the user should know.
    """

    files: tuple[str, ...]
    comparisons: tuple[verify.Comparison, ...]
    notices: tuple[str, ...]


def export_model(
    model: Model,
    output: str | pathlib.Path,
    options: ExportOptions = ExportOptions(),
    *,
    examples: TokenizedExamples | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> ExportResult:
    """Writes a model as a folder for another engine: the graph, ``config.json`` and the tokenizer's files.

    Args:
      model: The model.
      output: New folder.
      options: How.
      examples: Tokenized texts that static int8 is calibrated with.
      ranges: Smallest and largest activation by name of the leaf that they meet, instead of ``examples``.

    Returns:
      What was written, and how far it is from the model.

    Raises:
      ConfigError: An option does not fit the model, or static int8 has nothing to be calibrated with.
      DependencyError: A package of an extra is missing.
      WeightsError: The folder exists, or the exported model differs from flaxbert's; nothing is left then.
    """
    _require_packages(options, static=options.int8 == "static" and ranges is None)
    prepared, notices = prepare(model, options)
    signature = signature_of(prepared)
    with fresh_folder(pathlib.Path(output), overwrite=False) as folder:
        if options.format == "hf":
            comparisons = _write_hf(signature, folder, options, notices)
        else:
            is_int8 = _write_graph(signature, folder, options, examples, ranges, notices)
            write_description(folder, model.config, model.task, model.tokenizer, model.pooling)
            comparisons = _verify(signature, folder, options, examples, is_int8, notices)
            write_manifest(folder, model.task)
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return ExportResult(tuple(files), tuple(comparisons), tuple(notices))


def _require_packages(options: ExportOptions, static: bool) -> None:
    if options.format in ("onnx", "openvino"):
        engines.require("onnx", f"--format {options.format}")
    if options.format == "openvino":
        engines.require("openvino", "--format openvino")
    if static:
        engines.require("onnxruntime", "The calibration of static int8")


def prepare(model: Model, options: ExportOptions) -> tuple[Model, list[str]]:
    """Returns the model with the leaves that are exported, and what to say of them.

    Args:
      model: The model.
      options: How it is exported.

    Raises:
      ConfigError: int8 is asked for, but the model is quantized to something else.
    """
    model, notices = model.with_execution(scan_layers=False), []
    leaves = flatten_names(model.params)
    if options.int8 == "off" or options.format == "hf":
        written = [name for name, leaf in leaves.items() if is_typed(leaf)]
        if written:
            notices.append(f"{len(written)} typed leaves are written out in float32.")
        return model.replace(params=map_leaves(lambda _, leaf: materialize(leaf), model.params)), notices
    if options.int8 in ("dynamic", "static") and not computes_in_int8(model.params):
        kinds = sorted({leaf.kind for leaf in leaves.values() if is_quantized(leaf)})
        if kinds:
            raise ConfigError(
                f"--int8 {options.int8} asks for products in int8, but the leaves of the model are {', '.join(kinds)}; use --int8 auto, or "
                "start from the model before its quantization."
            )
        params, report = quantize(map_leaves(lambda _, leaf: materialize(leaf), model.params))
        model = model.replace(params=params)
        notices.append(f"The model was quantized to int8 first ({report.bytes_before} to {report.bytes_after} bytes).")
    if options.format == "stablehlo":
        return model, notices
    dense = sorted({leaf.kind for leaf in leaves.values() if is_typed(leaf) and leaf.kind not in _WRITTEN_AS_STORED})
    if dense:
        notices.append(f"Leaves of the kinds {', '.join(dense)} are written dense, in float32.")
    if options.reduced_range:
        model = model.replace(params=map_leaves(lambda _, leaf: reduce_range(leaf), model.params))
    return model, notices


def reduce_range(leaf: Any) -> Any:
    """Returns an int8 leaf whose codes are rounded once more, to magnitudes of at most 63; others as they are.

    Args:
      leaf: A leaf.
    """
    ratio = np.float32(REDUCED_CODE / _FULL_CODE)
    if not isinstance(leaf, QuantizedArray | StaticQuantizedArray):
        return leaf
    codes, scale = np.rint(np.asarray(leaf.codes) * ratio).astype(np.int8), np.asarray(leaf.scale) / ratio
    if isinstance(leaf, QuantizedArray):
        return QuantizedArray(codes, scale)
    shift = -np.asarray(leaf.input_zero) * scale * codes.sum(axis=-2, keepdims=True, dtype=np.float32)
    return dataclasses.replace(leaf, codes=codes, scale=scale, shift=shift.astype(np.float32))


def _write_graph(
    signature: Signature,
    folder: pathlib.Path,
    options: ExportOptions,
    examples: TokenizedExamples | None,
    ranges: Mapping[str, tuple[float, float]] | None,
    notices: list[str],
) -> bool:
    """Writes the graph and returns whether it computes in int8."""
    if options.format == "stablehlo":
        from flaxbert.export.stablehlo import write_stablehlo

        write_stablehlo(signature, folder)
        return computes_in_int8(signature.model.params)
    from flaxbert.export.onnx_file import build_graph, metadata_of, to_model, write_model

    products, is_int8 = _products(signature, options, examples, ranges)
    graph = to_model(build_graph(signature, products), metadata_of(signature.model))
    if options.format == "onnx":
        write_model(graph, folder / engines.ONNX_FILE)
        return is_int8
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-onnx-") as between:
        file = pathlib.Path(between) / engines.ONNX_FILE
        write_model(graph, file)
        write_openvino(file, folder / engines.OPENVINO_FILE)
    if is_int8 and options.int8 != "static":
        notices.append(
            "OpenVINO runs dynamic int8 slower than float32 on most processors; --int8 static is made for it."
        )
    return is_int8


def write_openvino(source: pathlib.Path, target: pathlib.Path) -> None:
    """Converts an ONNX file to OpenVINO's IR, an ``.xml`` with a ``.bin`` beside it.

    Args:
      source: The ONNX file.
      target: The ``.xml``.
    """
    openvino = engines.require("openvino", "--format openvino")
    # Not convert_model, which does the same and also reports its use over the network, from a forked process.
    openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)


def _products(
    signature: Signature,
    options: ExportOptions,
    examples: TokenizedExamples | None,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> tuple[Any, bool]:
    from flaxbert.export.integer_products import DynamicProducts, StaticProducts
    from flaxbert.export.products import Products

    leaves = flatten_names(signature.model.params)
    if not any(is_quantized(leaf) for leaf in leaves.values()):
        return Products(), False
    is_int8 = computes_in_int8(signature.model.params)
    unmeasured = [name for name, leaf in leaves.items() if isinstance(leaf, QuantizedArray) and name.endswith("kernel")]
    if options.int8 != "static" or not (unmeasured or options.quantize_attention):
        return DynamicProducts(), is_int8
    if ranges is None:
        if examples is None or not len(examples):
            raise ConfigError("Static int8 needs texts to measure activations with: --calibration FILE.")
        from flaxbert.export.calibration import Calibration, measure_ranges, sample_inputs

        calibration = Calibration(options.calibration_method, options.percentile, options.num_samples)
        ranges = measure_ranges(signature, sample_inputs(examples, signature, calibration.num_samples), calibration)
    early = options.format == "openvino"
    return StaticProducts(ranges=ranges, quantizes_scores=options.quantize_attention, rounds_early=early), True


def _verify(
    signature: Signature,
    folder: pathlib.Path,
    options: ExportOptions,
    examples: TokenizedExamples | None,
    is_int8: bool,
    notices: list[str],
) -> list[verify.Comparison]:
    if not options.verify:
        return []
    try:
        engine = _open(folder, options.format)
    except engines.DependencyError as error:
        notices.append(f"Not compared with the model: {error}")
        return []
    batches = verify.random_batches(signature) if examples is None else verify.sample_batches(examples, signature)
    comparisons = verify.compare(engine, signature, batches)
    tolerance = options.tolerance or (verify.INT8_TOLERANCE if is_int8 else verify.FLOAT_TOLERANCE)
    hint = ""
    if is_int8 and options.format != "stablehlo" and not options.reduced_range:
        hint = (
            " On processors without VNNI or AMX, engines let sums of int8 products overflow: try --reduced_range true."
        )
    verify.refuse_above(comparisons, tolerance, is_int8=is_int8, hint=hint)
    return comparisons


def _open(folder: pathlib.Path, format: str) -> engines.Engine:
    if format == "onnx":
        return engines.open_onnxruntime(folder / engines.ONNX_FILE)
    if format == "openvino":
        return engines.open_openvino(folder / engines.OPENVINO_FILE)
    from flaxbert.export.stablehlo import StableHloProgram

    return StableHloProgram(folder)


def _write_hf(
    signature: Signature, folder: pathlib.Path, options: ExportOptions, notices: list[str]
) -> list[verify.Comparison]:
    inner = folder / "model"
    signature.model.save(inner)
    for file in sorted(inner.iterdir()):
        shutil.move(file, folder / file.name)
    inner.rmdir()
    if options.verify:
        from flaxbert.evaluation.verify import verify_folder

        verification = verify_folder(folder, signature.model.task)
        if not verification.passed:
            raise WeightsError(
                f"The folder is not what the model computes. Nothing was kept.\n{verification.to_text()}"
            )
        notices.append(verification.to_text())
    return []
