"""Tokenized documents on disk: ArrayRecord files that can be read at any place, and what describes them.

A folder holds ``corpus.json`` (what it was made from and with), the tokenizer in ``tokenizer/``, and for each shard
``documents-00000-of-00008.array_record`` with one record a document and ``lengths-00000-of-00008.npy`` with its tokens. Documents stand
whole and without special tokens: how long inputs are and how they are packed is decided when they are read.
"""

import dataclasses
import functools
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.core.digests import digest_file
from flaxbert.core.files import whole_file
from flaxbert.errors import DataError

CORPUS_FILE = "corpus.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT_VERSION = 1

_HEADER = struct.Struct("<III")
_HAS_WORDS = 1


@dataclasses.dataclass(frozen=True)
class TokenizedDocument:
    """A document as tokens.

    Attributes:
      input_ids: Token ids, without special tokens.
      sentence_ends: Place after the last token of each sentence, rising.
      word_starts: Which tokens begin a word, where a segmenter has said so; None where the vocabulary says it.
    """

    input_ids: Int[np.ndarray, "tokens"]
    sentence_ends: Int[np.ndarray, "sentences"]
    word_starts: Bool[np.ndarray, "tokens"] | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of documents.

    Attributes:
      file: Name of the ArrayRecord file.
      lengths_file: Name of the file of lengths.
      num_documents: Its documents.
      num_tokens: Their tokens.
      size_bytes: Size of the file.
      sha256: SHA-256 of the file.
    """

    file: str
    lengths_file: str
    num_documents: int
    num_tokens: int
    size_bytes: int
    sha256: str


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the type that token ids are stored in.

    Args:
      vocab_size: Number of ids.
    """
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def encode_document(document: TokenizedDocument, dtype: np.dtype) -> bytes:
    """Returns the record of a document.

    Args:
      document: The document.
      dtype: Type of the ids.
    """
    words = document.word_starts
    flags = 0 if words is None else _HAS_WORDS
    parts = [
        _HEADER.pack(len(document.input_ids), len(document.sentence_ends), flags),
        document.input_ids.astype(dtype).tobytes(),
        document.sentence_ends.astype("<u4").tobytes(),
        b"" if words is None else np.packbits(words).tobytes(),
    ]
    return b"".join(parts)


