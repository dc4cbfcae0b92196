"""The recipe behind ``flaxbert tokenizer train``."""

import itertools
from pathlib import Path
from typing import Any

from flaxbert.config import CorpusConfig, TokenizerConfig
from flaxbert.data.corpus import expand_inputs
from flaxbert.data.preparation import iterate_documents
from flaxbert.data.tokenizer_training import train_tokenizer
from flaxbert.errors import ConfigError
from flaxbert.train.recipes.setup import Say, say_on_first
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
    folder = Path(config.folder)
    if folder.exists() and not config.overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; choose another tokenizer.folder, or set tokenizer.overwrite: true.")
    documents = iterate_documents(expand_inputs(corpus), corpus)
    chosen = itertools.islice(documents, config.max_documents or None)
    tokenizer = train_tokenizer((sentence for _, document in chosen for sentence in document.sentences), config)
    with fresh_folder(folder, overwrite=config.overwrite) as new:
        tokenizer.save_pretrained(str(new))
    size = len(tokenizer.get_vocab())
    fewer = f" (fewer than {config.vocab_size:,}: the text gives no more)" if size < config.vocab_size else ""
    say(f"{folder}: {config.kind} tokenizer of {size:,} entries{fewer}")
    return tokenizer
