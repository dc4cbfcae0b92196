"""New tokenizers learned from text: WordPiece, pairs of bytes, unigrams; and words that a vocabulary lacks."""

import collections
import copy
import re
from collections.abc import Iterable
from typing import Any

from flaxbert.config import ExtensionConfig, TokenizerConfig
from flaxbert.errors import DataError

_BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}


def train_tokenizer(sentences: Iterable[str], config: TokenizerConfig) -> Any:
    """Learns a tokenizer.

    Args:
      sentences: The text, piece by piece.
      config: Which kind, and how large.

    Returns:
      A fast tokenizer of transformers with special tokens where its kind has them.

    Raises:
      DataError: There is no text.

    Example:
      >>> tokenizer = train_tokenizer(["a fine film"] * 3, TokenizerConfig(vocab_size=40))
      >>> tokenizer.tokenize("a fine film")
      ['a', 'fine', 'film']
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _ROBERTA_TOKENS if config.kind == "bpe" else _BERT_TOKENS
    build = {"wordpiece": _word_pieces, "bpe": _byte_pairs, "unigram": _unigrams}[config.kind]
    backend, trainer = build(config, list(tokens.values()))
    counted = _Counted(sentences)
    backend.train_from_iterator(counted, trainer)
    if not counted.number:
        raise DataError("There is no text to learn a tokenizer from.")
    backend.post_processor = _frame(backend, config.kind, tokens)
    names = {f"{name}_token": token for name, token in tokens.items()}
    if config.kind == "bpe":
        names |= {"bos_token": tokens["cls"], "eos_token": tokens["sep"]}
    inputs = (
        ["input_ids", "attention_mask"] if config.kind == "bpe" else ["input_ids", "token_type_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


class _Counted:
    """Passes sentences on and counts them."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self._sentences = sentences
        self.number = 0

    def __iter__(self) -> Any:
        for sentence in self._sentences:
            self.number += 1
            yield sentence


def _word_pieces(config: TokenizerConfig, special: list[str]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend, trainers.WordPieceTrainer(
        vocab_size=config.vocab_size, min_frequency=config.min_frequency, special_tokens=special, show_progress=False
    )


def _byte_pairs(config: TokenizerConfig, special: list[str]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend, trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _unigrams(config: TokenizerConfig, special: list[str]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    steps: list[Any] = [normalizers.NFKD() if config.lowercase else normalizers.NFKC()]
    if config.lowercase:
        steps += [normalizers.StripAccents(), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=special, unk_token="[UNK]", show_progress=False
    )


def _frame(backend: Any, kind: str, tokens: dict[str, str]) -> Any:
    """Returns what puts special tokens around a text and between two."""
    from tokenizers import processors

    first, last = tokens["cls"], tokens["sep"]
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    if kind == "bpe":
        return processors.RobertaProcessing(ids[1], ids[0], trim_offsets=True, add_prefix_space=False)
    pair = f"{first}:0 $A:0 {last}:0 $B:1 {last}:1"
    return processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=ids)


_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def extend_tokenizer(tokenizer: Any, sentences: Iterable[str], config: ExtensionConfig) -> tuple[Any, list[str]]:
    """Adds the words to a vocabulary that would save the most tokens of a text.

    The old tokens keep their ids; the new ones come after them, so that a model of the old vocabulary needs new rows only. A word saves its
    frequency times the tokens it has now, less one; where the vocabulary lacks one of its characters, times its characters.

    Args:
      tokenizer: A fast tokenizer of transformers; it stays as it is.
      sentences: The text, piece by piece.
      config: How many words, and which.

    Returns:
      The longer tokenizer, and the new words in the order of their ids.

    Raises:
      DataError: The text has no word that would be worth it.
    """
    from tokenizers import AddedToken

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{type(tokenizer).__name__} is no fast tokenizer, whose vocabulary could be made longer.")
    normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
    counts: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        counts.update(_WORD.findall(normalize(sentence)))
    frequent = [word for word, count in counts.items() if count >= config.min_frequency]
    # Most vocabularies write a word otherwise after a blank than at the start of a text.
    encodings = backend.encode_batch([f"a {word}" for word in frequent], add_special_tokens=False)
    pieces = [
        len(word) if tokenizer.unk_token_id in encoded.ids[1:] else len(encoded.ids) - 1
        for word, encoded in zip(frequent, encodings, strict=True)
    ]
    worth = [
        (counts[word] * (number - 1), word)
        for word, number in zip(frequent, pieces, strict=True)
        if number >= config.min_pieces
    ]
    chosen = [word for _, word in sorted(worth, key=lambda item: (-item[0], item[1]))[: config.num_words]]
    if not chosen:
        raise DataError(
            f"No word comes {config.min_frequency} times and has {config.min_pieces} tokens or more; lower extension.min_frequency or "
            "extension.min_pieces, or keep the vocabulary."
        )
    longer = copy.deepcopy(tokenizer)
    takes_blank = backend.pre_tokenizer is not None and type(backend.pre_tokenizer).__name__ != "BertPreTokenizer"
    longer.add_tokens([AddedToken(word, single_word=True, lstrip=takes_blank) for word in chosen])
    return longer, chosen
