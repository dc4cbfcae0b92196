"""Engines that run exported files, for checks and benchmarks."""

import contextlib
import importlib
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.errors import DependencyError

Engine = Callable[[Mapping[str, Int[np.ndarray, "..."]]], dict[str, np.ndarray]]
"""Takes integer arrays by name and returns outputs by name."""

ONNX_FILE = "model.onnx"
OPENVINO_FILE = "openvino_model.xml"

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "torch": "test"}
"""The extra that installs each optional package."""


_REPORTS_USE = "openvino_telemetry"


def require(package: str, purpose: str) -> Any:
    """Returns an optional package.

    Args:
      package: Its name.
      purpose: What needs it, for the message.

    Raises:
      DependencyError: It is not installed; says what installs it.
    """
    try:
        with _silent():
            return importlib.import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"{purpose} needs the package {package} ({error}); install it with pip install 'flaxbert[{EXTRAS[package]}]'."
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides a package while another is imported: openvino would report its use over the network, from a process that it forks off JAX's threads."""
    found = sys.modules.get(_REPORTS_USE)
    sys.modules[_REPORTS_USE] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_REPORTS_USE]
        if found is not None:
            sys.modules[_REPORTS_USE] = found


def open_onnxruntime(file: pathlib.Path, *, exact: bool = False, num_threads: int = 0) -> Engine:
    """Returns ONNX Runtime on CPU with a file.

    Args:
      file: The ONNX file.
      exact: Whether int8 products are exact on processors without VNNI too, at the price of speed.
      num_threads: Threads of one product; 0 leaves the choice to the engine.
    """
    runtime = require("onnxruntime", "Running an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        inputs = {entry.name: np.asarray(batch[entry.name], np.int64) for entry in session.get_inputs()}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def open_openvino(file: pathlib.Path, *, precision: str = "f32", num_threads: int = 0) -> Engine:
    """Returns OpenVINO on CPU with a file.

    Args:
      file: An IR or ONNX file.
      precision: Type of what is not int8: f32 or bf16; empty leaves the choice to the engine, which takes bf16 where the processor has it.
      num_threads: Threads; 0 leaves the choice to the engine.
    """
    openvino = require("openvino", "Running an OpenVINO model")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    inputs = [entry.get_any_name() for entry in compiled.inputs]
    names = [
        entry.get_names() for entry in compiled.outputs
    ]  # an output has its own name and that of the node that it ends

    one_at_a_time = threading.Lock()  # a compiled model has one request, whose outputs it writes over

    def run(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(batch[name], np.int64) for name in inputs}
        with one_at_a_time:
            results = compiled(arrays)
            outputs = [np.array(results[place]) for place in range(len(names))]
        return {name: array for known, array in zip(names, outputs, strict=True) for name in known}

    return run
