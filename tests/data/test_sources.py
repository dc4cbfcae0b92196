"""Reading files, folders, hub ids and objects; each kind of malformed input ends in one error that says where."""

import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from flaxbert.config import DataConfig
from flaxbert.data.sources import as_texts, guess_format, read_table
from flaxbert.errors import ConfigError, DataError

TEXT_LABEL = ["text", "label"]


def write(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def read(path, wanted=TEXT_LABEL, **options):
    return read_table(path, wanted, DataConfig(**options))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"x, y",1\nz,0\n'),
        ("a.csv", '\ufefftext,label\r\n"x, y",1\r\n\r\nz,0'),
        ("a.csv.gz", 'label,text\n1,"x, y"\n0,z\n'),
        ("a.tsv", "label\tother\ttext\n1\t\tx, y\n0\t\tz\n"),
        ("a.jsonl", '{"text": "x, y", "label": "1"}\n\n{"label": "0", "text": "z"}\n'),
        ("a.jsonl.gz", '{"text": "x, y", "label": "1"}\n{"label": "0", "text": "z", "more": []}'),
    ],
)
def test_files_of_every_kind_give_the_same_columns(tmp_path, name, content):
    table = read(write(tmp_path, name, content))
    assert table.columns == {"text": ["x, y", "z"], "label": ["1", "0"]}
    assert len(table) == 2


def test_a_quoted_field_may_span_lines_and_rows_know_their_first_line(tmp_path):
    table = read(write(tmp_path, "a.csv", 'text,label\n"one\ntwo",1\nthree,0\n'))
    assert table.columns["text"] == ["one\ntwo", "three"]
    assert table.where(1).endswith("a.csv, line 4")


def test_without_quoting_quotes_are_text_and_other_separators_of_unicode_end_no_line(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"open\t1\nx\u2028y\x85z\t0\n')
    assert read(path, quoting=False).columns["text"] == ['"open', "x\u2028y\x85z"]


def test_columns_by_position_without_header_and_extra_fields_where_allowed(tmp_path):
    path = write(tmp_path, "a.csv", "1;x\n0;y;more\n")
    table = read(path, ["1", "0"], header=False, delimiter=";", allow_extra_fields=True)
    assert table.columns == {"1": ["x", "y"], "0": ["1", "0"]}


def test_lines_are_taken_apart_by_the_pattern_in_their_encoding(tmp_path):
    path = write(tmp_path, "a.txt", "DESC:manner How are caf\xe9s ?\nNUM:date When ?\n".encode("latin-1"))
    table = read(path, line_pattern=r"(?P<label>\w+):\S+ (?P<text>.+)", encoding="latin-1")
    assert table.columns == {"text": ["How are cafés ?", "When ?"], "label": ["DESC", "NUM"]}


def test_plain_lines_are_the_column_text(tmp_path):
    assert read(write(tmp_path, "a.txt", "one\ntwo"), ["text"]).columns["text"] == ["one", "two"]


def test_utf_16_and_long_fields_are_read(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path, "a.csv", f'text,label\n"{long}",1\n'.encode("utf-16"))
    assert read(path, encoding="utf-16").columns["text"] == [long]


def test_limit_keeps_the_first_rows(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nx,1\ny,0\nmalformed\n")
    assert read_table(path, TEXT_LABEL, DataConfig(), limit=2).columns["text"] == ["x", "y"]


def test_parquet(tmp_path):
    path = str(tmp_path / "a.parquet")
    pd.DataFrame({"text": ["x", "y"], "label": [1, 0], "other": [None, 2]}).to_parquet(path)
    assert read(path).columns == {"text": ["x", "y"], "label": [1, 0]}


def make_dataset():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, 1]}, features=features)


def test_folders_of_datasets_with_and_without_splits(tmp_path):
    make_dataset().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": make_dataset()}).save_to_disk(tmp_path / "many")
    for folder in ("one", "many"):
        table = read(str(tmp_path / folder))
        assert table.columns == {"text": ["x", "y", "z"], "label": [1, 0, 1]}
        assert table.class_names == {"label": ("no", "yes")}
    with pytest.raises(DataError, match="no split 'trian'.*Did you mean 'train'"):
        read_table(str(tmp_path / "many"), TEXT_LABEL, DataConfig(), split="trian")


def test_a_selection_of_a_dataset_keeps_its_order():
    table = read_table(make_dataset().select([2, 0]), TEXT_LABEL, DataConfig())
    assert table.columns["text"] == ["z", "x"]


