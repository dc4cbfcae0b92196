"""Real tokens per second of masked language pre-training from one corpus, against transformers on torch, in one run.

    python -m benchmarks.pretrain --size small --vocab-size 30528 --rounds 5 --json results/pretrain.json

The documents are the paragraphs of the novels in ``FLAXBERT_TEST_DATA`` (``--corpus`` names another prepared corpus). flaxbert packs
them into rows in which attention stays inside a document, and scores the hidden words alone. Torch does what its users do: documents
one after the other, cut into full rows, attention over the whole row, scores of every token. The rows *padded* are flaxbert with one
document a row, and without the choice of hidden words. All share size, rate of masking, AdamW and clipping; there is no dropout.
Tokens are real where they are no padding; special tokens count on all sides.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.novels import prepare_novels
from benchmarks.runner import Peer, machine, measure, table, write_json
from benchmarks.settings import Settings
from benchmarks.torch_pretraining import labels_of_all_tokens

NUM_BATCHES = 8


def make_rows(corpus_folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Returns batches of each layout: packed, padded, concatenated.

    Args:
      corpus_folder: A prepared corpus.
      arguments: Batch size, length and rate of masking.

    Returns:
      Arrays ``[batches, batch, ...]`` by name, by layout.
    """
    from flaxbert.config import MaskingConfig, PretrainConfig, PretrainData
    from flaxbert.data.masking import Masker
    from flaxbert.data.prepared import TOKENIZER_FOLDER, PreparedCorpus
    from flaxbert.data.pretraining_rows import RowSource
    from flaxbert.data.shuffling import StableRandom
    from flaxbert.data.words import word_table
    from flaxbert.train.recipes.pretraining_setup import special_tokens
    from flaxbert.weights.tokenizer import tokenizer_alone

    corpus = PreparedCorpus(corpus_folder)
    tokenizer = tokenizer_alone(corpus_folder / TOKENIZER_FOLDER)
    config = PretrainConfig(masking=MaskingConfig(rate=arguments.rate), data=PretrainData(row_length=arguments.length))
    special = special_tokens(tokenizer, typed=True)
    masker = Masker(config.masking, word_table(tokenizer, needs_words=False), special.mask, special.pad)
    count = NUM_BATCHES * arguments.batch_size
    found: dict[str, dict[str, np.ndarray]] = {}
    for layout, packing in (("packed", "best_fit"), ("padded", "none")):
        source = RowSource(corpus, special, masker, row_length=arguments.length, packing=packing)
        found[layout] = source.rows(source.order(0)[:count].tolist(), 0)
    found["padded"] = _all_positions(found["padded"])
    ids = _concatenated(corpus, special, count * arguments.length).reshape(count, arguments.length)
    masked = masker(ids, StableRandom(0, 0))
    rows = {"input_ids": masked.input_ids, "masked_positions": masked.positions, "labels": masked.labels}
    found["concatenated"] = {
        "input_ids": masked.input_ids,
        "attention_mask": np.ones_like(ids),
        "labels": labels_of_all_tokens(rows),
    }
    shape = (NUM_BATCHES, arguments.batch_size)
    return {
        layout: {name: array.reshape(*shape, *array.shape[1:]) for name, array in rows.items()}
        for layout, rows in found.items()
    }


def _concatenated(corpus: Any, special: Any, num_tokens: int) -> np.ndarray:
    """Returns the first tokens of all documents one after the other, each between its special tokens."""
    text: list[np.ndarray] = []
    size, number = 0, 0
    while size < num_tokens:
        document = corpus.document(number % len(corpus)).input_ids
        text += [np.array([special.first]), document, np.array([special.separator])]
        size, number = size + len(document) + 2, number + 1
    return np.concatenate(text)[:num_tokens].astype(np.int32)


