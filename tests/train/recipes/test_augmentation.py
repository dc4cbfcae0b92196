"""Copies of training texts in which a masked language model has replaced words."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxbert.config import AugmentationConfig, DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.core.sharding import build_mesh
from flaxbert.errors import ConfigError
from flaxbert.model import load
from flaxbert.train.recipes import setup
from flaxbert.train.recipes.augmentation import WORD, WordProposer, augment
from tests.weights.tiny import CONFIG, write_tiny

TEXTS = ("a fine film", "The film was bad.", "films, fine films", "bad .")
WIDE = CONFIG.replace(hidden_size=16, num_attention_heads=2, initializer_range=0.5)


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("filler") / "model", task="fill-mask", config=WIDE)


def test_words_are_replaced_by_the_likeliest_ones_for_their_place(filler):
    config = AugmentationConfig(model=str(filler), copies=6, probability=0.5, num_candidates=2)
    proposer = WordProposer.load(config, 16)
    found = proposer.copies(TEXTS, config, seed=3)
    assert len(found) == 7 * len(TEXTS)
    assert found[::7] == list(TEXTS)
    assert found == proposer.copies(TEXTS, config, seed=3)
    assert found != proposer.copies(TEXTS, config, seed=4)
    model, changed, total = load(filler, task="fill-mask"), 0, 0
    vocabulary = {number: word for word, number in model.tokenizer.get_vocab().items()}
    allowed = [number for number, word in vocabulary.items() if WORD.fullmatch(word)]
    for number, text in enumerate(TEXTS):
        copies = found[7 * number : 7 * number + 7]
        for copy in copies[1:]:
            old, new = (list(WORD.finditer(one)) for one in (text, copy))
            assert WORD.sub("_", text) == WORD.sub("_", copy)
            for before, after in zip(old, new, strict=True):
                total += 1
                if before.group() == after.group():
                    continue
                changed += 1
                masked = text[: before.start()] + "[MASK]" + text[before.end() :]
                ids = model.tokenizer(masked)["input_ids"]
                scores = model.predict_logits([masked])[0][ids.index(model.tokenizer.mask_token_id)]
                ranked = [vocabulary[number] for number in sorted(allowed, key=lambda number: -scores[number])]
                assert after.group().lower() in [word for word in ranked if word != before.group().lower()][:2]
                assert after.group()[0].isupper() == before.group()[0].isupper()
    assert 0.3 < changed / total < 0.7


def prepare(tmp_path, monkeypatch, rows, **data):
    monkeypatch.setattr(setup, "build_mesh", lambda config: build_mesh(config, jax.devices()[:1]))
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    model = write_tiny(tmp_path / "model", config=WIDE)
    config = RunConfig(
        model=ModelSource(path=str(model)),
        data=DataConfig(train=str(tmp_path / "train.tsv"), validation_rate=0.25, max_length=16, **data),
        train=TrainConfig(batch_size=2, num_epochs=1),
        output=OutputConfig(folder=str(tmp_path / "run")),
    )
    return setup.prepare(config, lambda line: None)


def test_copies_keep_labels_and_make_epochs_longer(filler, tmp_path, monkeypatch):
    rows = [
        "text\tlabel",
        *(f"{text}\t{label}" for text, label in zip(TEXTS, ("bad", "good", "fair", "bad"), strict=True)),
    ]
    prepared = prepare(tmp_path, monkeypatch, rows)
    lines: list[str] = []
    config = AugmentationConfig(model=str(filler), copies=3, probability=1.0)
    more = augment(prepared, config, lines.append)
    count = len(prepared.data.train)
    assert len(more.data.train) == 4 * count
    np.testing.assert_array_equal(more.data.train.labels, np.repeat(prepared.data.train.labels, 4))
    assert len(more.data.validation) == len(prepared.data.validation)
    assert more.steps_per_epoch == more.total_steps == -(-4 * count // 2)
    assert more.data.report["train"].num_examples == 4 * count
    assert "9 texts beside the 3 given, 9 of them changed" in lines[0]


def test_both_texts_of_a_pair_change(filler, tmp_path, monkeypatch):
    rows = [
        "first\tsecond\tlabel",
        *(f"{text}\tfilms was bad\t{label}" for text, label in zip(TEXTS, ("bad", "good", "fair", "bad"), strict=True)),
    ]
    prepared = prepare(
        tmp_path, monkeypatch, rows, text_column="first", text_pair_column="second", group_by_length=False
    )
    more = augment(prepared, AugmentationConfig(model=str(filler), copies=1, probability=1.0), lambda line: None)
    examples = more.data.splits["train"].examples
    for number in range(0, len(examples), 2):
        assert examples.texts[number + 1] != examples.texts[number]
        assert examples.pairs[number + 1] != "films was bad"


def test_what_can_not_be_augmented_is_refused(filler, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="belong together"):
        AugmentationConfig(copies=2)
    with pytest.raises(ConfigError, match="probability is 0"):
        AugmentationConfig(model="x", copies=2, probability=0.0)
    headless = write_tiny(
        tmp_path / "headless", task="feature-extraction", config=WIDE.replace(labels=(), num_labels=2)
    )
    with pytest.raises(ConfigError, match="fills in no words"):
        WordProposer.load(AugmentationConfig(model=str(headless), copies=1), 16)
    rows = ["text\tlabel", *(f"{text}\t{number % 2}" for number, text in enumerate(TEXTS))]
    prepared = prepare(tmp_path, monkeypatch, rows)
    split = dataclasses.replace(prepared.data.splits["train"], examples=object())
    other = dataclasses.replace(prepared, data=dataclasses.replace(prepared.data, splits={"train": split}))
    with pytest.raises(ConfigError, match="points into its texts"):
        augment(other, AugmentationConfig(model=str(filler), copies=1), lambda line: None)