def test_hub_ids_go_through_datasets_with_name_and_split(monkeypatch):
    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        return make_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = read_table("nyu-mll/glue", TEXT_LABEL, DataConfig(name="sst2"), split="validation", limit=2)
    assert asked == [("nyu-mll/glue", "sst2", "validation")]
    assert table.columns["text"] == ["x", "y"]
    assert table.where(1) == "nyu-mll/glue/sst2, split validation, row 1"


@pytest.mark.filterwarnings("ignore:.*")
def test_a_hub_that_can_not_be_reached_is_an_error_that_says_so():
    with pytest.raises(DataError, match=r"nobody/nothing, split train: neither a file .* the network"):
        read("nobody/nothing")


@pytest.mark.parametrize(
    "source",
    [
        [("x", 1), ("y", 0)],
        [{"text": "x", "label": 1}, {"text": "y", "label": 0, "more": 2}],
        {"text": ["x", "y"], "label": np.array([1, 0])},
        pd.DataFrame({"label": [1, 0], "text": ["x", "y"]}, index=[7, 9]),
        np.array([["x", 1], ["y", 0]], object),
    ],
)
def test_objects_of_every_kind_give_the_same_columns(source):
    table = read_table(source, TEXT_LABEL, DataConfig())
    assert {name: list(values) for name, values in table.columns.items()} == {"text": ["x", "y"], "label": [1, 0]}
    assert read_table(table, TEXT_LABEL, DataConfig()) == table


MALFORMED = {
    "missing column": ("a.csv", "sentence,lable\nx,1\n", {}, r"no column 'text'; its columns are 'sentence', 'lable'"),
    "nearest column": ("a.csv", "txt,label\nx,1\n", {}, r"a\.csv, line 1: .*Did you mean 'txt'\?"),
    "no header": ("a.csv", "x,1\n", {"header": False}, r"its 2 columns are the positions 0 to 1"),
    "too few fields": ("a.csv", "text,label\nx,1\ny\n", {}, r"a\.csv, line 3: 1 fields, but the header has 2"),
    "too many fields": ("a.csv", "text,label\nx,y,1\n", {}, r"a\.csv, line 2: 3 fields.*double quotes.*allow_extra"),
    "open quote": (
        "a.csv",
        'text,label\nx,1\n"y,0\nz,1\n',
        {},
        r"record starting at line 3: a quoted field has no end",
    ),
    "stray quote": ("a.csv", 'text,label\n"x"y,0\n', {}, r"starting at line 2.*set data\.quoting: false"),
    "empty file": ("a.csv", "", {}, r"a\.csv: the file holds no records"),
    "empty json": ("a.jsonl", "\n", {}, r"a\.jsonl: the file holds no records"),
    "not utf-8": ("a.csv", b"text,label\nx,1\ncaf\xe9,0\n", {}, r"a\.csv, line 3: the byte 0xe9 at byte 4 .* latin-1"),
    "half json": (
        "a.jsonl",
        '{"text": "x", "label": 1}\n{"text": "y", "la',
        {},
        r"line 2: .*no complete JSON.*cut off",
    ),
    "json array": ("a.json", '[\n{"text": "x"}\n]', {}, r"line 1: the file is one JSON document over several lines"),
    "json list": ("a.jsonl", '["x", 1]\n', {}, r"line 1: the line holds \['x', 1\], a list"),
    "json key": (
        "a.jsonl",
        '{"text": "x", "label": 1}\n{"text": "y", "labl": 1}',
        {},
        r"line 2: .*Did you mean 'labl'",
    ),
    "pattern": ("a.txt", "A:b c\nnothing\n", {"line_pattern": r"(?P<label>\w):\w (?P<text>.+)"}, r"line 2: 'nothing'"),
    "no pattern": ("a.txt", "x\n", {}, r"format lines without data\.line_pattern.*no column 'label'"),
    "cut gzip": ("a.csv.gz", None, {}, r"a\.csv\.gz: the gzip file is damaged or cut off"),
    "no parquet": ("a.parquet", "text", {}, r"a\.parquet: the file is no readable Parquet file"),
    "unknown ending": ("a.data", "x", {}, r"the ending '\.data' does not tell the format; set data\.format"),
    "broken utf-16": ("a.csv", b"text,label\n", {"encoding": "utf-16"}, r"a\.csv, .*not utf-16"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_end_in_an_error_with_file_line_and_cure(tmp_path, case):
    name, content, options, message = MALFORMED[case]
    if content is None:
        content = gzip.compress(b"text,label\n" + b"x,1\n" * 1000)[:-9]
        (tmp_path / name).write_bytes(content)
        path = str(tmp_path / name)
    else:
        path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(path, **options)


def test_missing_files_and_folders_are_named_with_the_nearest(tmp_path):
    write(tmp_path, "train.tsv", "x")
    with pytest.raises(DataError, match=r"trian\.tsv: there is no such file.*Did you mean 'train\.tsv'"):
        read(str(tmp_path / "trian.tsv"))
    with pytest.raises(DataError, match="no folder"):
        read(str(tmp_path / "nowhere" / "train.tsv"))
    with pytest.raises(DataError, match="is a folder, but not one that"):
        read(str(tmp_path))
    with pytest.raises(DataError, match="is a folder, but data.format csv needs a file"):
        read(str(tmp_path), format="csv")


def test_unknown_encodings_and_patterns_are_configuration_errors(tmp_path):
    path = write(tmp_path, "a.txt", "x")
    with pytest.raises(ConfigError, match=r"'utf-88'.*Did you mean 'utf-8'"):
        read(path, ["text"], encoding="utf-88")
    with pytest.raises(ConfigError, match="no regular expression"):
        read(path, ["text"], line_pattern="(")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "there are no rows"),
        ([3], "row 0 is 3, a int"),
        ([("x", 1), ("y",)], r"row 1: \('y',\) does not have 2 fields"),
        ([{"text": "x", "label": 1}, {"text": "y"}], "row 1: there is no 'label'"),
        ({"text": ["x"], "label": []}, "columns differ in length: text 1, label 0"),
        ({"text": [], "label": []}, "there are no rows"),
        (pd.DataFrame({"Text": ["x"], "label": [1]}), "no column 'text'.*Did you mean 'Text'"),
    ],
)
def test_malformed_objects_end_in_an_error(source, message):
    with pytest.raises(DataError, match=message):
        read_table(source, TEXT_LABEL, DataConfig())


