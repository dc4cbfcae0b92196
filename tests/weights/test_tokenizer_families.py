"""Tokenizers of every family from the files that their checkpoints come with, against golden cases and the original library."""

import json
import pathlib
import shutil

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.data.tokenization import tokenize
from flaxbert.errors import WeightsError
from flaxbert.weights.tokenizer import load_tokenizer
from tests.weights.bertweet import bertweet

TEXTS = ["Hello world, a fine film.", "Zürich's naïve café: 3.14 €!", "東京 is far", "  two  spaces\tand\ttabs ", ""]


def folder_of(test_data, tmp_path, **files):
    """A folder with files of the test data under other names, a config.json, and tokenizer settings."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, source in files.items():
        target = folder / name.replace("__", ".")
        if isinstance(source, dict):
            target.write_text(json.dumps(source))
        else:
            shutil.copyfile(test_data / "tokenizers" / source, target)
    return folder


def load(folder, family, **changes):
    return load_tokenizer(folder, ModelConfig(family=family, vocab_size=300_000, **changes))


def test_golden_word_pieces(test_data, tmp_path):
    folder = folder_of(
        test_data, tmp_path, vocab__txt="bert-base-uncased-vocab.txt", tokenizer_config__json={"do_lower_case": True}
    )
    tokenizer = load(folder, "bert")
    words = json.loads(test_data.joinpath("tokenizer_fixtures", "basic_tokenized_questions.json").read_text("utf-8"))
    golden = json.loads(test_data.joinpath("tokenizer_fixtures", "tokenized_questions.json").read_text("utf-8"))
    examples = tokenize(tokenizer, [" ".join(row) for row in words], max_length=512)
    ids = [
        examples.input_ids[start + 1 : end - 1].tolist()
        for start, end in zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    ]
    assert len(golden) == 10_570
    assert [index for index, row in enumerate(golden) if row != ids[index]] == []


SUITES = {
    "google-bert/bert-base-uncased": ("bert", "bert-base-uncased-vocab.txt", True),
    "bert-base-uncased": ("electra", "bert-base-uncased-vocab.txt", True),
    "distilbert/distilbert-base-multilingual-cased": (
        "distilbert",
        "bert-base-multilingual-cased-vocab.txt",
        False,
    ),
}


@pytest.mark.parametrize("name", SUITES)
def test_golden_suites(name, test_data, tmp_path):
    suites = json.loads(test_data.joinpath("tokenizer_fixtures", "tokenizer_tests.json").read_text("utf-8"))
    family, vocabulary, lower_case = SUITES[name]
    folder = folder_of(test_data, tmp_path, vocab__txt=vocabulary, tokenizer_config__json={"do_lower_case": lower_case})
    tokenizer = load(folder, family)
    for case in suites[name]:
        assert tokenizer(case["input"])["input_ids"] == case["encoded"]["input_ids"], case["input"]


def test_albert_from_sentencepiece(test_data, tmp_path):
    import sentencepiece

    folder = folder_of(
        test_data,
        tmp_path,
        spiece__model="albert-spiece.model",
        config__json={"model_type": "albert"},
        tokenizer_config__json={"do_lower_case": True, "tokenizer_class": "AlbertTokenizer"},
    )
    tokenizer = load(folder, "albert")
    assert tokenizer.is_fast
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    for text in TEXTS[:1]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.cls_token_id
        assert ids[1:-1] == pieces.encode(text.lower())


def test_roberta_from_vocabulary_and_merges(test_data, tmp_path):
    folder = folder_of(
        test_data,
        tmp_path,
        vocab__json="roberta-vocab.json",
        merges__txt="roberta-merges.txt",
        config__json={"model_type": "roberta"},
    )
    tokenizer = load(folder, "roberta")
    assert tokenizer("Hello World, a fine film.", "second")["input_ids"] == [
        0, 31414, 623, 6, 10, 2051, 822, 4, 2, 2, 10815, 2
    ]  # fmt: skip
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_bertweet_normalises_tweets(tmp_path):
    tokenizer = bertweet(tmp_path)
    assert tokenizer.model_max_length == 128
    assert tokenizer.normalizeTweet("@someone see https://x.y/z 😀") == "@USER see HTTPURL :grinning_face:"
    ids = tokenizer("@someone a fine film")["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words[:4] == ["<s>", "@USER", "a", "fine"]
    examples = tokenize(tokenizer, ["@someone a fine film", "a fine"], max_length=6, warn=False)
    assert examples.truncated.tolist() == [True, False]
    assert examples.input_ids[:4].tolist() == ids[:4]
    assert examples.pad_token_id == 1


@pytest.mark.parametrize(
    ("file", "family"), [("spiece.model", "albert"), ("spm.model", "deberta-v2"), ("vocab.json", "roberta")]
)
def test_malformed_files_are_named(file, family, tmp_path):
    (tmp_path / file).write_bytes(b"\x00\x01 no tokenizer \xff")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(WeightsError, match=rf"tokenizer.*{pathlib.PurePath(tmp_path).name}"):
        load(tmp_path, family)
