"""The recipe behind ``flaxbert prepare``: raw text in, a prepared corpus out."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig
from flaxbert.data.corpus import expand_inputs
from flaxbert.data.deduplication import find_duplicates
from flaxbert.data.preparation import Place, ShardJob, iterate_documents, load_segmenter, write_shard
from flaxbert.data.prepared import CORPUS_FILE, TOKENIZER_FOLDER, PreparedCorpus, Shard, write_corpus_file
from flaxbert.errors import ConfigError, DataError
from flaxbert.train.folder_lock import LOCK_NAME, FolderLock
from flaxbert.train.recipes.setup import Say, say_on_first
from flaxbert.weights.hub import resolve
from flaxbert.weights.tokenizer import tokenizer_alone

_OWN_FILES = ("documents-*.array_record", "lengths-*.npy", ".*.partial", CORPUS_FILE)


def prepare_corpus(
    config: PrepareConfig,
    corpus: CorpusConfig,
    dedup: DedupConfig,
    *,
    say: Say = say_on_first,
) -> PreparedCorpus:
    """Reads raw text, leaves out what it has twice, tokenizes it and writes it in shards.

    Args:
      config: Folder, tokenizer, shards and workers.
      corpus: The text, and what documents and sentences are.
      dedup: Which documents count as repeated.
      say: Where lines for the user go.

    Returns:
      The corpus.

    Raises:
      ConfigError: There is no tokenizer, or the folder holds something else.
      DataError: There is no text, or a file can not be read.
      WeightsError: The tokenizer can not be loaded.
      CheckpointError: Another run writes the folder.
    """
    started = time.perf_counter()
    if not config.tokenizer:
        raise ConfigError("prepare.tokenizer is empty: name the folder or hub id of a model or tokenizer.")
    load_segmenter(config.segmenter)
    inputs = tuple(expand_inputs(corpus))
    tokenizer = tokenizer_alone(resolve(config.tokenizer))
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        _clear(folder, config.overwrite)
        tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
        note = _write(folder, inputs, tokenizer, (config, corpus, dedup), say)
    finally:
        lock.release()
    found = PreparedCorpus(folder)
    say(
        f"{folder}: {len(found):,} documents{note}, {found.num_tokens:,} tokens in {config.num_shards} shards, "
        f"{time.perf_counter() - started:.1f} s"
    )
    return found


def _write(
    folder: Path,
    inputs: tuple[tuple[str, str], ...],
    tokenizer: Any,
    configs: tuple[PrepareConfig, CorpusConfig, DedupConfig],
    say: Say,
) -> str:
    """Writes shards and description; returns what is said of copies that were left out."""
    config, corpus, dedup = configs
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dropped, note = _find_dropped(inputs, corpus, dedup)
    jobs = [
        ShardJob(
            inputs=inputs,
            config=corpus,
            folder=str(folder),
            tokenizer_folder=str(folder / TOKENIZER_FOLDER),
            vocab_size=vocab_size,
            number=number,
            num_shards=config.num_shards,
            dropped=dropped,
            segmenter=config.segmenter,
            max_tokens=config.max_document_tokens,
        )
        for number in range(config.num_shards)
    ]
    shards = []
    for shard in _run(jobs, min(config.num_workers or os.cpu_count() or 1, config.num_shards), tokenizer):
        shards.append(shard)
        say(f"{shard.file}: {shard.num_documents:,} documents, {shard.num_tokens:,} tokens")
    if not any(shard.num_documents for shard in shards):
        raise DataError(f"The corpus is empty: {len(inputs)} inputs hold no text, the first of them {inputs[0][0]}.")
    made_from = {
        "inputs": [source for source, _ in inputs],
        "corpus": dataclasses.asdict(corpus),
        "dedup": dataclasses.asdict(dedup),
        "segmenter": config.segmenter,
        "max_document_tokens": config.max_document_tokens,
        "tokenizer": config.tokenizer,
    }
    write_corpus_file(folder, shards, vocab_size, made_from)
    return note


def _clear(folder: Path, overwrite: bool) -> None:
    present = sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME)
    own = {path.name for pattern in _OWN_FILES for path in folder.glob(pattern)} | {TOKENIZER_FOLDER}
    foreign = [name for name in present if name not in own]
    if foreign:
        raise ConfigError(
            f"{folder} holds {', '.join(foreign[:5])}, which are no parts of a corpus; choose another prepare.folder."
        )
    if CORPUS_FILE in present and not overwrite:
        raise ConfigError(
            f"{folder} holds a corpus; choose another prepare.folder, or replace it with prepare.overwrite: true."
        )
    (folder / CORPUS_FILE).unlink(missing_ok=True)  # first: without it the rest is no corpus
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    for name in present:
        (folder / name).unlink(missing_ok=True) if name != TOKENIZER_FOLDER else None


def _find_dropped(
    inputs: Sequence[tuple[str, str]], corpus: CorpusConfig, dedup: DedupConfig
) -> tuple[frozenset[Place], str]:
    if not (dedup.exact or dedup.near):
        return frozenset(), ""
    places: list[Place] = []

    def documents() -> Iterator[Any]:
        for place, document in iterate_documents(inputs, corpus):
            places.append(place)
            yield document

    found = find_duplicates(documents(), dedup)
    note = f" of {found.num_documents:,} (left out: {len(found.exact):,} exact and {len(found.near):,} near copies)"
    return frozenset(places[number] for number in found.all), note


def _run(jobs: Sequence[ShardJob], workers: int, tokenizer: Any) -> Iterator[Shard]:
    if workers == 1:
        for job in jobs:
            yield write_shard(job, tokenizer)
        return
    # Started anew rather than forked: a fork would copy the threads' locks of tokenizers and JAX.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_write_in_worker, jobs)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has one processor


def _write_in_worker(job: ShardJob) -> Shard:
    return write_shard(job, _load_tokenizer(job.tokenizer_folder))
