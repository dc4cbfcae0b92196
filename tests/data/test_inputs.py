"""Parts of large inputs: together they are the whole, whatever the cut, and each is read by itself."""

import dataclasses
import gzip
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from flaxbert.config import CorpusConfig
from flaxbert.data import inputs as inputs_module
from flaxbert.data.corpus import read_documents
from flaxbert.data.inputs import Part, cut_text, expand_inputs, split_inputs
from flaxbert.data.preparation import ShardJob
from flaxbert.errors import DataError

WORDS = ["a", "the fox", "Ünder", "日本語。", "it rained.", "  ", "\t", "“Why?”", "x" * 300, ""]


def write_random(path, seed, encoding="utf-8"):
    source = random.Random(seed)
    ends = source.choice(["\n", "\r\n"])
    words = WORDS if encoding == "utf-8" else [word for word in WORDS if word.isascii()]
    lines = [source.choice(words) + source.choice(words) for _ in range(source.randrange(1, 60))]
    path.write_bytes((ends.join(lines) + source.choice(["", ends])).encode(encoding))
    return path


def sentences(parts, config):
    return [document.sentences for part in parts for document in read_documents(part, config)]


def parts_of(path, kind, count, paragraphs=False):
    if kind == "parquet":
        return [Part(str(path), kind, number, count) for number in range(count)]
    ranges = cut_text(path, count, paragraphs)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == path.stat().st_size
    assert all(first < last for first, last in ranges) or len(ranges) == 1
    return [Part(str(path), kind, number, len(ranges), found) for number, found in enumerate(ranges)]


@pytest.mark.parametrize("document", ["blank_line", "line"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "gb18030"])
def test_parts_of_a_text_are_the_text(document, encoding, tmp_path):
    config = CorpusConfig(encoding=encoding, document=document, sentence="line")
    cut = 0
    for seed in range(60):
        path = write_random(tmp_path / "a.txt", seed, encoding)
        whole = sentences([Part(str(path), "text")], config)
        for count in (2, 3, 7, 50):
            parts = parts_of(path, "text", count, document == "blank_line")
            assert sentences(parts, config) == whole
            cut += len(parts) > 1
    assert cut > 100, "hardly any text was cut at all"


def test_parts_of_records_are_the_records(tmp_path):
    path, config = tmp_path / "a.jsonl", CorpusConfig()
    texts = [f"text {number} " + "long " * (number % 5 * 100) for number in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    whole = sentences([Part(str(path), "jsonl")], config)
    assert len(whole) == 40
    for count in (2, 5, 33, 200):
        assert sentences(parts_of(path, "jsonl", count), config) == whole


def write_parquet(path, texts, rows_of_group=7):
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=rows_of_group)
    return path


