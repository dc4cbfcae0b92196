"""The recipes behind ``flaxbert tokenizer train`` and ``flaxbert tokenizer extend``."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxbert.config import CorpusConfig, ExtensionConfig, TokenizerConfig
from flaxbert.data.corpus import read_documents
from flaxbert.data.inputs import expand_inputs
from flaxbert.data.tokenizer_training import extend_tokenizer, train_tokenizer
from flaxbert.errors import ConfigError
from flaxbert.train.recipes.setup import Say, say_on_first
from flaxbert.weights.hub import resolve
from flaxbert.weights.tokenizer import tokenizer_alone
from flaxbert.weights.writers import fresh_folder


def train_tokenizer_of_corpus(config: TokenizerConfig, corpus: CorpusConfig, *, say: Say = say_on_first) -> Any:
    """Learns a tokenizer from raw text and writes its folder.

    Args:
      config: Kind, size and folder.
      corpus: The text.
      say: Where lines for the user go.

    Returns:
      The tokenizer.

    Raises:
      ConfigError: The folder holds something.
      DataError: There is no text, or a file can not be read.
    """
    folder = _free_folder(config, "tokenizer")
    tokenizer = train_tokenizer(_sentences(corpus, config.max_documents), config)
    with fresh_folder(folder, overwrite=config.overwrite) as new:
        tokenizer.save_pretrained(str(new))
    size = len(tokenizer.get_vocab())
    fewer = f" (fewer than {config.vocab_size:,}: the text gives no more)" if size < config.vocab_size else ""
    say(f"{folder}: {config.kind} tokenizer of {size:,} entries{fewer}")
    return tokenizer


def extend_tokenizer_for_corpus(config: ExtensionConfig, corpus: CorpusConfig, *, say: Say = say_on_first) -> Any:
    """Adds the words of raw text to a vocabulary and writes its folder.

    Args:
      config: Which vocabulary, how many words, and the folder.
      corpus: The text.
      say: Where lines for the user go.

    Returns:
      The longer tokenizer.

    Raises:
      ConfigError: No vocabulary is named, or the folder holds something.
      DataError: There is no text, or no word in it is worth adding.
    """
    if not config.base:
        raise ConfigError("extension.base is empty: name the model or tokenizer whose vocabulary is to get longer.")
    folder = _free_folder(config, "extension")
    base = tokenizer_alone(resolve(config.base))
    tokenizer, words = extend_tokenizer(base, _sentences(corpus, config.max_documents), config)
    with fresh_folder(folder, overwrite=config.overwrite) as new:
        tokenizer.save_pretrained(str(new))
    shown = ", ".join(words[:8])
    say(f"{folder}: {len(words):,} words beside the {len(base.get_vocab()):,} entries of {config.base}: {shown}…")
    return tokenizer


def _free_folder(config: TokenizerConfig | ExtensionConfig, section: str) -> Path:
    folder = Path(config.folder)
    if folder.exists() and not config.overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; choose another {section}.folder, or set {section}.overwrite: true.")
    return folder


def _sentences(corpus: CorpusConfig, max_documents: int) -> Iterator[str]:
    documents = (document for part in expand_inputs(corpus) for document in read_documents(part, corpus))
    return (sentence for found in itertools.islice(documents, max_documents or None) for sentence in found.sentences)
