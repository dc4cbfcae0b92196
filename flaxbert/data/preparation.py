"""Shards of a prepared corpus: which documents each holds, and how they become tokens. A pure function of the job."""

import dataclasses
import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from flaxbert.config import CorpusConfig, DedupConfig
from flaxbert.data.corpus import Document, read_documents
from flaxbert.data.deduplication import FingerprintTable, fingerprints
from flaxbert.data.inputs import Part
from flaxbert.data.prepared import Shard, ShardWriter, TokenizedDocument, id_dtype
from flaxbert.data.tokenization import refuse_surrogates, tokenizer_settings
from flaxbert.data.words import Segmenter, segmented_starts
from flaxbert.errors import ConfigError

_CHUNK_CHARACTERS = 1 << 20
_MOST_SHARDS = 256

Place = tuple[int, int]
"""Number of the part of the inputs, and number of the document in it."""


def load_segmenter(name: str) -> Segmenter | None:
    """Returns the function that a segmenter's name stands for.

    Args:
      name: ``module:function``, for example ``jieba:lcut``; empty for none.

    Raises:
      ConfigError: There is no such function.
    """
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"prepare.segmenter is {name!r}, but must be module:function of an installed package, for example jieba:lcut ({error})."
        ) from error
    if not callable(found):
        raise ConfigError(f"prepare.segmenter {name!r} is no function.")
    return cast("Segmenter", found)


