"""Documents that a corpus has more than once: word for word, or nearly so."""

import dataclasses
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxbert.config import DedupConfig
from flaxbert.data.corpus import Document
from flaxbert.data.words import spaced_words

_SHINGLE_WORDS = 5
_DIGEST_BYTES = 12
_SEED = 1
_SCHEME = "affine32"
_MIN_WORDS = 20
"""Shorter documents are only compared word for word: their few shingles say little."""


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What a search found.

    Attributes:
      exact: Numbers of documents that repeat an earlier one word for word.
      near: Numbers of documents that are nearly like an earlier one.
      num_documents: Documents that were compared.
    """

    exact: frozenset[int]
    near: frozenset[int]
    num_documents: int

    @property
    def all(self) -> frozenset[int]:
        """Numbers of all documents to be left out."""
        return self.exact | self.near


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What of a document is compared; it can be made on another machine than where documents are compared.

    Attributes:
      digest: Stands for all its words.
      signature: MinHash values, uint32 ``[num_permutations]``; None for short documents, for exact copies of an earlier one, and where near copies are not looked for.
    """

    digest: bytes
    signature: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class FingerprintTable:
    """The fingerprints of many documents in arrays, as they travel between processes.

    Attributes:
      places: Part of the inputs and number in it of each document, in their order, int64 ``[documents, 2]``.
      digests: Digests, uint8 ``[documents, bytes]``.
      signed: Which have a signature, bool ``[documents]``.
      signatures: Signatures of those, uint32 ``[signed documents, num_permutations]``.
    """

    places: np.ndarray
    digests: np.ndarray
    signed: np.ndarray
    signatures: np.ndarray

    @classmethod
    def pack(
        cls, places: Sequence[tuple[int, int]], found: Sequence[Fingerprint], config: DedupConfig
    ) -> "FingerprintTable":
        """Makes a table.

        Args:
          places: Place of each document.
          found: Fingerprint of each.
          config: What counts as the same.

        Returns:
          The table.
        """
        signatures = [fingerprint.signature for fingerprint in found if fingerprint.signature is not None]
        digests = b"".join(fingerprint.digest for fingerprint in found)
        return cls(
            np.array(places, np.int64).reshape(-1, 2),
            np.frombuffer(digests, np.uint8).reshape(len(found), _DIGEST_BYTES),
            np.array([fingerprint.signature is not None for fingerprint in found], np.bool_),
            np.stack(signatures) if signatures else np.zeros((0, config.num_permutations), np.uint32),
        )

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Fingerprint]]:
        signatures = iter(self.signatures)
        for place, digest, signed in zip(self.places, self.digests, self.signed, strict=True):
            yield (int(place[0]), int(place[1])), Fingerprint(digest.tobytes(), next(signatures) if signed else None)


def fingerprints(documents: Iterable[Document], config: DedupConfig) -> Iterator[Fingerprint]:
    """Yields what of each document is compared.

    Args:
      documents: The documents in their order.
      config: What counts as the same.
    """
    seen: set[bytes] = set()
    for document in documents:
        words = spaced_words(" ".join(document.sentences).casefold())
        digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        signature = None
        if config.near:
            if digest not in seen and len(words) >= _MIN_WORDS:
                signature = _signature(words, config)
            seen.add(digest)
        yield Fingerprint(digest, signature)


def _signature(words: Sequence[str], config: DedupConfig) -> np.ndarray:
    from datasketch import MinHash

    shingles = {" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(len(words) - _SHINGLE_WORDS + 1)}
    signature = MinHash(config.num_permutations, seed=_SEED, hashfunc=zlib.crc32, scheme=_SCHEME)
    signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles)])
    return signature.hashvalues


def find_duplicates(documents: Iterable[Document], config: DedupConfig) -> Duplicates:
    """Finds the documents that repeat an earlier one; of those that are alike the first stays.

    Memory grows by a few bytes a document, and with ``near`` by about 2 KB.

    Args:
      documents: The documents in their order.
      config: What counts as the same.

    Returns:
      The numbers of the documents to be left out.
    """
    return compare_fingerprints(fingerprints(documents, config), config)


def compare_fingerprints(found: Iterable[Fingerprint], config: DedupConfig) -> Duplicates:
    """Finds the documents that repeat an earlier one by what ``fingerprints`` says of them.

    Args:
      found: One fingerprint a document, in the order of the documents.
      config: What counts as the same.

    Returns:
      The numbers of the documents to be left out.
    """
    seen: set[bytes] = set()
    exact: set[int] = set()
    near: set[int] = set()
    index = _NearIndex(config) if config.near else None
    number = -1
    for number, fingerprint in enumerate(found):
        if fingerprint.digest in seen:
            exact.add(number)
            continue
        seen.add(fingerprint.digest)
        if index is not None and fingerprint.signature is not None and index.is_near(number, fingerprint.signature):
            near.add(number)
    if config.near and not config.exact:  # a copy is as near as can be
        near |= exact
    return Duplicates(frozenset(exact) if config.exact else frozenset(), frozenset(near), number + 1)


class _NearIndex:
    """The signatures of the documents so far."""

    def __init__(self, config: DedupConfig) -> None:
        from datasketch import MinHashLSH

        self._config = config
        # Few misses matter more than few candidates: candidates are compared by their estimates.
        self._index = MinHashLSH(config.threshold, config.num_permutations, weights=(0.2, 0.8))
        self._signatures: dict[int, Any] = {}

    def is_near(self, number: int, values: np.ndarray) -> bool:
        """Returns whether an earlier document is near; one that is not joins the index."""
        from datasketch import LeanMinHash

        signature = LeanMinHash(seed=_SEED, hashvalues=values, scheme=_SCHEME)
        candidates = (self._signatures[int(str(other))] for other in self._index.query(signature))
        if any(other.jaccard(signature) >= self._config.threshold for other in candidates):
            return True
        self._index.insert(number, signature)
        self._signatures[number] = signature
        return False
