"""Inference speed of BERT-base against its peers, in one run.

    python -m benchmarks.inference --rounds 7 --json results/inference.json

Each step is a forward pass of a two-class classifier on a batch of token ids, all of one length. ``benchmarks.sentences``
measures text in to labels out.
"""

import argparse
import pathlib
import sys
import tempfile

from benchmarks.models import base_model
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings


def build_peers(folder: str, arguments: argparse.Namespace) -> list[Peer]:
    """Returns the rows of the table.

    Args:
      folder: Model that all peers load.
      arguments: Batch size, length and interpreters.
    """

    def settings(variant: str) -> Settings:
        return Settings("infer", variant, folder, arguments.batch_size, arguments.length)

    peers = [
        Peer("torch autocast bf16", "torch_peer", settings("autocast")),
        Peer("flaxbert bf16", "flaxbert_peer", settings("bf16")),
        Peer("onnxruntime int8", "onnx_peer", settings("int8")),
        Peer("flaxbert int8", "flaxbert_peer", settings("int8")),
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
    return [peer for peer in peers if not arguments.only or any(word == peer.name for word in arguments.only)]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each peer")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--group", type=int, default=6, help="peers alive together")
    parser.add_argument("--reference", default="torch autocast bf16", help="peer that ratios refer to")
    parser.add_argument("--only", nargs="*", default=[], help="names of the peers to measure; default all")
    parser.add_argument("--keras-python", default=sys.executable, help="interpreter with keras-hub")
    parser.add_argument("--json", default="results/inference.json", help="file of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        folder = base_model(pathlib.Path(scratch), arguments.layers)
        rows = measure(build_peers(str(folder), arguments), arguments.rounds, arguments.group, arguments.reference)
    print(table(rows, arguments.reference))
    write_json(arguments.json, {"machine": machine(), "reference": arguments.reference, "rows": rows})


if __name__ == "__main__":
    main()
