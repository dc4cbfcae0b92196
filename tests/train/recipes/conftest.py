"""A small language that tests pre-train on."""

import numpy as np
import pytest

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig, TokenizerConfig
from flaxbert.train.recipes.prepare import prepare_corpus
from flaxbert.train.recipes.tokenizer import train_tokenizer_of_corpus

NOUNS, VERBS = ("cat", "dog", "hen", "fox"), ("sees", "likes", "follows", "fears")
ORDER = ("First", "Then", "Later", "Soon", "Next", "Finally")
TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.15,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A language in which nouns and verbs follow from each other (noun i, verb i, noun i + 1), and sentences have an order."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        first = int(random.integers(4))
        lines.append(
            " ".join(
                f"{ORDER[i]} the {NOUNS[(first + i) % 4]} {VERBS[(first + i) % 4]} the {NOUNS[(first + i + 1) % 4]}."
                for i in range(6)
            )
        )
    (folder / "text.txt").write_text("\n".join(lines))
    text = CorpusConfig(inputs=(str(folder / "text.txt"),), document="line")
    train_tokenizer_of_corpus(
        TokenizerConfig(folder=str(folder / "tokenizer"), vocab_size=120), text, say=lambda line: None
    )
    config = PrepareConfig(
        folder=str(folder / "corpus"), tokenizer=str(folder / "tokenizer"), num_shards=1, num_workers=1
    )
    prepare_corpus(config, text, DedupConfig(), say=lambda line: None)
    return folder / "corpus"
