"""A BERT-base classifier in flaxbert and, exported, in ONNX Runtime and OpenVINO: float32, dynamic and static int8, one run for each shape.

    python -m benchmarks.engines --rounds 9 --shapes 16x128 1x128 --json results/engines.json

All files are made of one model with random weights before anything is measured. What static int8 is calibrated with is the same for
flaxbert's ranges and for NNCF. ``--reduced-range`` is for processors without VNNI or AMX, where sums of byte products overflow.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.models import base_model
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings

REFERENCE = "openvino nncf int8"
"""What ratios refer to: OpenVINO's own static int8, of flaxbert's float32 export."""

NUM_SAMPLES = 16


def _samples(arguments: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    batches = [Settings("infer", "", "", 1, arguments.calibration_length, seed).batch() for seed in range(NUM_SAMPLES)]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: batch[name].astype(np.int64) for name in names} for batch in batches]


def _nncf(source: pathlib.Path, target: pathlib.Path, samples: list[dict[str, np.ndarray]]) -> None:
    """Quantizes an ONNX file by NNCF as it quantizes transformers."""
    from flaxbert.export import engines

    openvino = engines.require("openvino", "NNCF")
    import nncf

    model = openvino.Core().read_model(str(source))
    quantized = nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, str(target), compress_to_fp16=False)


class Files:
    """The files that peers run, each made when it is first asked for.

    Args:
      folder: Where they go.
      model: Folder of the model.
      arguments: Options of the program.
    """

    def __init__(self, folder: pathlib.Path, model: str, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.model = model
        self.arguments = arguments
        self.samples = _samples(arguments)

    def make(self, name: str) -> pathlib.Path:
        """Returns a file.

        Args:
          name: Which.
        """
        maker: Callable[[], pathlib.Path] = getattr(self, name)
        return maker()

    def _export(self, name: str, **settings: Any) -> pathlib.Path:
        target = self.folder / name
        if not target.exists():
            print(f"exporting {name} …", file=sys.stderr, flush=True)
            import flaxbert
            from flaxbert.export import ExportOptions, export_model

            options = ExportOptions(verify=False, reduced_range=self.arguments.reduced_range, **settings)
            model = flaxbert.load(self.model)
            export_model(model, target, options, ranges=self._ranges(model, options))
        return target / ("openvino_model.xml" if settings.get("format") == "openvino" else "model.onnx")

    def _ranges(self, model: Any, options: Any) -> Any:
        if options.int8 != "static":
            return None
        from flaxbert.export.calibration import measure_ranges
        from flaxbert.export.export import prepare
        from flaxbert.export.signature import signature_of

        return measure_ranges(signature_of(prepare(model, options)[0]), self.samples)

    def f32(self) -> pathlib.Path:
        """flaxbert's float32 export."""
        return self._export("f32")

    def dynamic(self) -> pathlib.Path:
        """flaxbert's dynamic int8 export."""
        return self._export("dynamic", int8="dynamic")

    def static(self) -> pathlib.Path:
        """flaxbert's static int8 export."""
        return self._export("static", int8="static")

    def static_ir(self) -> pathlib.Path:
        """The same as OpenVINO's IR."""
        return self._export("static_ir", int8="static", format="openvino")

    def static_scores_ir(self) -> pathlib.Path:
        """The same with queries and keys rounded."""
        return self._export("static_scores_ir", int8="static", format="openvino", quantize_attention=True)

    def f32_quantized_by_onnxruntime(self) -> pathlib.Path:
        """flaxbert's float32 export, quantized by ONNX Runtime's ``quantize_dynamic``."""
        target = self.folder / "ort_dynamic.onnx"
        if not target.exists():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(self.f32(), target, weight_type=QuantType.QInt8, per_channel=True)
        return target

    def nncf(self) -> pathlib.Path:
        """flaxbert's float32 export, quantized by NNCF."""
        target = self.folder / "nncf.xml"
        if not target.exists():
            _nncf(self.f32(), target, self.samples)
        return target

    def torch_nncf(self) -> pathlib.Path:
        """torch's own export, quantized by NNCF."""
        target = self.folder / "torch_nncf.xml"
        if not target.exists():
            from benchmarks.peers.onnx_peer import export_torch

            source = self.folder / "torch.onnx"
            export_torch(Settings("infer", "f32", self.model, 2, 16), source)
            _nncf(source, target, self.samples)
        return target


ROWS: tuple[tuple[str, str, str], ...] = (
    (REFERENCE, "openvino", "nncf"),
    ("openvino flaxbert static int8", "openvino", "static_ir"),
    ("openvino flaxbert static, q·k int8", "openvino", "static_scores_ir"),
    ("openvino nncf int8 of torch's", "openvino", "torch_nncf"),
    ("openvino f32", "openvino f32", "f32"),
    ("onnxruntime flaxbert static int8", "onnxruntime", "static"),
    ("onnxruntime flaxbert dynamic int8", "onnxruntime", "dynamic"),
    ("onnxruntime quantize_dynamic", "onnxruntime", "f32_quantized_by_onnxruntime"),
    ("onnxruntime f32", "onnxruntime", "f32"),
)
"""Name, variant of ``engine_peer`` and file of the rows that engines run."""

OTHERS: tuple[tuple[str, str, str], ...] = (
    ("flaxbert int8", "flaxbert_peer", "int8"),
    ("flaxbert f32", "flaxbert_peer", "f32"),
    ("onnxruntime int8 of torch's", "onnx_peer", "int8"),
)
"""Name, module and variant of the rows that load the model themselves."""


def peers_of(files: Files, batch_size: int, length: int, only: list[str]) -> list[Peer]:
    """Returns the rows of one shape.

    Args:
      files: The files.
      batch_size: Rows of the batch.
      length: Tokens of a row.
      only: Names to measure; empty: all.
    """
    peers = []
    for name, variant, file in ROWS:
        if not only or name in only or name == REFERENCE:
            settings = Settings("infer", variant, str(files.make(file)), batch_size, length)
            peers.append(Peer(name, "engine_peer", settings))
    for name, module, variant in OTHERS:
        if not only or name in only:
            peers.append(Peer(name, module, Settings("infer", variant, files.model, batch_size, length)))
    return peers


def main() -> None:
    """Exports, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each peer")
    parser.add_argument("--shapes", nargs="*", default=["16x128", "1x128"], help="batch x length")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--group", type=int, default=4, help="peers alive together")
    parser.add_argument("--only", nargs="*", default=[], help="names of the peers to measure; default all")
    parser.add_argument("--calibration-length", type=int, default=64, help="tokens of each of the calibration inputs")
    parser.add_argument("--reduced-range", action="store_true", help="codes of at most 63")
    parser.add_argument("--json", default="results/engines.json", help="file of the results")
    arguments = parser.parse_args()
    shapes: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        model = str(base_model(pathlib.Path(scratch), arguments.layers))
        files = Files(pathlib.Path(scratch), model, arguments)
        for shape in arguments.shapes:
            batch_size, length = map(int, shape.split("x"))
            peers = peers_of(files, batch_size, length, arguments.only)
            shapes[shape] = measure(peers, arguments.rounds, arguments.group, REFERENCE)
            print(f"\n{shape} tokens\n{table(shapes[shape], REFERENCE)}", flush=True)
    document = {
        "machine": machine(),
        "reference": REFERENCE,
        "reduced_range": arguments.reduced_range,
        "shapes": shapes,
    }
    write_json(arguments.json, document)


if __name__ == "__main__":
    main()
