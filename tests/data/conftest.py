"""A small tokenizer that the tests of this folder share."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["a", "b", "c", "d", "e", "f", "g", "good", "bad", "film", "fine", "awful", "one", "two", "three"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Word level, BERT's special tokens and token types."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return built
