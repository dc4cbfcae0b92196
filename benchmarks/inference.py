"""Inference speed of BERT-base against its peers, in one run.

    python -m benchmarks.inference --rounds 7 --json results/inference.json

Each step is a forward pass of a two-class classifier on a batch of token ids, all of one length. ``benchmarks.sentences``
measures text in to labels out. Rows with another engine's name are the model that ``export.in_engine`` returns, as ``flaxbert predict --engine`` runs it.
"""

import argparse

from benchmarks.runner import Peer, compare
from benchmarks.settings import Settings


def build_peers(folder: str, arguments: argparse.Namespace) -> list[Peer]:
    """Returns the rows of the table.

    Args:
      folder: Model that all peers load.
      arguments: Batch size, length and interpreters.
    """

    def settings(variant: str) -> Settings:
        return Settings("infer", variant, folder, arguments.batch_size, arguments.length)

    return [
        Peer("torch autocast bf16", "torch_peer", settings("autocast")),
        Peer("flaxbert bf16", "flaxbert_peer", settings("bf16")),
        Peer("onnxruntime int8", "onnx_peer", settings("int8")),
        Peer("flaxbert int8", "flaxbert_peer", settings("int8")),
        Peer("flaxbert static int8", "flaxbert_peer", settings("int8-static")),
        Peer("flaxbert static int8, OpenVINO", "flaxbert_peer", settings("int8-static-openvino")),
        Peer("flaxbert static int8, ONNX Runtime", "flaxbert_peer", settings("int8-static-onnxruntime")),
        Peer("torch f32", "torch_peer", settings("f32")),
        Peer("flaxbert f32", "flaxbert_peer", settings("f32")),
        Peer("torch bf16", "torch_peer", settings("bf16")),
        Peer("torch f32 compiled", "torch_peer", settings("f32+compiled")),
        Peer("torch autocast bf16 compiled", "torch_peer", settings("autocast+compiled")),
        Peer("onnxruntime f32", "onnx_peer", settings("f32")),
        Peer("sentence-transformers f32", "sentence_transformers_peer", settings("f32")),
        Peer("sentence-transformers bf16", "sentence_transformers_peer", settings("bf16")),
        Peer("keras-hub f32", "keras_peer", settings("f32"), arguments.keras_python),
        Peer("keras-hub bf16", "keras_peer", settings("bf16"), arguments.keras_python),
    ]


if __name__ == "__main__":
    compare("inference", __doc__, build_peers, "torch autocast bf16", rounds=7, group_size=6)
