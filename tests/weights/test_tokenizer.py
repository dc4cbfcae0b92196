"""Tokenizers from folders of all ages, without torch."""

import json

import pytest

from flaxbert.errors import WeightsError
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from flaxbert.weights.tokenizer import load_tokenizer
from tests.weights.tiny import CONFIG, WORDS, random_params, write_tiny

TEXT = "A fine films ."
IDS = [2, 5, 6, 7, 8, 12, 3]


def _vocabulary(folder, words=WORDS):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    return folder


def test_vocabulary_with_settings(tmp_path):
    tokenizer = load_tokenizer(write_tiny(tmp_path / "model"), CONFIG)
    assert tokenizer(TEXT)["input_ids"] == IDS
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == CONFIG.max_position_embeddings


def test_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path, CONFIG) is None


@pytest.mark.parametrize(("words", "text", "word"), [(WORDS, "FILM", "film"), ([*WORDS, "Film"], "Film", "Film")])
def test_casing_is_inferred_with_a_warning(tmp_path, words, text, word):
    with pytest.warns(UserWarning, match="does not say whether its tokenizer lower-cases"):
        tokenizer = load_tokenizer(_vocabulary(tmp_path, words), CONFIG)
    assert tokenizer.tokenize(text) == [word]


def test_saved_padding_and_truncation_are_switched_off(tmp_path):
    folder = write_tiny(tmp_path / "model")
    tokenizer = load_tokenizer(folder, CONFIG)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    tokenizer.backend_tokenizer.enable_truncation(4)
    save_checkpoint(
        tmp_path / "saved", config=CONFIG, task="sequence-classification", params=random_params(), tokenizer=tokenizer
    )
    stored = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert stored["padding"] is not None
    again = load_tokenizer(tmp_path / "saved", CONFIG)
    assert again(TEXT)["input_ids"] == IDS
    assert again.backend_tokenizer.padding is None
    assert again.backend_tokenizer.truncation is None


def test_round_trip_of_a_saved_tokenizer(tmp_path):
    folder = write_tiny(tmp_path / "model")
    tokenizer = load_tokenizer(folder, CONFIG)
    saved = save_checkpoint(
        tmp_path / "saved", config=CONFIG, task="sequence-classification", params=random_params(), tokenizer=tokenizer
    )
    again = load_tokenizer(saved, load_checkpoint(saved).config)
    assert again(TEXT, "bad") == tokenizer(TEXT, "bad")
    assert again.get_vocab() == tokenizer.get_vocab()


def test_tokenizer_json_alone(tmp_path):
    tokenizer = load_tokenizer(write_tiny(tmp_path / "model"), CONFIG)
    alone = tmp_path / "alone"
    alone.mkdir()
    tokenizer.backend_tokenizer.save(str(alone / "tokenizer.json"))
    again = load_tokenizer(alone, CONFIG)
    assert again(TEXT)["input_ids"] == IDS
    assert (again.pad_token, again.mask_token, again.pad_token_id) == ("[PAD]", "[MASK]", 0)


def test_larger_vocabulary_than_the_model(tmp_path):
    folder = _vocabulary(tmp_path, [*WORDS, *(f"word{number}" for number in range(40))])
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(
        WeightsError, match=r"has 53 tokens \(the last is 'word39'\), but the model's vocabulary has 31"
    ):
        load_tokenizer(folder, CONFIG)


def test_longest_input_is_the_smaller_of_both(tmp_path):
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 7}')
    assert load_tokenizer(folder, CONFIG).model_max_length == 7
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 1e30}')
    assert load_tokenizer(folder, CONFIG).model_max_length == 16


def test_code_of_the_folder_is_never_run(tmp_path):
    tokenizer = load_tokenizer(write_tiny(tmp_path / "model"), CONFIG)
    folder = save_checkpoint(
        tmp_path / "saved", config=CONFIG, task="sequence-classification", params=random_params(), tokenizer=tokenizer
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text("raise SystemExit('the code ran')")
    with pytest.warns(UserWarning, match="code of its own"):
        assert load_tokenizer(folder, CONFIG)(TEXT)["input_ids"] == IDS


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0", "model": {"type": "Nonsense"}}'])
def test_malformed_tokenizer_json(tmp_path, content):
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match="tokenizer"):
        load_tokenizer(folder, CONFIG)


def test_vocabulary_that_is_no_text(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="can not be read as UTF-8"):
        load_tokenizer(tmp_path, CONFIG)
