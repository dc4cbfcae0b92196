"""Sentences in, labels out: tokenization, batching, padding and the forward pass, on real sentences of mixed lengths.

    python -m benchmarks.sentences --rounds 5 --json results/sentences.json

The peer is the transformers pipeline at several batch sizes, since the best one depends on the machine; the ratios refer to
the fastest of them. The sentences are those of SST-2's dev split where ``FLAXBERT_TEST_DATA`` names the data, or of any
file with one sentence a line.
"""

import argparse
import csv
import os
import pathlib
import tempfile

from benchmarks.models import sentence_model
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings


def sst2_sentences() -> list[str]:
    """Returns the sentences of SST-2's dev split.

    Raises:
      SystemExit: The data are not there.
    """
    data = os.environ.get("FLAXBERT_TEST_DATA")
    path = pathlib.Path(data or "") / "sst2" / "dev.tsv"
    if not data or not path.is_file():
        raise SystemExit("Name a file of sentences with --texts, or the folder of data in FLAXBERT_TEST_DATA.")
    with path.open(encoding="utf-8", newline="") as file:
        return [row["sentence"].strip() for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def build_peers(folder: str, texts: str, num_texts: int, arguments: argparse.Namespace) -> list[Peer]:
    """Returns the rows of the table.

    Args:
      folder: Model that all peers load.
      texts: File of sentences.
      num_texts: Sentences in it.
      arguments: Batch sizes.
    """

    def settings(variant: str, batch_size: int) -> Settings:
        return Settings("label", variant, folder, batch_size, texts=texts, num_texts=num_texts)

    peers = [
        Peer(f"pipeline {variant}, batch {size}", "torch_peer", settings(variant, size))
        for variant in ("f32", "bf16")
        for size in arguments.batch_sizes
    ]
    return peers + [Peer(f"flaxbert {kind}", "flaxbert_peer", settings(kind, 32)) for kind in ("f32", "bf16", "int8")]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each peer over all sentences")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 16, 32, 64], help="of the pipeline")
    parser.add_argument("--model", default="", help="folder or hub id; default the installed MiniLM package")
    parser.add_argument("--texts", default="", help="file with one sentence a line; default SST-2's dev split")
    parser.add_argument("--json", default="results/sentences.json", help="file of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        work = pathlib.Path(scratch)
        given = pathlib.Path(arguments.texts).read_text(encoding="utf-8").splitlines() if arguments.texts else None
        lines = [line for line in (given or sst2_sentences()) if line.strip()]
        (work / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        folder = sentence_model(work, arguments.model)
        peers = build_peers(str(folder), str(work / "texts.txt"), len(lines), arguments)
        pipelines = [peer for peer in peers if peer.name.startswith("pipeline")]
        # All rows are taken in turn in one run; which pipeline is the fastest is known afterwards.
        rows = measure(peers, arguments.rounds, len(peers), pipelines[0].name)
    best = min((row for row in rows if row["name"].startswith("pipeline") and "error" not in row), key=seconds_of)
    for row in rows:
        if "error" not in row:
            row["ratio"] = best["seconds"] / row["seconds"]
    print(table(rows, best["name"]))
    write_json(arguments.json, {"machine": machine(), "reference": best["name"], "rows": rows})


def seconds_of(row: dict[str, float]) -> float:
    """Returns the median seconds of a row.

    Args:
      row: A row of the table.
    """
    return row["seconds"]


if __name__ == "__main__":
    main()
