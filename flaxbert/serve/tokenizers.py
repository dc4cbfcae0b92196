"""Tokenizers for several threads: a tokenizer keeps its settings in itself, so that each thread needs one of its own."""

import contextlib
import copy
import queue
from collections.abc import Iterator
from typing import Any


class TokenizerPool:
    """Copies of a tokenizer, each used by one thread at a time.

    Args:
      tokenizer: A tokenizer of transformers.
      size: Number of copies.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = max(1, size)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.size):
            self._free.put(copy.deepcopy(tokenizer))

    @contextlib.contextmanager
    def borrow(self, truncation_side: str = "right") -> Iterator[Any]:
        """Gives a tokenizer to the caller, until the block ends.

        Args:
          truncation_side: Which end of texts that are too long is cut: right or left.

        Yields:
          The tokenizer.
        """
        tokenizer = self._free.get()
        usual = tokenizer.truncation_side
        backend = getattr(tokenizer, "backend_tokenizer", None)
        settings = backend.truncation if backend is not None else None
        try:
            if truncation_side != usual:
                tokenizer.truncation_side = truncation_side
                if backend is not None:  # whose settings tell tokenize which side is meant
                    backend.enable_truncation(tokenizer.model_max_length, direction=truncation_side)
            yield tokenizer
        finally:
            if truncation_side != usual:
                tokenizer.truncation_side = usual
                if backend is not None:
                    backend.no_truncation()
                    if settings is not None:
                        backend.enable_truncation(**settings)
            self._free.put(tokenizer)
