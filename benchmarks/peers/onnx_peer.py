"""ONNX Runtime: the model exported by torch, float32 or dynamically quantized to int8."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.settings import Settings, serve


def export_torch(settings: Settings, target: pathlib.Path) -> None:
    """Writes the model of a folder as torch exports it.

    Args:
      settings: Which model; batch and length are those of the example.
      target: The ONNX file.
    """
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        settings.folder, attn_implementation="eager"
    ).eval()

    class Plain(torch.nn.Module):
        """The model with positional inputs and its logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            """Returns the logits."""
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits

    batch = settings.batch()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    arguments = tuple(torch.as_tensor(batch[name]).long() for name in names)
    torch.onnx.export(
        Plain().eval(),
        arguments,
        str(target),
        input_names=names,
        output_names=["logits"],
        opset_version=17,
        dynamo=False,
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
    )


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one forward pass and the versions.

    Args:
      settings: What is measured; variants f32 and int8.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = pathlib.Path(tempfile.mkdtemp(prefix="flaxbert-bench-"))
    path = folder / "model.onnx"
    export_torch(settings, path)
    if settings.variant == "int8":
        from onnxruntime.transformers.optimizer import optimize_model

        optimized = optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=768, opt_level=0)
        optimized.save_model_to_file(str(folder / "optimized.onnx"))
        quantize_dynamic(
            folder / "optimized.onnx",
            folder / "int8.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # the fused nodes have no inferred types
        )
        path = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    wanted = {value.name for value in session.get_inputs()}
    feed = {name: array.astype("int64") for name, array in settings.batch().items() if name in wanted}

    def one() -> float:
        return float(np.asarray(session.run(None, feed)[0])[0, 0])

    return one, {"version": f"onnxruntime {onnxruntime.__version__}", "device": session.get_providers()[0]}


if __name__ == "__main__":
    serve(prepare)
