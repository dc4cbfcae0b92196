"""Tokenizers that are learned: every kind splits, joins and marks words, and loads again."""

import numpy as np
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import CorpusConfig, ExtensionConfig, TokenizerConfig
from flaxbert.data.tokenizer_training import extend_tokenizer, train_tokenizer
from flaxbert.data.words import word_table
from flaxbert.errors import ConfigError, DataError
from flaxbert.train.recipes.tokenizer import extend_tokenizer_for_corpus, train_tokenizer_of_corpus
from flaxbert.weights.tokenizer import load_tokenizer

SENTENCES = [
    f"the filmmaker {verb} a film about filming in Zürich {place}" for verb in ("makes", "made") for place in range(50)
]
KINDS = ("wordpiece", "bpe", "unigram")


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives(kind):
    tokenizer = train_tokenizer(SENTENCES, TokenizerConfig(kind=kind, vocab_size=320, lowercase=False))
    assert len(tokenizer.get_vocab()) <= 320
    assert tokenizer.decode(tokenizer(SENTENCES[3])["input_ids"], skip_special_tokens=True) == SENTENCES[3]
    assert tokenizer.unk_token_id not in tokenizer(SENTENCES[3])["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_frame_one_text_and_two(kind):
    tokenizer = train_tokenizer(SENTENCES, TokenizerConfig(kind=kind, vocab_size=320))
    first, last = tokenizer.cls_token, tokenizer.sep_token
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("film", "made")["input_ids"])
    assert (tokens[0], tokens[-1]) == (first, last)
    assert tokens.count(last) == (3 if kind == "bpe" else 2)
    types = tokenizer("film", "made", return_token_type_ids=True)["token_type_ids"]
    assert max(types) == (0 if kind == "bpe" else 1)
    assert tokenizer.mask_token_id is not None


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_can_be_told(kind):
    tokenizer = train_tokenizer(SENTENCES, TokenizerConfig(kind=kind, vocab_size=300))
    ids = np.array(tokenizer("the filmmaker made a film", add_special_tokens=False)["input_ids"])
    assert word_table(tokenizer).word_starts(ids).sum() == 5


def test_case_and_accents():
    lower = train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=200))
    assert lower.tokenize("ZÜRICH") == lower.tokenize("zurich")
    cased = train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=200, lowercase=False))
    assert cased.tokenize("Zürich") != cased.tokenize("zurich")


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_loads_here_and_in_transformers(kind, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "a.txt").write_text("\n\n".join(SENTENCES))
    lines = []
    config = TokenizerConfig(kind=kind, vocab_size=320, folder=str(tmp_path / "tokenizer"))
    made = train_tokenizer_of_corpus(config, CorpusConfig(inputs=(str(tmp_path / "a.txt"),)), say=lines.append)
    assert f"{kind} tokenizer of {len(made.get_vocab())} entries" in lines[0]
    expected = made(SENTENCES[0])["input_ids"]
    for again in (
        AutoTokenizer.from_pretrained(config.folder),
        load_tokenizer(config.folder, ModelConfig(vocab_size=320)),
    ):
        assert again(SENTENCES[0])["input_ids"] == expected
        assert again.mask_token == made.mask_token
    with pytest.raises(ConfigError, match=r"is not empty; .*tokenizer\.overwrite"):
        train_tokenizer_of_corpus(config, CorpusConfig(inputs=(str(tmp_path / "a.txt"),)))


def test_bad_input(tmp_path):
    with pytest.raises(DataError, match="no text to learn"):
        train_tokenizer([], TokenizerConfig())
    with pytest.raises(ConfigError, match="bpe needs 261"):
        TokenizerConfig(kind="bpe", vocab_size=100)
    (tmp_path / "a.txt").write_text("a film")
    lines = []
    config = TokenizerConfig(vocab_size=500, min_frequency=1, folder=str(tmp_path / "tokenizer"))
    train_tokenizer_of_corpus(config, CorpusConfig(inputs=(str(tmp_path / "a.txt"),)), say=lines.append)
    assert "fewer than 500: the text gives no more" in lines[0]


TERMS = [f"the osteoblast{end} and glioblastoma cells {number}" for end in ("", "ic") for number in range(30)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_gets_the_words_that_save_most_tokens(kind):
    base = train_tokenizer(SENTENCES, TokenizerConfig(kind=kind, vocab_size=320))
    before = base.get_vocab()
    config = ExtensionConfig(num_words=2, min_frequency=20, min_pieces=3)
    longer, words = extend_tokenizer(base, TERMS, config)
    assert words == ["glioblastoma", "osteoblastic"] or words == ["glioblastoma", "osteoblast"]
    assert base.get_vocab() == before, "the old tokenizer stays as it is"
    assert {token: longer.get_vocab()[token] for token in before} == before
    assert sorted(set(longer.get_vocab().values()) - set(before.values())) == [len(before), len(before) + 1]
    new = longer.convert_tokens_to_ids("glioblastoma")
    for text in ("the glioblastoma cells", "glioblastoma"):
        ids = longer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(new) == 1
        assert len(ids) < len(base(text, add_special_tokens=False)["input_ids"])
    assert new not in longer("glioblastomata")["input_ids"], "inside of other words nothing changes"
    table = word_table(longer)
    ids = np.array(longer("the glioblastoma film", add_special_tokens=False)["input_ids"])
    place = int(np.flatnonzero(ids == new)[0])
    assert table.word_starts(ids)[place : place + 2].tolist() == [True, True]
    with pytest.raises(DataError, match="No word comes 20 times"):
        extend_tokenizer(base, ["nothing here"], config)


def test_a_longer_tokenizer_is_written_and_refused_where_it_can_not_be(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TERMS))
    text = CorpusConfig(inputs=(str(tmp_path / "text.txt"),), document="line")
    train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=200)).save_pretrained(str(tmp_path / "base"))
    config = ExtensionConfig(base=str(tmp_path / "base"), folder=str(tmp_path / "longer"), num_words=3)
    lines = []
    extend_tokenizer_for_corpus(config, text, say=lines.append)
    assert "3 words beside the" in lines[0]
    read = load_tokenizer(tmp_path / "longer", ModelConfig(vocab_size=10_000))
    assert "glioblastoma" in read.get_vocab()
    with pytest.raises(ConfigError, match="is not empty"):
        extend_tokenizer_for_corpus(config, text)
    with pytest.raises(ConfigError, match=r"extension\.base is empty"):
        extend_tokenizer_for_corpus(ExtensionConfig(folder=str(tmp_path / "c")), text)
    with pytest.raises(ConfigError, match=r"extension\.num_words is 0"):
        ExtensionConfig(num_words=0)
