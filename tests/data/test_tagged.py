"""Texts with tagged words: CoNLL files of every make, tables, spans, and what is wrong with them."""

import json

import pytest

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.tagged import find_words, join_words, read_tagged
from flaxbert.errors import DataError


def write(folder, text, name="a.conll"):
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def read(source, config=DataConfig(), **options):
    return read_tagged(source, config, TaskConfig(**options))


def words_of(examples):
    return [[text[a:b] for a, b in words] for text, words in zip(examples.texts, examples.words, strict=True)]


def test_sentences_end_at_blank_lines_with_or_without_a_tab(tmp_path):
    examples = read(write(tmp_path, "-DOCSTART-\tO\n\nRome\tB-LOC\nis\tO\n\t\n\n\nNew\tB-LOC\nYork\tI-LOC\n"))
    assert words_of(examples) == [["Rome", "is"], ["New", "York"]]
    assert examples.entities == [[("LOC", 0, 1)], [("LOC", 0, 2)]]
    assert (examples.scheme, examples.where(1), examples.where_word(1, 1)) == (
        "iob2",
        f"{tmp_path / 'a.conll'}, line 8",
        f"{tmp_path / 'a.conll'}, line 9",
    )


def test_columns_and_separators_are_any(tmp_path):
    path = write(tmp_path, "# sent_id = 1\nB-X 1 Rome _\nO 2 # _\n")
    examples = read(path, token_column="2", tag_column="0")
    assert words_of(examples) == [["Rome", "#"]]
    assert examples.entities == [[("X", 0, 1)]]
    path = write(tmp_path, "Rome|x|B-X\nis|x|O\n")
    assert read(path, DataConfig(delimiter="|")).entities == [[("X", 0, 1)]]


@pytest.mark.parametrize(
    ("tags", "scheme", "entities"),
    [
        ("I-A I-A B-A O", "iob1", [("A", 0, 2), ("A", 2, 3)]),
        ("B-A I-A B-A O", "iob2", [("A", 0, 2), ("A", 2, 3)]),
        ("B-A E-A S-A O", "iobes", [("A", 0, 2), ("A", 2, 3)]),
        ("B-A L-A U-A O", "iobes", [("A", 0, 2), ("A", 2, 3)]),
    ],
)
def test_schemes_are_found_out_and_mean_the_same(tmp_path, tags, scheme, entities):
    path = write(tmp_path, "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags.split())))
    examples = read(path)
    assert (examples.scheme, examples.entities) == (scheme, [entities])
    assert read(path, tag_scheme=scheme).entities == [entities]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("Rome\tB-LOC\nis\tX-LOC\n", {}, r"line 2: 'X-LOC' is no tag of an entity"),
        ("Rome\tB-LOC\nis\n", {}, r"line 2: 1 fields, but 2 are expected"),
        ("Rome\n", {}, r"line 1: 1 fields, but at least 2"),
        ("Rome\tI-LOC\n", {"tag_scheme": "iob2"}, r"line 1: the tag 'I-LOC' continues no entity.*task\.tag_scheme is iob2"),
        ("", {}, "holds no words"),
        ("-DOCSTART- O\n\n", {}, "holds no words"),
        ("a O\n", {"token_column": "5"}, r"line 1: there are 2 fields"),
    ],
)  # fmt: skip
def test_faulty_files_are_named_with_their_line(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, text), **options)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"nothing\.conll: there is no such file"):
        read("nothing.conll")


def test_tables_of_words_and_tags():
    rows = [{"tokens": ["Rome", "is"], "ner_tags": ["B-LOC", "O"]}]
    assert read(rows).entities == [[("LOC", 0, 1)]]
    with pytest.raises(DataError, match="there are 1 words, but 2 tags"):
        read([{"tokens": ["Rome"], "ner_tags": ["O", "O"]}])
    with pytest.raises(DataError, match="not a list of tags"):
        read([{"tokens": ["Rome"], "ner_tags": 3}])


def test_class_numbers_of_datasets_have_names():
    import datasets

    names = datasets.Sequence(datasets.ClassLabel(names=["O", "B-LOC"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": names})
    table = datasets.Dataset.from_dict({"tokens": [["Rome", "is"]], "ner_tags": [[1, 0]]}, features=features)
    assert read(table).entities == [[("LOC", 0, 1)]]


def test_spans_of_characters(tmp_path):
    lines = [
        {"text": "In New York, U.S. (APC-like)", "entities": [
            {"start": 3, "end": 11, "label": "LOC"}, {"start": 19, "end": 22, "label": "GENE"}]},
        {"text": "Nothing here.", "entities": []},
    ]  # fmt: skip
    examples = read(write(tmp_path, "\n".join(map(json.dumps, lines)), "a.jsonl"))
    assert words_of(examples)[0] == ["In", "New", "York", ",", "U.S", ".", "(", "APC", "-like", ")"]
    assert examples.entities == [[("LOC", 1, 3), ("GENE", 7, 8)], []]
    other = [{"text": "Rome is", "spans": [[0, 5, "LOC"]]}]  # the space at the end is no part of it
    assert read(other, span_column="spans").entities == [[("LOC", 0, 1)]]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 0, "end": 2, "label": "A"}, r"line 1: the span 0 to 2 \('Ro', A\) begins or ends inside a word"),
        ({"start": 3, "end": 99, "label": "A"}, "is not in the text of 7"),
        ({"start": 5, "end": 4, "label": "A"}, "is not in the text"),
        ({"start": 0, "label": "A"}, "is no span"),
        ({"start": 0, "end": 7, "label": "B"}, "overlap"),
    ],
)
def test_faulty_spans_are_named_with_their_line(tmp_path, span, message):
    record = {"text": "Rome is", "entities": [{"start": 0, "end": 4, "label": "A"}, span]}
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, json.dumps(record), "a.jsonl"))


def test_words_of_texts():
    text = "naïve don't 北京 x.y!"
    assert [text[a:b] for a, b in find_words(text)] == ["naïve", "don't", "北", "京", "x.y", "!"]
    joined, spans = join_words(["a", "bc"])
    assert (joined, spans.tolist()) == ("a bc", [[0, 1], [2, 4]])


def test_labels_can_be_renamed(tmp_path):
    path = write(tmp_path, "Rome\tB-LOC\n")
    assert read(path, DataConfig(label_map={"B-LOC": "B-place"})).entities == [[("place", 0, 1)]]


def test_single_labels_of_words(tmp_path):
    examples = read(write(tmp_path, "Rome\tNOUN\nis\tVERB\n"), tag_scheme="tags")
    assert examples.tags == [["NOUN", "VERB"]]
    assert examples.entities is None
