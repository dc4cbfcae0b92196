"""A file that was made beforehand, in ONNX Runtime or OpenVINO; the variant is ``onnxruntime``, ``openvino`` or ``openvino f32``."""

import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.settings import Settings, serve


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one forward pass and the versions.

    Args:
      settings: What is measured; ``folder`` is the file.
    """
    from flaxbert.export import engines

    name, _, precision = settings.variant.partition(" ")
    file = pathlib.Path(settings.folder)
    open_engine = {"onnxruntime": engines.open_onnxruntime, "openvino": engines.open_openvino}[name]
    engine = open_engine(file) if name == "onnxruntime" else engines.open_openvino(file, precision=precision)
    batch = settings.batch()
    library = engines.require(name, "The benchmark")
    version = str(getattr(library, "__version__", "")).split("-")[0]

    def one() -> float:
        return float(engine(batch)["logits"][0, 0])

    return one, {"version": f"{name} {version}", "device": "cpu", "file_bytes": _size_bytes(file)}


def _size_bytes(file: pathlib.Path) -> int:
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if file.suffix == ".xml" else 0)


if __name__ == "__main__":
    serve(prepare)
