"""Documents that a corpus has more than once: word for word, or nearly so."""

import dataclasses
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from flaxbert.config import DedupConfig
from flaxbert.data.corpus import Document

_SHINGLE_WORDS = 5
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


def find_duplicates(documents: Iterable[Document], config: DedupConfig) -> Duplicates:
    """Finds the documents that repeat an earlier one; of those that are alike the first stays.

    Memory grows by a few bytes a document, and with ``near`` by about 2 KB.

    Args:
      documents: The documents in their order.
      config: What counts as the same.

    Returns:
      The numbers of the documents to be left out.
    """
    seen: set[bytes] = set()
    exact: set[int] = set()
    near: set[int] = set()
    index = _NearIndex(config) if config.near else None
    number = -1
    for number, document in enumerate(documents):
        words = " ".join(document.sentences).casefold().split()
        digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if digest in seen:
            exact.add(number)
            continue
        seen.add(digest)
        if index is not None and len(words) >= _MIN_WORDS and index.is_near(number, words):
            near.add(number)
    return Duplicates(frozenset(exact) if config.exact else frozenset(), frozenset(near), number + 1)


class _NearIndex:
    """The signatures of the documents so far."""

    def __init__(self, config: DedupConfig) -> None:
        from datasketch import MinHashLSH

        self._config = config
        # Few misses matter more than few candidates: candidates are compared by their estimates.
        self._index = MinHashLSH(config.threshold, config.num_permutations, weights=(0.2, 0.8))
        self._signatures: dict[int, Any] = {}

    def is_near(self, number: int, words: Sequence[str]) -> bool:
        """Returns whether an earlier document is near; one that is not joins the index."""
        from datasketch import MinHash

        config = self._config
        shingles = {" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(len(words) - _SHINGLE_WORDS + 1)}
        signature = MinHash(config.num_permutations, seed=1, hashfunc=zlib.crc32)
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles)])
        candidates = (self._signatures[int(str(other))] for other in self._index.query(signature))
        if any(other.jaccard(signature) >= config.threshold for other in candidates):
            return True
        self._index.insert(number, signature)
        self._signatures[number] = signature
        return False
