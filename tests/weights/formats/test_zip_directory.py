"""Directories of zip archives against Python's own reader, and what is refused."""

import struct
import zipfile

import numpy as np
import pytest

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.stored import open_file
from flaxbert.weights.formats.zip_directory import read_zip_directory

CONTENTS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(200)), "a/data/1": b"", "a/öäü": b"x"}


def _archive(folder, contents=CONTENTS, comment=b"", **options):
    file = folder / "archive.zip"
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        archive.comment = comment
    return file


def _read(file):
    with open_file(file) as (stream, size):
        return read_zip_directory(stream, file, "zip", size)


@pytest.mark.parametrize("comment", [b"", b"a comment", b"PK" * 20_000])
def test_entries_are_where_it_says(tmp_path, comment):
    file = _archive(tmp_path, comment=comment)
    data = file.read_bytes()
    assert {name: data[start : start + size] for name, (start, size) in _read(file).items()} == CONTENTS


def test_the_large_form(tmp_path, monkeypatch):
    for limit in ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"):
        monkeypatch.setattr(zipfile, limit, 1)
    file = _archive(tmp_path)
    data = file.read_bytes()
    assert b"PK\x06\x06" in data
    assert {name: data[start : start + size] for name, (start, size) in _read(file).items()} == CONTENTS


def _end(data):
    return data.rindex(b"PK\x05\x06")


def _entry(data, number=0):
    return [place for place in range(len(data)) if data[place : place + 4] == b"PK\x01\x02"][number]


def _set(data, place, layout, *values):
    struct.pack_into(layout, data, place, *values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.__delitem__(slice(_end(data), None)), "no directory at its end"),
        (lambda data: data.__delitem__(slice(_end(data) + 10, None)), "no directory at its end"),
        (lambda data: _set(data, _end(data) + 16, "<I", 2**31), "directory lies outside of the file"),
        (lambda data: _set(data, _end(data) + 12, "<I", 2**31), "directory lies outside of the file"),
        (lambda data: _set(data, _end(data) + 16, "<I", 3), "does not start as entries do"),
        (lambda data: _set(data, _entry(data) + 42, "<I", 2**31), "lies outside of the file"),
        (lambda data: _set(data, _entry(data) + 42, "<I", 1), "no entry at byte 1"),
        (lambda data: _set(data, _entry(data, 1) + 42, "<I", 0), "overlap"),
        (lambda data: _set(data, _entry(data) + 10, "<H", 8), "compressed or encrypted entry 'a/data.pkl'"),
        (lambda data: _set(data, _entry(data) + 8, "<H", 1), "compressed or encrypted entry 'a/data.pkl'"),
        (lambda data: _set(data, _entry(data) + 20, "<I", 7), "compressed or encrypted entry 'a/data.pkl'"),
        (lambda data: _set(data, _entry(data) + 20, "<II", 10**6, 10**6), "'a/data.pkl' .*reaches into its directory"),
        (lambda data: _set(data, _entry(data) + 28, "<H", 60_000), "bytes are claimed where"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    file = _archive(tmp_path)
    data = bytearray(file.read_bytes())
    damage(data)
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        _read(file)
    assert str(file) in str(caught.value)


def test_an_entry_twice(tmp_path):
    file = tmp_path / "archive.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(WeightsError, match="the entry 'a' twice"):
        _read(file)


def test_many_empty_entries(tmp_path):
    contents = {f"a/data/{number}": np.random.default_rng(number).bytes(number % 3) for number in range(300)}
    file = _archive(tmp_path, contents)
    data = file.read_bytes()
    assert {name: data[start : start + size] for name, (start, size) in _read(file).items()} == contents