def decode_document(record: bytes, dtype: np.dtype) -> TokenizedDocument:
    """Returns the document of a record.

    Args:
      record: From ``encode_document``.
      dtype: Type of the ids.

    Raises:
      DataError: The record is cut off.
    """
    if len(record) < _HEADER.size:
        raise DataError(f"A record of {len(record)} bytes holds no document.")
    tokens, sentences, flags = _HEADER.unpack_from(record)
    middle = _HEADER.size + tokens * dtype.itemsize
    end = middle + 4 * sentences
    if len(record) != end + (-(-tokens // 8) if flags & _HAS_WORDS else 0):
        raise DataError(f"A record of {len(record)} bytes does not hold the {tokens} tokens that it claims.")
    words = None
    if flags & _HAS_WORDS:
        words = np.unpackbits(np.frombuffer(record, np.uint8, offset=end), count=tokens).astype(np.bool_)
    return TokenizedDocument(
        np.frombuffer(record, dtype, tokens, _HEADER.size).astype(np.int32),
        np.frombuffer(record, "<u4", sentences, middle).astype(np.int64),
        words,
    )


class ShardWriter:
    """Writes one shard; nothing is there under its name until ``close``.

    Args:
      folder: Folder of the corpus.
      number: Number of the shard.
      num_shards: Number of shards of the corpus.
      dtype: Type of the ids.
    """

    def __init__(self, folder: Path, number: int, num_shards: int, dtype: np.dtype) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        place = f"{number:05d}-of-{num_shards:05d}"
        self._file, self._lengths_file = folder / f"documents-{place}.array_record", folder / f"lengths-{place}.npy"
        self._partial = folder / f".{self._file.name}.partial"
        self._writer = ArrayRecordWriter(str(self._partial), "group_size:1")
        self._dtype = dtype
        self._lengths: list[int] = []

    def add(self, document: TokenizedDocument) -> None:
        """Writes a document.

        Args:
          document: The document; one without tokens is left out.
        """
        if len(document.input_ids):
            self._writer.write(encode_document(document, self._dtype))
            self._lengths.append(len(document.input_ids))

    def close(self) -> Shard:
        """Finishes the shard.

        Returns:
          What the corpus says of it.
        """
        self._writer.close()
        lengths = np.array(self._lengths, "<u4")
        with whole_file(self._lengths_file, durable=True) as partial, partial.open("wb") as file:
            np.save(file, lengths)
        digest = digest_file(self._partial, flush_to_disk=True)
        self._partial.replace(self._file)
        return Shard(
            self._file.name,
            self._lengths_file.name,
            len(lengths),
            int(lengths.sum(dtype=np.int64)),
            digest.size_bytes,
            digest.sha256,
        )

    def abandon(self) -> None:
        """Removes what was written."""
        if self._writer.is_open():
            self._writer.close()
        self._partial.unlink(missing_ok=True)


def write_corpus_file(folder: Path, shards: Sequence[Shard], vocab_size: int, made_from: Mapping[str, Any]) -> None:
    """Writes the file that makes a folder a corpus; the last thing that is written.

    Args:
      folder: The folder, with its shards.
      shards: What they hold, in their order.
      vocab_size: Number of ids of the tokenizer.
      made_from: What the corpus was made from and how, for people and for comparing.
    """
    document = {
        "format": FORMAT_VERSION,
        "vocab_size": vocab_size,
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_tokens": sum(shard.num_tokens for shard in shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
        "made_from": dict(made_from),
    }
    with whole_file(folder / CORPUS_FILE, durable=True) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class PreparedCorpus:
    """Random access to the documents of a folder.

    Args:
      folder: The folder.
      skip_damaged: Whether shards that are missing or cut off are left out instead of refused.

    Attributes:
      lengths: Tokens of each document.
      vocab_size: Number of ids of the tokenizer.
      skipped: Names of the shards that were left out.

    Raises:
      DataError: The folder is no corpus, of another format, or a shard is damaged; names the file.
    """

    def __init__(self, folder: str | Path, *, skip_damaged: bool = False) -> None:
        self.folder = Path(folder)
        settings = _read_corpus_file(self.folder)
        self.vocab_size = int(settings["vocab_size"])
        self.made_from: Mapping[str, Any] = settings["made_from"]
        self._dtype = id_dtype(self.vocab_size)
        shards, lengths, self.skipped = [], [], []
        for entry in settings["shards"]:
            shard = Shard(**entry)
            found, problem = _read_lengths(self.folder, shard)
            if not problem:
                shards.append(shard)
                lengths.append(found)
            elif skip_damaged:
                self.skipped.append(shard.file)
            else:
                raise DataError(
                    f"{problem} Prepare the corpus again, or leave such files out with data.skip_damaged: true."
                )
        if not shards:
            raise DataError(f"{self.folder}: no file of the corpus can be read.")
        self._shards = shards
        self._firsts = np.cumsum([0, *(shard.num_documents for shard in shards)])
        self.lengths = np.concatenate(lengths).astype(np.int64)
        if not len(self.lengths):
            raise DataError(f"{self.folder}: the corpus holds no document.")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    @functools.cached_property
    def digest(self) -> str:
        """What the shards hold, as one word: two corpora with the same one give the same documents."""
        found = hashlib.blake2b(digest_size=8)
        for shard in self._shards:
            found.update(shard.sha256.encode())
        return found.hexdigest()

    @functools.cached_property
    def _readers(self) -> list[Any]:
        from array_record.python.array_record_module import ArrayRecordReader

        return [ArrayRecordReader(str(self.folder / shard.file)) for shard in self._shards]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_readers"}  # a worker opens its own

    def document(self, number: int) -> TokenizedDocument:
        """Returns a document.

        Args:
          number: Its number.

        Raises:
          DataError: The file is damaged at its place.
        """
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        place = number - int(self._firsts[shard])
        try:
            (record,) = self._readers[shard].read([place])
            return decode_document(record, self._dtype)
        except (RuntimeError, DataError) as error:
            name = self.folder / self._shards[shard].file
            raise DataError(f"{name}: document {place} can not be read ({error}). Prepare the corpus again.") from error


def _read_corpus_file(folder: Path) -> dict[str, Any]:
    file = folder / CORPUS_FILE
    if not file.is_file():
        raise DataError(f"{folder} is no prepared corpus: it has no {CORPUS_FILE}. Make one with flaxbert prepare.")
    try:
        settings = json.loads(file.read_text("utf-8"))
        if settings["format"] != FORMAT_VERSION:
            raise DataError(
                f"{file}: the corpus has format {settings['format']}, but this version reads {FORMAT_VERSION}."
            )
        return {name: settings[name] for name in ("vocab_size", "shards", "made_from")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: the description of the corpus is damaged ({error}).") from error


def _read_lengths(folder: Path, shard: Shard) -> tuple[np.ndarray, str]:
    """Returns the lengths of a shard's documents, and what is wrong with it, empty where nothing is."""
    nothing = np.zeros(0, "<u4")
    for name in (shard.file, shard.lengths_file):
        if Path(name).name != name:
            return (
                nothing,
                f"{folder / CORPUS_FILE}: the corpus names the file {name!r}, which lies outside its folder.",
            )
        if not (folder / name).is_file():
            return nothing, f"{folder / name}: a file of the corpus is missing."
    found = (folder / shard.file).stat().st_size
    if found != shard.size_bytes:
        return (
            nothing,
            f"{folder / shard.file}: the file has {found} bytes, but had {shard.size_bytes} when it was written.",
        )
    try:
        lengths = np.load(folder / shard.lengths_file)
    except (ValueError, OSError, EOFError) as error:
        return nothing, f"{folder / shard.lengths_file}: the file is damaged ({error})."
    if len(lengths) != shard.num_documents or int(lengths.sum(dtype=np.int64)) != shard.num_tokens:
        return nothing, f"{folder / shard.lengths_file}: the file does not belong to {shard.file}."
    return lengths, ""
