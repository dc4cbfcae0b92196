"""``flaxbert tokenizer train``: learns a tokenizer from raw text."""

from flaxbert.config import CorpusConfig, TokenizerConfig


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