@pytest.mark.parametrize(
    ("name", "expected"), [("x/y.TSV.gz", "tsv"), ("a.ndjson", "jsonl"), ("owner/name", "hub"), ("glue", "hub")]
)
def test_the_format_comes_from_the_name(name, expected):
    assert guess_format(name) == expected
    assert guess_format(name, "csv") == "csv"


@pytest.mark.parametrize(
    "inputs",
    [["x", "y"], ("x", "y"), np.array(["x", "y"]), pd.Series(["x", "y"]), make_dataset().select([0, 1])["text"]],
)
def test_texts_of_every_kind(inputs):
    assert as_texts(inputs) == (["x", "y"], None)


COLUMNS = {"text": ["x", "y"], "label": ["a", "b"], "number": [1, 2]}


@pytest.mark.parametrize("kind", [dict, pd.DataFrame, datasets.Dataset.from_dict], ids=["dict", "frame", "dataset"])
def test_texts_of_tables(kind):
    assert as_texts(kind(COLUMNS)) == (["x", "y"], None)
    assert as_texts(kind({"id": [7, 8], "review": ["x", "y"]})) == (["x", "y"], None)
    pairs = {"premise": ["x", "y"], "hypothesis": ["v", "w"], "label": ["a", "b"]}
    assert as_texts(kind(pairs)) == (["x", "y"], ["v", "w"])
    assert as_texts(kind({"text": ["x"], "title": ["t"], "text_pair": ["v"]})) == (["x"], ["v"])
    with pytest.raises(DataError, match=r"columns 'a', 'b', 'c', of which 3 may be its texts"):
        as_texts(kind({"a": ["x"], "b": ["y"], "c": ["z"]}))
    with pytest.raises(DataError, match="of which 0"):
        as_texts(kind({"number": [1, 2]}))
    with pytest.raises(DataError, match="Input 1 is (None|nan)"):
        as_texts(kind({"text": ["x", None]}))


def test_texts_as_pairs_and_one_text():
    assert as_texts([("x", "y"), ["v", "w"]]) == (["x", "v"], ["y", "w"])
    assert as_texts("x") == (["x"], None)
    with pytest.raises(DataError, match="Input 1 is None"):
        as_texts(["x", None])


def test_unicode_survives_json_escapes(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "naïve 中文 😀", "label": "x"}))
    assert read(path).columns["text"] == ["naïve 中文 😀"]
