"""Made-up texts and batches of a given size."""

import numpy as np
import pytest

from flaxbert.comparison.texts import full_batch, make_texts, padded_batch, random_examples, texts_for, tokenized
from flaxbert.config import DataConfig
from flaxbert.errors import DataError
from flaxbert.model import load


@pytest.fixture(scope="module")
def model(models):
    return load(models["float"])


def test_made_up_texts_are_the_same_for_one_seed(model):
    first, again, other = (make_texts(model.tokenizer, 5, 8, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 5
    assert all(text.strip() for text in first)
    assert not any(token in text for text in first for token in ("[CLS]", "[PAD]", "[MASK]"))


def test_texts_come_from_a_file_where_one_is_named(model, tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_text("a film\nbad\nfine\n", "utf-8")
    assert texts_for(model.tokenizer, str(lines), DataConfig(), (), 2, 8, 0) == ["a film", "bad"]
    table = tmp_path / "texts.tsv"
    table.write_text("words\tlabel\nthe film\tgood\n", "utf-8")
    assert texts_for(model.tokenizer, str(table), DataConfig(text_column="words"), ("fine",), 2, 8, 0) == ["the film"]
    assert texts_for(model.tokenizer, "", DataConfig(), ("one", "two", "three"), 2, 8, 0) == ["one", "two"]
    assert texts_for(model.tokenizer, "", DataConfig(), (), 2, 8, 0) == make_texts(model.tokenizer, 2, 8, 0)
    with pytest.raises(DataError, match="no file"):
        texts_for(model.tokenizer, str(tmp_path / "none.txt"), DataConfig(), (), 2, 8, 0)


@pytest.mark.parametrize("length", [3, 7, 16])
def test_full_batches_have_no_padding(model, length):
    examples = tokenized(model, ["the film was bad .", "fine"], 16)
    batch = full_batch(model, examples, 5, length)
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (5, length)
    assert batch["attention_mask"].all()
    first, last = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    assert (batch["input_ids"][:, 0] == first).all()
    assert (batch["input_ids"][:, -1] == last).all()
    assert not np.isin(batch["input_ids"][:, 1:-1], [first, last]).any()


def test_texts_without_words_fill_a_batch_too(model):
    assert full_batch(model, tokenized(model, [""], 16), 2, 6)["input_ids"].shape == (2, 6)


def test_without_tokenizer_ids_are_drawn(model):
    examples = random_examples(model, 6, 10, seed=0)
    assert (examples.lengths >= 5).all()
    assert (examples.lengths <= 10).all()
    batch = padded_batch(model.task, examples)
    assert batch["input_ids"].max() < model.config.vocab_size
    assert (batch["attention_mask"].sum(axis=1) == examples.lengths).all()
