"""``flaxbert tokenizer train`` and ``flaxbert tokenizer extend``: vocabularies from raw text."""

from flaxbert.config import CorpusConfig, ExtensionConfig, TokenizerConfig


def train(corpus: CorpusConfig = CorpusConfig(), tokenizer: TokenizerConfig = TokenizerConfig()) -> int:
    """Learns a tokenizer from raw text and writes it as a folder that flaxbert and transformers load.

    Args:
      corpus: Which text.
      tokenizer: Kind, size and folder.

    Returns:
      The exit code.
    """
    from flaxbert.train.recipes.tokenizer import train_tokenizer_of_corpus

    train_tokenizer_of_corpus(tokenizer, corpus)
    return 0


def extend(corpus: CorpusConfig = CorpusConfig(), extension: ExtensionConfig = ExtensionConfig()) -> int:
    """Adds the words of raw text to a vocabulary, for a model that goes on to learn from such text.

    Args:
      corpus: Which text.
      extension: Which vocabulary, and how many words.

    Returns:
      The exit code.
    """
    from flaxbert.train.recipes.tokenizer import extend_tokenizer_for_corpus

    extend_tokenizer_for_corpus(extension, corpus)
    return 0
