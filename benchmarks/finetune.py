"""Training speed and peak memory of BERT-base against its peers, in one run.

    python -m benchmarks.finetune --rounds 5 --json results/finetune.json

The measured step is a whole optimizer step of a two-class classifier: forward, backward, clipping, AdamW, schedule, with
dropout as the checkpoint says. Every peer runs in a process of its own and takes its turn.
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
        return Settings("train", variant, folder, arguments.batch_size, arguments.length)

    return [
        Peer("torch f32", "torch_peer", settings("f32")),
        Peer("flaxbert f32", "flaxbert_peer", settings("f32")),
        Peer("torch autocast bf16", "torch_peer", settings("autocast")),
        Peer("flaxbert bf16", "flaxbert_peer", settings("bf16")),
        Peer("torch f32 compiled", "torch_peer", settings("f32+compiled")),
        Peer("torch autocast bf16 compiled", "torch_peer", settings("autocast+compiled")),
        Peer("keras-hub f32", "keras_peer", settings("f32"), arguments.keras_python),
        Peer("keras-hub bf16", "keras_peer", settings("bf16"), arguments.keras_python),
    ]


if __name__ == "__main__":
    compare("finetune", __doc__, build_peers, "torch f32", rounds=5, group_size=4)
