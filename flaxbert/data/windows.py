"""Long texts cut into windows that overlap, with the place in the text that every token came from."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.data.python_tokenizer import cut_pieces, require_pieces, text_pieces
from flaxbert.data.tokenization import (
    TokenizedExamples,
    Where,
    explain_failure,
    pad_token_id,
    refuse_surrogates,
    require_room,
    tokenizer_settings,
    too_long_for_strategy,
)
from flaxbert.errors import ConfigError, DataError

_CHUNK_TEXTS = 1024


@dataclasses.dataclass(frozen=True)
class Windows:
    """Token ids of windows, each with the text that it was cut from.

    Attributes:
      tokens: The windows as examples, special tokens included.
      text_of: Number of each window's text, rising.
      spans: First character and the one after the last of every token of a window; 0, 0 for special tokens.
      in_text: Whether a token stands for a part of the text that is cut (of a pair, the second one).
    """

    tokens: TokenizedExamples
    text_of: Int[np.ndarray, "windows"]
    spans: Int[np.ndarray, "tokens ends"]
    in_text: Bool[np.ndarray, "tokens"]

    def window(self, number: int) -> slice:
        """Returns where the tokens of a window stand in the flat arrays.

        Args:
          number: Number of the window.
        """
        return slice(int(self.tokens.offsets[number]), int(self.tokens.offsets[number + 1]))

    @property
    def num_cut(self) -> int:
        """Number of texts that make up more than one window."""
        return int((np.bincount(self.text_of) > 1).sum()) if len(self.text_of) else 0


def tokenize_windows(
    tokenizer: Any,
    texts: Sequence[str],
    firsts: Sequence[str] | None = None,
    *,
    max_length: int,
    stride: int | None,
    where: Where,
) -> Windows:
    """Tokenizes texts, cut into overlapping windows where they are too long.

    Args:
      tokenizer: A tokenizer of transformers, or ``tokenizers.Tokenizer``.
      texts: The texts to be cut.
      firsts: A text that stands whole before every window, such as the question; None for none.
      max_length: Most tokens of a window, special tokens and first text included.
      stride: Tokens that neighbouring windows share; None: a quarter of a window, but at most half of what a first text leaves of it.
      where: Returns the place of a text for messages.

    Raises:
      ConfigError: The tokenizer does not show its pieces, or the stride leaves no room.
      DataError: A first text leaves no room for the stride, or a text is no valid Unicode.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    fast = hasattr(backend, "encode_batch_fast")
    if not fast:
        require_pieces(tokenizer)
    num_special = (backend if fast else tokenizer).num_special_tokens_to_add(firsts is not None)
    require_room(max_length, num_special, "windows")
    if stride is not None and not 0 <= stride < max_length - num_special:
        raise ConfigError(
            f"task.stride is {stride}, but windows of {max_length} tokens, {num_special} of them special, must move on; set "
            f"a stride under {max_length - num_special}."
        )
    encodings: list[Any] = []
    text_of: list[int] = []
    for start in range(0, len(texts), _CHUNK_TEXTS):
        chunk = range(start, min(start + _CHUNK_TEXTS, len(texts)))
        room = max_length - num_special
        if fast:
            inputs: list[Any] = [texts[i] if firsts is None else (firsts[i], texts[i]) for i in chunk]
            try:
                rooms = _rooms(backend, inputs, room)
                encoded = _encode(backend, inputs, _strides(rooms, max_length, stride, chunk, where), max_length)
            except DataError:
                raise
            except Exception as error:
                raise explain_failure(backend, inputs, chunk, where, max_length, error) from error
            several = [[encoding, *encoding.overflowing] for encoding in encoded]
        else:
            several = list(_cut_in_python(tokenizer, texts, firsts, chunk, max_length, room, stride, where))
        for index, windows in zip(chunk, several, strict=True):
            encodings += windows
            text_of += [index] * len(windows)
    return _collect(encodings, text_of, 0 if firsts is None else 1, pad_token_id(tokenizer))


def _cut_in_python(
    tokenizer: Any,
    texts: Sequence[str],
    firsts: Sequence[str] | None,
    chunk: range,
    max_length: int,
    room: int,
    stride: int | None,
    where: Where,
) -> Iterator[list[Any]]:
    for index in chunk:
        first = None if firsts is None else firsts[index]
        refuse_surrogates(texts[index], first, where(index))
        before = None if first is None else text_pieces(tokenizer, first)
        left = room - (0 if before is None else len(before.ids))
        if left <= 0:
            raise DataError(too_long_for_strategy(where(index), max_length, "only_second"))
        shared = _strides(np.array([left]), max_length, stride, range(index, index + 1), where)
        yield cut_pieces(tokenizer, before, text_pieces(tokenizer, texts[index]), left, int(shared[0]))