def test_parts_of_parquet_are_row_groups(tmp_path):
    config = CorpusConfig()
    path = write_parquet(tmp_path / "a.parquet", [f"text {number}" for number in range(40)])
    whole = sentences([Part(str(path), "parquet")], config)
    for count in (2, 4, 6, 9):
        assert sentences(parts_of(path, "parquet", count), config) == whole
    found = [document.where for document in read_documents(Part(str(path), "parquet", 1, 2), config)]
    assert found[0] == f"{path}, row 22", "three groups of seven lie before"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set of two files, of which one has several row groups, in the place of the hub."""
    write_parquet(tmp_path / "0.parquet", [f"text {number}" for number in range(20)])
    write_parquet(tmp_path / "1.parquet", [f"text {number}" for number in range(20, 25)])
    real = datasets.load_dataset

    def load(source, name, *, split, streaming):
        assert (source, name, split, streaming) == ("someone/novels", None, "train", True)
        files = [str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")]
        return real("parquet", data_files=files, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return CorpusConfig(inputs=("someone/novels",))


@pytest.mark.parametrize(("num_shards", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_parts_of_a_data_set_are_its_files_or_their_row_groups(num_shards, count, hub):
    parts = split_inputs(expand_inputs(hub), hub, num_shards)
    assert len(parts) == count
    assert sentences(parts, hub) == [(f"text {number}",) for number in range(25)]
    assert all(sentences([part], hub) for part in parts)
    document = next(read_documents(parts[-1], hub))
    assert document.where == "someone/novels" + (f", part {count} of {count}" if count > 1 else "") + ", row 1"


def test_large_files_are_cut_for_every_shard_and_small_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "_LEAST_PART_BYTES", 1000)
    (tmp_path / "large.txt").write_text("one line\n\n" * 1000)
    (tmp_path / "small.txt").write_text("one line\n\n" * 10)
    config = CorpusConfig(inputs=(str(tmp_path),))
    parts = split_inputs(expand_inputs(config), config, 2)
    assert [(part.source[-9:-4], part.number, part.count) for part in parts[-2:]] == [("large", 7, 8), ("small", 0, 1)]
    assert len(sentences(parts, config)) == 1010
    assert max(len(sentences([part], config)) for part in parts[:-1]) <= 126
    for options in (
        {"document": "file"},
        {"start_pattern": "one"},
        {"end_pattern": "two"},
        {"encoding": "utf-16"},
    ):
        whole = CorpusConfig(inputs=config.inputs, **options)
        assert [part.count for part in split_inputs(expand_inputs(whole), whole, 2)] == [1, 1]


def test_what_is_wrong_in_a_part_is_told_with_the_place_of_the_part(tmp_path):
    path, config = tmp_path / "a.jsonl", CorpusConfig()
    lines = [b'{"text": "fine"}\n'] * 20
    for bad, message in (
        (b"{\n", "line 3: the line is no complete JSON"),
        (b'{"text": "\xff"}\n', "line 3: the byte 0xff"),
    ):
        path.write_bytes(b"".join([*lines[:12], bad, *lines[:7]]))
        with pytest.raises(DataError, match=f"a.jsonl from byte 170 on, {message}"):
            sentences(parts_of(path, "jsonl", 2)[1:], config)
    text = tmp_path / "a.txt"
    text.write_bytes(b"fine.\n\n" * 20 + b"\xff")
    with pytest.raises(DataError, match=r"a.txt from byte 77 on, in or after line 1: the byte 0xff"):
        sentences(parts_of(text, "text", 2, True)[1:], config)


@pytest.mark.parametrize("text", ["word " * 100_000, "word\n" * 100_000, "word " * 100_000 + "\n\na\n\nb"])
def test_what_has_no_place_to_cut_stays_one_part_whose_documents_are_shared(text, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "_LEAST_PART_BYTES", 10_000)
    (tmp_path / "a.txt").write_text(text)
    config = CorpusConfig(inputs=(str(tmp_path),), max_document_characters=2000)
    parts = split_inputs(expand_inputs(config), config, 4)
    assert [part.shared for part in parts] == [True] * len(parts)
    assert len(parts) <= 2
    assert sentences(parts, config) == sentences([Part(str(tmp_path / "a.txt"), "text")], config)
    job = ShardJob(parts, config, "", "", 100, 4, tuple(range(4)))
    counts = [sum(1 for _ in dataclasses.replace(job, numbers=(number,)).documents()) for number in range(4)]
    assert max(counts) - min(counts) <= len(parts)


def test_a_packed_file_beside_plain_ones_is_dealt_out_too(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "_LEAST_PART_BYTES", 1000)
    words = random.Random(0)
    lines = "".join(f"{words.random()} {words.random()}\n\n" for _ in range(2000))
    (tmp_path / "a.txt").write_text(lines)
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write(lines)
    config = CorpusConfig(inputs=(str(tmp_path),))
    parts = split_inputs(expand_inputs(config), config, 4)
    job = ShardJob(parts, config, "", "", 100, 4, tuple(range(4)))
    assert sum(part.shared for part in parts) == 1
    assert len(parts) > 4
    for workers in (1, 2, 4):
        places = [place for part in job.split(workers) for place, _ in part.documents()]
        assert len(places) == len(set(places)) == 4000
    counts = [sum(1 for _ in dataclasses.replace(job, numbers=(number,)).documents()) for number in range(4)]
    assert max(counts) < 1.3 * min(counts)


def test_a_byte_order_mark_inside_a_file_stays(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n\ufefftwo\n\n\ufeffthree", "utf-8")
    (tmp_path / "a.jsonl").write_text("\ufeff" + '{"text": "one"}\n' * 4, "utf-8")
    for encoding in ("utf-8", "utf-8-sig"):
        config = CorpusConfig(encoding=encoding)
        whole = sentences([Part(str(tmp_path / "a.txt"), "text")], config)
        assert whole == [("one",), ("\ufefftwo",), ("\ufeffthree",)]
        parts = parts_of(tmp_path / "a.txt", "text", 3, True)
        assert len(parts) == 2
        assert sentences(parts, config) == whole
        assert len(sentences(parts_of(tmp_path / "a.jsonl", "jsonl", 3), config)) == 4


def test_damaged_parquet_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "_LEAST_PART_BYTES", 10)
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all, but long enough to be cut")
    config = CorpusConfig(inputs=(str(tmp_path),))
    with pytest.raises(DataError, match="a.parquet: the file is no readable Parquet"):
        split_inputs(expand_inputs(config), config, 2)
