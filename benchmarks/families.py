"""Inference speed of every family at base size against transformers on torch, at the same precision, in one run for each family.

    python -m benchmarks.families --rounds 7 --only modernbert deberta-v2 --json results/families.json

Each step is a forward pass of a two-class classifier with random weights on a batch of token ids.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from typing import Any

from benchmarks.models import save_random
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings

BASE: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
"""Sizes of BERT-base."""

AFTER_PADDING: dict[str, Any] = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "vocab_size": 50265,
    "pad_token_id": 1,
}

SIZES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": AFTER_PADDING,
    "distilbert": {"num_hidden_layers": 6, "hidden_dim": 3072},
    "albert": {"vocab_size": 30000, "embedding_size": 128},
    "electra": {"embedding_size": 768},
    "ernie": {"use_task_id": True},
    "convbert": {"embedding_size": 768, "head_ratio": 2, "conv_kernel_size": 9},
    "mpnet": AFTER_PADDING,
    "deberta": {
        "vocab_size": 50265,
        "type_vocab_size": 0,
        "relative_attention": True,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
    },
    "deberta-v2": {
        "vocab_size": 128100,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
    },
    "modernbert": {
        "vocab_size": 50368,
        "num_hidden_layers": 22,
        "intermediate_size": 1152,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
    },
    "nomic_bert": {"max_position_embeddings": 2048},
}
"""What published base models have otherwise; XLM-R and CamemBERT compute what RoBERTa computes."""


THEIRS: dict[str, str] = {"f32": "f32", "bf16": "autocast"}
"""What torch's variants of a precision are called."""

NO_AUTOCAST = ("deberta",)
"""Families that fail in torch's autocast, because they hide scores by float32's lowest number; their weights are bfloat16 there."""


def peers_of(family: str, folder: str, vocab_size: int, arguments: argparse.Namespace) -> list[Peer]:
    """Returns the rows of one family.

    Args:
      family: The family.
      folder: Model that both load.
      vocab_size: Its number of tokens.
      arguments: Batch size, length and precisions.
    """
    peers = []
    for kind, theirs in {**THEIRS, **({"bf16": "bf16"} if family in NO_AUTOCAST else {})}.items():
        if kind not in arguments.precision:
            continue
        settings = Settings("infer", theirs, folder, arguments.batch_size, arguments.length, vocab_size=vocab_size)
        peers.append(Peer(f"torch {theirs}", "torch_peer", settings))
        peers.append(Peer(f"flaxbert {kind}", "flaxbert_peer", dataclasses.replace(settings, variant=kind)))
    return peers


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each peer")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--only", nargs="*", default=list(SIZES), choices=list(SIZES), help="families; default all")
    parser.add_argument("--json", default="results/families.json", help="file of the results")
    arguments = parser.parse_args()
    families: dict[str, list[dict[str, Any]]] = {}
    for family in arguments.only:
        sizes = {**BASE, **SIZES[family]}
        with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
            folder = str(save_random(pathlib.Path(scratch) / "model", family, sizes))
            peers = peers_of(family, folder, sizes["vocab_size"], arguments)
            rows = []
            for theirs, ours in zip(peers[::2], peers[1::2], strict=True):
                rows.extend(measure([theirs, ours], arguments.rounds, 2, theirs.name))
        families[family] = rows
        print(f"\n{family}, {arguments.batch_size} x {arguments.length} tokens\n{table(rows, 'torch')}", flush=True)
    write_json(arguments.json, {"machine": machine(), "families": families})


if __name__ == "__main__":
    main()