def _rooms(backend: Any, inputs: Sequence[Any], room: int) -> Int[np.ndarray, "texts"]:
    """Returns how many tokens of each text fit into a window."""
    if not inputs or isinstance(inputs[0], str):
        return np.full(len(inputs), room)
    with tokenizer_settings(backend, 0, "error"):
        firsts = backend.encode_batch_fast([first for first, _ in inputs], add_special_tokens=False)
    return room - np.array([len(encoding) for encoding in firsts])


def _strides(
    rooms: Int[np.ndarray, "texts"], max_length: int, stride: int | None, chunk: range, where: Where
) -> Int[np.ndarray, "texts"]:
    """Returns what the windows of each text share; the tokenizer itself panics where that is as much as fits."""
    if stride is None:
        return np.minimum(max_length // 4, np.maximum(rooms, 0) // 2)
    full = np.flatnonzero((rooms > 0) & (rooms <= stride))
    if len(full):
        raise DataError(
            f"{where(chunk[int(full[0])])}: what stands before every window leaves {rooms[full[0]]} of {max_length} tokens, but "
            f"windows share {stride}, so that they would not move on. Lower task.stride, or raise data.max_length."
        )
    return np.where(rooms > 0, stride, 0)  # where there is no room, the tokenizer says so


def _encode(backend: Any, inputs: Sequence[Any], strides: Int[np.ndarray, "texts"], max_length: int) -> list[Any]:
    encoded: dict[int, Any] = {}
    for stride in np.unique(strides).tolist():
        members = np.flatnonzero(strides == stride).tolist()
        strategy = "longest_first" if isinstance(inputs[0], str) else "only_second"
        with tokenizer_settings(backend, max_length, strategy, stride):
            encoded |= zip(members, backend.encode_batch([inputs[member] for member in members]), strict=True)
    return [encoded[place] for place in range(len(inputs))]


def _collect(encodings: Sequence[Any], text_of: Sequence[int], part: int, pad: int) -> Windows:
    lengths = np.array([0, *(len(encoding) for encoding in encodings)], np.int64)
    types = np.array([number for encoding in encodings for number in encoding.type_ids], np.int32)
    spans = np.array([span for encoding in encodings for span in encoding.offsets], np.int64).reshape(-1, 2)
    parts = np.array(
        [-1 if number is None else number for encoding in encodings for number in encoding.sequence_ids], np.int64
    )
    tokens = TokenizedExamples(
        input_ids=np.array([number for encoding in encodings for number in encoding.ids], np.int32),
        token_type_ids=types if types.any() else None,
        offsets=np.cumsum(lengths),
        truncated=np.zeros(len(encodings), np.bool_),
        pad_token_id=pad,
    )
    return Windows(tokens, np.array(text_of, np.int64), spans, (parts == part) & (spans[:, 1] > spans[:, 0]))


def refuse_cut(windows: Windows, max_length: int, where: Where) -> None:
    """Refuses texts that are longer than one window.

    Args:
      windows: The windows.
      max_length: Most tokens of one.
      where: Returns the place of a text for messages.

    Raises:
      DataError: A text has more than one window; names the first.
    """
    counts = np.bincount(windows.text_of, minlength=1)
    if (counts > 1).any():
        raise DataError(
            f"{where(int(np.argmax(counts > 1)))}: the input has more than data.max_length {max_length} tokens, and "
            "data.truncation is error. Shorten it, raise data.max_length, or set data.truncation: longest_first."
        )


def first_windows(windows: Windows) -> Windows:
    """Returns the first window of every text, marked as truncated where there were more.

    Args:
      windows: The windows.
    """
    counts = np.bincount(windows.text_of, minlength=int(windows.text_of.max(initial=-1)) + 1)
    firsts = np.cumsum(counts) - counts
    tokens, lengths = windows.tokens, windows.tokens.lengths
    kept = np.repeat(np.isin(np.arange(len(lengths)), firsts), lengths)
    types = tokens.token_type_ids
    chosen = dataclasses.replace(
        tokens,
        input_ids=tokens.input_ids[kept],
        token_type_ids=None if types is None else types[kept],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[firsts])]),
        truncated=counts > 1,
    )
    return Windows(chosen, np.arange(len(counts)), windows.spans[kept], windows.in_text[kept])