def _all_positions(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns rows whose labels stand at every token, -100 where nothing is hidden."""
    labels = labels_of_all_tokens(rows)
    return {**{name: array for name, array in rows.items() if name != "masked_positions"}, "labels": labels}


def write_model(folder: pathlib.Path, corpus: pathlib.Path, arguments: argparse.Namespace) -> pathlib.Path:
    """Writes the model that all sides start from.

    Args:
      folder: Where to.
      corpus: The prepared corpus, for its tokenizer.
      arguments: Size.

    Returns:
      Its folder.
    """
    from flaxbert.config import ObjectiveConfig, PretrainModel
    from flaxbert.data.prepared import TOKENIZER_FOLDER
    from flaxbert.train.recipes.pretraining_networks import build_networks
    from flaxbert.weights.tokenizer import tokenizer_alone

    source = PretrainModel(
        size=arguments.size,
        architecture={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    tokenizer = tokenizer_alone(corpus / TOKENIZER_FOLDER)
    return build_networks(source, ObjectiveConfig(), tokenizer, arguments.length, 0).main.save(folder / "model")


def build_peers(model: pathlib.Path, files: Mapping[str, pathlib.Path], arguments: argparse.Namespace) -> list[Peer]:
    """Returns the rows of the table.

    Args:
      model: Folder of the model.
      files: NPZ file of each layout.
      arguments: Batch size and length.
    """
    peers = []
    for name, module, variant, layout in (
        ("torch autocast bf16", "torch_peer", "autocast", "concatenated"),
        ("torch autocast bf16 compiled", "torch_peer", "autocast+compiled", "concatenated"),
        ("flaxbert bf16", "flaxbert_peer", "bf16", "packed"),
        ("flaxbert bf16 padded, all scores", "flaxbert_peer", "bf16", "padded"),
        ("torch f32", "torch_peer", "f32", "concatenated"),
        ("torch f32 compiled", "torch_peer", "f32+compiled", "concatenated"),
        ("flaxbert f32", "flaxbert_peer", "f32", "packed"),
        ("flaxbert f32 padded, all scores", "flaxbert_peer", "f32", "padded"),
    ):
        settings = Settings(
            "pretrain",
            variant,
            str(model),
            arguments.batch_size,
            arguments.length,
            rows=str(files[layout]),
            num_tokens=real_tokens(files[layout]),
        )
        peers.append(Peer(name, module, settings))
    return peers


def real_tokens(file: pathlib.Path) -> int:
    """Returns the mean number of tokens of a batch that are no padding.

    Args:
      file: Batches of a layout.
    """
    with np.load(file) as stored:
        name = "segment_ids" if "segment_ids" in stored.files else "attention_mask"
        return round(float((stored[name] > 0).sum()) / len(stored[name]))


def main(options: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="", help="prepared corpus; default the paragraphs of the novels")
    parser.add_argument("--scratch", default="", help="folder that keeps the prepared novels; default a temporary one")
    parser.add_argument("--vocab-size", type=int, default=30528, help="of the tokenizer of the novels")
    parser.add_argument("--size", default="small", help="size of the model")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each peer")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=0.15, help="share of the tokens that is hidden")
    parser.add_argument("--group", type=int, default=4, help="peers alive together")
    parser.add_argument("--reference", default="torch autocast bf16", help="peer that ratios refer to")
    parser.add_argument("--only", nargs="*", default=[], help="names of the peers to measure; default all")
    parser.add_argument("--json", default="results/pretrain.json", help="file of the results")
    arguments = parser.parse_args(options)
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as temporary:
        scratch = pathlib.Path(arguments.scratch or temporary)
        corpus = pathlib.Path(arguments.corpus or prepare_novels(scratch, arguments.vocab_size, "blank_line"))
        files: dict[str, pathlib.Path] = {}
        efficiency: dict[str, Any] = {}
        for layout, rows in make_rows(corpus, arguments).items():
            files[layout] = pathlib.Path(temporary) / f"{layout}.npz"
            np.savez(files[layout], allow_pickle=False, **rows)
            efficiency[layout] = real_tokens(files[layout]) / (arguments.batch_size * arguments.length)
            print(f"{layout}: {efficiency[layout]:.1%} of the tokens are real")
        model = write_model(pathlib.Path(temporary), corpus, arguments)
        peers = [p for p in build_peers(model, files, arguments) if not arguments.only or p.name in arguments.only]
        measured = measure(peers, arguments.rounds, arguments.group, arguments.reference)
    print(f"\nBERT-{arguments.size}, {arguments.batch_size} x {arguments.length} tokens, {arguments.rate:.0%} hidden")
    print(table(measured, arguments.reference, "tokens/s"))
    document = {"machine": machine(), "options": vars(arguments), "efficiency": efficiency, "rows": measured}
    write_json(arguments.json, document)


if __name__ == "__main__":
    main()
