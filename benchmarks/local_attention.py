"""Speed of ModernBERT's layers that see a window beside those that see the whole input, on long inputs, in one run.

    python -m benchmarks.local_attention --length 4096 --rounds 5 --json results/local_attention.json

Each step is a forward pass of a two-class classifier of the size of ModernBERT-base with random weights, whose layers are all of
one kind.
"""

import argparse
import pathlib
import tempfile

from benchmarks.families import BASE, SIZES, THEIRS
from benchmarks.models import save_random
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings

KINDS: dict[str, str] = {"global": "full_attention", "local": "sliding_attention"}
"""What ``layer_types`` of ``config.json`` calls them."""


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each peer")
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=2, help="layers of each model")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--json", default="results/local_attention.json", help="file of the results")
    arguments = parser.parse_args()
    sizes = {**BASE, **SIZES["modernbert"], "num_hidden_layers": arguments.layers}
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        peers = []
        for name, kind in KINDS.items():
            settings = {**sizes, "layer_types": [kind] * arguments.layers}
            folder = str(save_random(pathlib.Path(scratch) / name, "modernbert", settings))
            for side, variant in (("flaxbert", arguments.precision), ("torch", THEIRS[arguments.precision])):
                job = Settings(
                    "infer", variant, folder, arguments.batch_size, arguments.length, vocab_size=sizes["vocab_size"]
                )
                peers.append(Peer(f"{side} {variant} {name}", f"{side}_peer", job))
        rows = measure(peers, arguments.rounds, len(peers), peers[0].name)
    print(f"\nModernBERT, {arguments.layers} layers, {arguments.batch_size} x {arguments.length} tokens")
    print(table(rows, peers[0].name))
    write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
