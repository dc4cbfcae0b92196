"""The recipe behind ``flaxbert prepare``: raw text in, a prepared corpus out."""

import concurrent.futures
import dataclasses
import functools
import heapq
import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig
from flaxbert.data.deduplication import Fingerprint, FingerprintTable, compare_fingerprints
from flaxbert.data.inputs import Part, expand_inputs, split_inputs
from flaxbert.data.preparation import Place, ShardJob, fingerprint_documents, load_segmenter, write_shards
from flaxbert.data.prepared import CORPUS_FILE, TOKENIZER_FOLDER, PreparedCorpus, Shard, write_corpus_file
from flaxbert.errors import ConfigError, DataError
from flaxbert.train.folder_lock import LOCK_NAME, FolderLock
from flaxbert.train.recipes.setup import Say, say_on_first
from flaxbert.weights.hub import resolve
from flaxbert.weights.tokenizer import tokenizer_alone

_STAGE = ".new"
"""Folder inside of a corpus that a new one is written in, so that the old one stays until the new one is whole."""

_Result = TypeVar("_Result")

_OWN_FILES = ("documents-*.array_record", "lengths-*.npy", ".*.partial", CORPUS_FILE)


@runtime_checkable
class Engine(Protocol):
    """Where the work of preparation is done; what comes out is the same everywhere, byte for byte."""

    def fingerprints(self, job: ShardJob, dedup: DedupConfig) -> Iterable[FingerprintTable]:
        """Makes what of each document is compared.

        Args:
          job: All documents.
          dedup: What counts as repeated.

        Returns:
          Tables that have each document once.
        """
        ...

    def shards(self, job: ShardJob, tokenizer: Any) -> Iterable[Shard]:
        """Writes shards.

        Args:
          job: The shards.
          tokenizer: The tokenizer of their folder, for what runs in this process.

        Returns:
          What was written, in the order of the shards.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LocalEngine(Engine):
    """Works on this machine.

    Attributes:
      num_workers: Most processes; 0 takes one for each processor.
    """

    num_workers: int = 0

    def fingerprints(self, job: ShardJob, dedup: DedupConfig) -> Iterator[FingerprintTable]:
        """See ``Engine.fingerprints``."""
        work = functools.partial(fingerprint_documents, config=dedup)
        return self._spread(work, work, job)

    def shards(self, job: ShardJob, tokenizer: Any) -> Iterator[Shard]:
        """See ``Engine.shards``."""
        here = functools.partial(write_shards, tokenizer=tokenizer)
        return itertools.chain.from_iterable(self._spread(here, write_shards_alone, job))

    def _spread(
        self, here: Callable[[ShardJob], _Result], elsewhere: Callable[[ShardJob], _Result], job: ShardJob
    ) -> Iterator[_Result]:
        """Yields what becomes of the parts of a job, in their order."""
        workers = self.num_workers or os.cpu_count() or 1
        jobs = job.split(workers)
        workers = min(workers, len(jobs))
        if workers == 1:
            yield from map(here, jobs)
            return
        # Started anew rather than forked: a fork would copy the threads' locks of tokenizers and JAX.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            try:
                yield from pool.map(elsewhere, jobs)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def prepare_corpus(
    config: PrepareConfig,
    corpus: CorpusConfig,
    dedup: DedupConfig,
    *,
    say: Say = say_on_first,
    engine: Engine | None = None,
) -> PreparedCorpus:
    """Reads raw text, leaves out what it has twice, tokenizes it and writes it in shards.

    Args:
      config: Folder, tokenizer, shards and workers.
      corpus: The text, and what documents and sentences are.
      dedup: Which documents count as repeated.
      say: Where lines for the user go.
      engine: Where the work is done; None: in ``config.num_workers`` processes of this machine.

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
    inputs = expand_inputs(corpus)
    tokenizer = tokenizer_alone(resolve(config.tokenizer))
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        _check_replaceable(folder, config.overwrite)
        stage = folder / _STAGE
        shutil.rmtree(stage, ignore_errors=True)
        try:
            tokenizer.save_pretrained(str(stage / TOKENIZER_FOLDER))
            engine = engine or LocalEngine(config.num_workers)
            note = _write(stage, inputs, tokenizer, (config, corpus, dedup), engine, say)
            _replace(folder, stage)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
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
    inputs: Sequence[Part],
    tokenizer: Any,
    configs: tuple[PrepareConfig, CorpusConfig, DedupConfig],
    engine: Engine,
    say: Say,
) -> str:
    """Writes shards and description; returns what is said of copies that were left out."""
    config, corpus, dedup = configs
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    job = ShardJob(
        parts=split_inputs(inputs, corpus, config.num_shards),
        config=corpus,
        folder=str(folder),
        tokenizer_folder=str(folder / TOKENIZER_FOLDER),
        vocab_size=vocab_size,
        num_shards=config.num_shards,
        numbers=tuple(range(config.num_shards)),
        segmenter=config.segmenter,
        max_tokens=config.max_document_tokens,
    )
    job, note = _drop_copies(job, dedup, engine)
    shards = []
    for shard in engine.shards(job, tokenizer):
        shards.append(shard)
        say(f"{shard.file}: {shard.num_documents:,} documents, {shard.num_tokens:,} tokens")
    if not any(shard.num_documents for shard in shards):
        raise DataError(
            f"The corpus is empty: {len(inputs)} inputs hold no text, the first of them {inputs[0].source}."
        )
    made_from = {
        "inputs": [part.source for part in inputs],
        "corpus": dataclasses.asdict(corpus),
        "dedup": dataclasses.asdict(dedup),
        "segmenter": config.segmenter,
        "max_document_tokens": config.max_document_tokens,
        "tokenizer": config.tokenizer,
    }
    write_corpus_file(folder, shards, vocab_size, made_from)
    return note


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    present = sorted(path.name for path in folder.iterdir() if path.name not in {LOCK_NAME, _STAGE})
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


def _replace(folder: Path, stage: Path) -> None:
    """Puts a corpus that is written in the place of what the folder holds, which was not touched until now."""
    (folder / CORPUS_FILE).unlink(missing_ok=True)  # first: without it the rest is no corpus
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    for pattern in _OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    for path in sorted(stage.iterdir(), key=lambda path: path.name == CORPUS_FILE):
        path.replace(folder / path.name)


def _drop_copies(job: ShardJob, dedup: DedupConfig, engine: Engine) -> tuple[ShardJob, str]:
    """Returns the job with the places of the documents that repeat an earlier one, and what is said of these."""
    if not (dedup.exact or dedup.near):
        return job, ""
    places: list[Place] = []

    def in_order() -> Iterator[Fingerprint]:
        for place, fingerprint in heapq.merge(*engine.fingerprints(job, dedup), key=lambda found: found[0]):
            places.append(place)
            yield fingerprint

    found = compare_fingerprints(in_order(), dedup)
    note = f" of {found.num_documents:,} (left out: {len(found.exact):,} exact and {len(found.near):,} near copies)"
    return dataclasses.replace(job, dropped=frozenset(places[number] for number in found.all)), note


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has one processor


def write_shards_alone(job: ShardJob) -> list[Shard]:
    """Writes shards in a process that has no tokenizer yet.

    Args:
      job: Which shards.

    Returns:
      What was written.

    Raises:
      DataError: A text can not be read.
    """
    return write_shards(job, tokenizer_alone(job.tokenizer_folder))
