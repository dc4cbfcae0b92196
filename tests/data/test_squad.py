"""Questions from SQuAD files, tables and objects, and what is wrong with them."""

import gzip
import json

import numpy as np
import pytest

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.holdout import hold_out
from flaxbert.data.squad import read_questions
from flaxbert.errors import DataError

CONTEXT = "The Normans lived in France."


def document(*entries, title="Normans"):
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": [{"context": CONTEXT, "qas": list(entries)}]}]}


def entry(name, answers=(("France", 21),), **further):
    return {
        "id": name,
        "question": f"Where, {name}?",
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
        **further,
    }


def write(folder, content, name="a.json"):
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return str(path)


def read(source, config=DataConfig(), **settings):
    return read_questions(source, config, TaskConfig(), **settings)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_files_of_both_versions(tmp_path, name):
    path = write(tmp_path, document(entry("1"), entry("2", (("x", 3),), is_impossible=True)), name)
    examples = read(path)
    assert [[(gold.text, gold.start) for gold in golds] for golds in examples.answers] == [[("France", 21)], []]
    assert examples.ids == ["1", "2"]
    assert examples.where(1) == f"{path}, article 'Normans', paragraph 0, question 2"
    assert len(read(path, limit=1)) == 1
    assert read(path, labelled=False).answers is None
    pretty = write(tmp_path, json.dumps(document(entry("1")), indent=1), "b.json")
    assert len(read(pretty)) == 1


def test_whole_articles_are_held_out(tmp_path):
    articles = [document(*(entry(f"{t}{i}") for i in range(5)), title=t)["data"][0] for t in "abcd"]
    train, held_out = hold_out(read(write(tmp_path, {"data": articles})), 0.3, 0)
    assert not set(train.groups) & set(held_out.groups)
    assert (len(train), len(held_out)) == (10, 10)
    assert held_out.select(np.array([1])).ids == [held_out.ids[1]]


@pytest.mark.parametrize(
    "answers",
    [{"text": "France", "answer_start": 21}, {"text": ["France"], "answer_start": [21]}, [{"text": "France", "answer_start": 21}]],
)  # fmt: skip
def test_json_lines_and_objects(tmp_path, answers):
    rows = [
        {"question": "Where?", "context": CONTEXT, "answers": answers},
        {"question": "Who?", "context": CONTEXT, "answers": []},
    ]
    for source in (rows, write(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl")):
        examples = read(source)
        assert [len(golds) for golds in examples.answers] == [1, 0]
        assert examples.answers[0][0].start == 21


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(entry("7", (("France", 20),))), r"question 7: the answer 'France' is said to start at character 20.*It stands at 21"),
        (document(entry("7", (("Rome", 3),))), r"The text does not hold it"),
        (document(entry("7", (("France", -7),))), r"said to start at character -7"),
        (document(entry("7", (("", 3),))), r"an answer is empty"),
        (document({**entry("7"), "question": " "}), r"question 7: the question is ' ', not a text"),
        (document({**entry("7"), "answers": [{"text": "x"}]}), r"not of the form"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "there are no questions"),
        ({"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}, r"not in SQuAD's form.*question"),
        ('{"data": [', "no JSON document"),
    ],
)  # fmt: skip
def test_faulty_files_are_named_with_their_place(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content), DataConfig(format="squad"))


def test_faulty_lines_are_named(tmp_path):
    rows = [{"question": "Where?", "context": CONTEXT, "answers": {"text": "Rome", "answer_start": 0}}]
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: the answer 'Rome'"):
        read(write(tmp_path, json.dumps(rows[0]), "a.jsonl"))
    with pytest.raises(DataError, match="no file|no such file"):
        read("nothing.json")
