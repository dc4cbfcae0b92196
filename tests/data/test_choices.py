"""Questions with choices from tables and objects, and what is wrong with them."""

import json

import pytest

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.choices import read_choices
from flaxbert.errors import DataError


def read(source, **options):
    return read_choices(source, DataConfig(), TaskConfig(**options))


def test_json_lines_with_a_list(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"question": "q", "choices": ["a", "b"], "label": 1},
        {"question": "r", "choices": ["c", "d"], "label": "A"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = read(str(path))
    assert examples.answers.tolist() == [1, 0]
    assert examples.pairs == (["q", "q", "r", "r"], ["a", "b", "c", "d"])
    assert examples.where(1) == f"{path}, line 2"


def test_columns_of_swag(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sent1,sent2,ending1,ending0,label\nHe came.,He,left,sat,left\n")
    examples = read(str(path), context_column="sent1", question_column="sent2")
    assert examples.choices == [["sat", "left"]]
    assert examples.answers.tolist() == [1]
    assert examples.pairs == (["He came.", "He came."], ["He sat", "He left"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "r", "choices": ["c"], "label": 0}, "line 2: there are 1 choices, but 2 are needed"),
        ({"question": "r", "choices": ["c", "d", "e"], "label": 0}, "line 2: there are 3 choices, but 2"),
        ({"question": "r", "choices": ["c", " "], "label": 0}, "line 2: the choice ' ' is not a text"),
        ({"question": "r", "choices": ["c", "d"], "label": 2}, "line 2: the right choice is 2, but must be"),
        ({"question": "r", "choices": "cd", "label": 0}, "not a list"),
        ({"question": None, "choices": ["c", "d"], "label": 0}, "column 'question' holds None"),
        ({"question": "r", "choices": ["c", "d"]}, "there is no column 'label'"),
    ],
)
def test_faulty_rows_are_named_with_their_line(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"question": "q", "choices": ["a", "b"], "label": 1}, row])))
    with pytest.raises(DataError, match=message):
        read(str(path))