class DocumentTokenizer:
    """Tokenizes documents sentence by sentence, as they would be tokenized in one piece, without special tokens.

    Words such as ``[MASK]`` in the text stay text.

    Args:
      tokenizer: A tokenizer of transformers.
      segmenter: Finds words that the vocabulary does not mark; None for none.

    Raises:
      ConfigError: There is a segmenter, but the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, segmenter: Segmenter | None = None) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._segmenter = segmenter
        if segmenter is not None and self._backend is None:
            raise ConfigError("prepare.segmenter needs a fast tokenizer, which tells where its tokens stand.")
        if self._backend is not None:
            self._backend.encode_special_tokens = True
        # Byte pairs write the blank before a word into its token, so a sentence inside a text must keep its blank.
        whole, parts, led = (self._ids([text])[0] for text in ("a. b", "b", " b"))
        self._lead = " " if whole[-len(led) :] == led and whole[-len(parts) :] != parts else ""

    def _ids(self, sentences: Sequence[str]) -> list[list[int]]:
        if self._backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            return [self._tokenizer(sentence, **options)["input_ids"] for sentence in sentences]
        with tokenizer_settings(self._backend, 0, "error"):
            return [found.ids for found in self._backend.encode_batch_fast(list(sentences), add_special_tokens=False)]

    def __call__(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        """Tokenizes documents.

        Args:
          documents: The documents.

        Raises:
          DataError: A text is no valid Unicode; names its place.
        """
        for document in documents:
            for sentence in document.sentences:
                refuse_surrogates(sentence, None, document.where)
        sentences = [
            sentence if place == 0 else self._lead + sentence
            for document in documents
            for place, sentence in enumerate(document.sentences)
        ]
        ids = self._ids(sentences)
        starts = None if self._segmenter is None else self._word_starts(sentences, self._segmenter)
        borders = itertools.accumulate((len(document.sentences) for document in documents), initial=0)
        return [
            _join(ids[first:end], None if starts is None else starts[first:end])
            for first, end in itertools.pairwise(borders)
        ]

    def _word_starts(self, sentences: Sequence[str], segmenter: Segmenter) -> list[np.ndarray]:
        with tokenizer_settings(self._backend, 0, "error"):
            encodings = self._backend.encode_batch(list(sentences), add_special_tokens=False)
        return [
            segmented_starts(sentence, np.array(found.offsets, np.int64).reshape(-1, 2), segmenter)
            for sentence, found in zip(sentences, encodings, strict=True)
        ]


def split_document(document: TokenizedDocument, most: int) -> Iterator[TokenizedDocument]:
    """Yields a document in parts that are short enough to be read for a single piece, cut after sentences where that can be.

    Args:
      document: The document.
      most: Most tokens of a part.
    """
    start, size = 0, len(document.input_ids)
    while size - start > most:
        ends = document.sentence_ends[(document.sentence_ends > start) & (document.sentence_ends <= start + most)]
        end = int(ends[-1]) if len(ends) else start + most
        yield _part(document, start, end)
        start = end
    yield _part(document, start, size) if start else document


def _part(document: TokenizedDocument, start: int, end: int) -> TokenizedDocument:
    ends = document.sentence_ends
    inside = ends[(ends > start) & (ends < end)] - start
    words = document.word_starts
    return TokenizedDocument(
        document.input_ids[start:end],
        np.concatenate([inside, [end - start]]),
        None if words is None else words[start:end],
    )


def _join(ids: Sequence[Sequence[int]], starts: Sequence[np.ndarray] | None) -> TokenizedDocument:
    kept = [place for place, numbers in enumerate(ids) if len(numbers)]
    tokens = np.array([number for place in kept for number in ids[place]], np.int32)
    ends = np.cumsum([len(ids[place]) for place in kept], dtype=np.int64)
    words = None
    if starts is not None:
        words = np.concatenate([starts[place] for place in kept]) if kept else np.zeros(0, np.bool_)
    return TokenizedDocument(tokens, ends, words)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What a worker needs to write some of the shards of a corpus.

    Attributes:
      parts: From ``split_inputs``, of all shards.
      config: What a document is.
      folder: Folder of the corpus.
      tokenizer_folder: Folder of the tokenizer.
      vocab_size: Number of ids of the tokenizer.
      num_shards: Number of shards of the corpus.
      numbers: Numbers of the shards that are written, in their order.
      dropped: Places of documents that are left out.
      segmenter: As for ``load_segmenter``.
      max_tokens: Longer documents are cut.
    """

    parts: tuple[Part, ...]
    config: CorpusConfig
    folder: str
    tokenizer_folder: str
    vocab_size: int
    num_shards: int
    numbers: tuple[int, ...]
    dropped: frozenset[Place] = frozenset()
    segmenter: str = ""
    max_tokens: int = 8192

    def split(self, num_workers: int) -> list["ShardJob"]:
        """Returns jobs that together write the shards of this one, in their order, and read as little as can be twice.

        Where each shard has parts of its own there is a job for each shard. Else each worker has one job, which reads everything once. A job has at
        most 256 shards, since all are written at once.

        Args:
          num_workers: Jobs that are done at a time.
        """
        count = len(self.numbers)
        apart = all(self._is_whole(number) for number in range(len(self.parts)))
        jobs = count if apart else max(min(num_workers, count), -(-count // _MOST_SHARDS))
        runs = [self.numbers[count * job // jobs : count * (job + 1) // jobs] for job in range(jobs)]
        dropped: dict[int, set[Place]] = {number: set() for number in self.numbers}
        for place in self.dropped:
            dropped[self.shard_of(place)].add(place)
        return [
            dataclasses.replace(self, numbers=run, dropped=frozenset().union(*(dropped[number] for number in run)))
            for run in runs
        ]

    def _is_whole(self, number: int) -> bool:
        """Returns whether all documents of a part are in one shard."""
        return len(self.parts) >= self.num_shards and not self.parts[number].shared

    def shard_of(self, place: Place) -> int:
        """Returns the number of the shard that a document is in. Parts are dealt out where there are enough of them, else single documents.

        Args:
          place: The document's place.
        """
        number, index = place
        return (number if self._is_whole(number) else number + index) % self.num_shards

    def documents(self) -> Iterator[tuple[Place, Document]]:
        """Yields the documents of the job's shards in the order of their places, those that are dropped too.

        Raises:
          DataError: A text can not be read.
        """
        wanted = frozenset(self.numbers)
        for number, part in enumerate(self.parts):
            if self._is_whole(number) and self.shard_of((number, 0)) not in wanted:
                continue
            for index, document in enumerate(read_documents(part, self.config)):
                if self.shard_of((number, index)) in wanted:
                    yield (number, index), document


def fingerprint_documents(job: ShardJob, config: DedupConfig) -> FingerprintTable:
    """Returns what of the documents of a job is compared to find copies.

    Args:
      job: Which documents.
      config: What counts as the same.

    Raises:
      DataError: A text can not be read.
    """
    places: list[Place] = []

    def keep_places() -> Iterator[Document]:
        for place, document in job.documents():
            places.append(place)
            yield document

    found = list(fingerprints(keep_places(), config))
    return FingerprintTable.pack(places, found, config)


def write_shards(job: ShardJob, tokenizer: Any) -> list[Shard]:
    """Reads, tokenizes and writes the documents of some shards, all at a time.

    Args:
      job: Which.
      tokenizer: The tokenizer of ``job.tokenizer_folder``.

    Returns:
      What was written, in the order of ``job.numbers``.

    Raises:
      DataError: A text can not be read.
    """
    tokenize = DocumentTokenizer(tokenizer, load_segmenter(job.segmenter))
    dtype = id_dtype(job.vocab_size)
    writers: dict[int, ShardWriter] = {}
    try:
        for number in job.numbers:
            writers[number] = ShardWriter(Path(job.folder), number, job.num_shards, dtype)
        for chunk in _chunks(found for found in job.documents() if found[0] not in job.dropped):
            tokenized = tokenize([document for _, document in chunk])
            for (place, _), document in zip(chunk, tokenized, strict=True):
                for part in split_document(document, job.max_tokens):
                    writers[job.shard_of(place)].add(part)
        return [writer.close() for writer in writers.values()]
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise


def _chunks(documents: Iterator[tuple[Place, Document]]) -> Iterator[list[tuple[Place, Document]]]:
    chunk: list[tuple[Place, Document]] = []
    size = 0
    for place, document in documents:
        chunk.append((place, document))
        size += sum(map(len, document.sentences))
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
