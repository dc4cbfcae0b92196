"""Documents and sentences of raw text, in bounded memory, and what is said of bad files."""

import gzip
import json

import pytest

from flaxbert.config import CorpusConfig
from flaxbert.data.corpus import read_documents, split_sentences
from flaxbert.data.inputs import Part, expand_inputs
from flaxbert.errors import ConfigError, DataError


def documents(path, **options):
    config = CorpusConfig(inputs=(str(path),), **options)
    return [list(document.sentences) for part in expand_inputs(config) for document in read_documents(part, config)]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffOne day it\nrained. It rained\nlong.\r\n\r\n\n“Why?” asked\nMr. Fox. He left.\n")
    return path


def test_what_a_document_is(book):
    first, second = ["One day it rained.", "It rained long."], ["“Why?” asked Mr. Fox.", "He left."]
    assert documents(book) == [first, second]
    assert documents(book, document="file") == [first + second]
    lines = ["One day it", "rained. It rained", "long.", "“Why?” asked", "Mr. Fox. He left."]
    assert documents(book, document="line", sentence="line") == [[line] for line in lines]
    assert documents(book, sentence="line") == [lines[:3], lines[3:]]


def test_places_are_told(book):
    config = CorpusConfig(inputs=(str(book),))
    places = [document.where for document in read_documents(Part(str(book), "text"), config)]
    assert places == [f"{book}, line 1", f"{book}, line 6"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He said so. She left.", ["He said so.", "She left."]),
        ("Dr. Who and J. R. Smith came! No?", ["Dr. Who and J. R. Smith came!", "No?"]),
        ("“Stop.” “Why?” he said. Then…", ["“Stop.”", "“Why?” he said.", "Then…"]),
        ("It cost 3.50 dollars. 4 came.", ["It cost 3.50 dollars. 4 came."]),
        ("他来了。“好。”他说！走吧", ["他来了。", "“好。”", "他说！", "走吧"]),
        ("  \n ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_head_and_tail_of_a_book_are_left_out(tmp_path):
    path = tmp_path / "pg.txt.gz"
    text = "Licence\n*** START OF THE BOOK\n\nA tale.\nIt ends.\n\n*** END OF THE BOOK\nLicence\n"
    path.write_bytes(gzip.compress(text.encode()))
    assert documents(path, start_pattern=r"^\*\*\* START OF", end_pattern=r"^\*\*\* END OF") == [
        ["A tale.", "It ends."]
    ]
    with pytest.raises(DataError, match=r"no line fits corpus\.start_pattern 'XX'"):
        documents(path, start_pattern="XX")


def test_rows_are_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "A cat. A dog.\nA cow."}, {"text": ""}, {"text": "A hen."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "c.parquet.gz").write_bytes(gzip.compress((tmp_path / "b.parquet").read_bytes()))
    expected = [["A cat.", "A dog.", "A cow."], ["A hen."]]
    for name in ("a.jsonl", "b.parquet", "c.parquet.gz"):
        assert documents(tmp_path / name) == expected
    assert documents(tmp_path) == expected * 3
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(DataError, match=r"no column 'txt' but text.*corpus\.text_column"):
            documents(tmp_path / name, text_column="txt")


def test_a_gigantic_line_comes_in_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 100_000 + "x" * 5000)
    found = documents(path, max_document_characters=2000)
    assert all(sum(map(len, sentences)) <= 2000 for sentences in found)
    assert " ".join(" ".join(sentences) for sentences in found).replace(" ", "") == "word" * 100_000 + "x" * 5000


def test_long_documents_are_cut_between_sentences(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"This is sentence number {number}." for number in range(300)))
    found = documents(path, max_document_characters=1000)
    assert len(found) > 8
    assert [sentence for one in found for sentence in one] == [f"This is sentence number {n}." for n in range(300)]


def test_bad_files_are_named(tmp_path):
    binary = tmp_path / "b.txt"
    binary.write_bytes(b"ab\n\x00\x01")
    with pytest.raises(DataError, match=r"b\.txt, in or after line 1: the file holds zero bytes"):
        documents(binary)
    wrong = tmp_path / "w.txt"
    wrong.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"w\.txt.*0xef is not utf-8.*corpus\.encoding: latin-1"):
        documents(wrong)
    assert documents(wrong, encoding="latin-1") == [["naïve"]]
    cut = tmp_path / "c.txt.gz"
    cut.write_bytes(gzip.compress(b"some text " * 1000)[:40])
    with pytest.raises(DataError, match=r"c\.txt\.gz: the gzip file is damaged"):
        documents(cut)
    damaged = tmp_path / "d.parquet"
    damaged.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"d\.parquet: the file is no readable Parquet"):
        documents(damaged)
    packed = tmp_path / "e.parquet.gz"
    packed.write_bytes(gzip.compress(b"PAR1 no" * 100)[:20])
    with pytest.raises(DataError, match=r"e\.parquet\.gz: the gzip file is damaged"):
        documents(packed)
    wide = tmp_path / "u.txt"
    wide.write_bytes("naïve".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"u\.txt: the text is not utf-16 .*name utf-16-le"):
        documents(wide, encoding="utf-16")
    assert documents(wide, encoding="utf-16-le") == [["naïve"]]
    records = tmp_path / "r.jsonl"
    records.write_bytes('{"text": "naïve"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"r\.jsonl, line 1: .*corpus\.encoding: latin-1"):
        documents(records)
    number = tmp_path / "n.jsonl"
    number.write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"n\.jsonl, line 1: 'text' holds 3"):
        documents(number)


def test_inputs_that_are_not_there(tmp_path):
    (tmp_path / "moby.txt").write_text("Call me.")
    (tmp_path / "empty").mkdir()
    for entry, message in (
        (tmp_path / "mobi.txt", "no such file or folder.*moby.txt"),
        (tmp_path / "*.parquet", "no file fits"),
        (tmp_path / "empty", "the folder holds no file that ends in"),
    ):
        with pytest.raises(DataError, match=message):
            documents(entry)
    (tmp_path / "a.dat").write_text("x")
    with pytest.raises(DataError, match=r"set corpus\.format"):
        documents(tmp_path / "a.dat")
    assert documents(tmp_path / "a.dat", format="text") == [["x"]]
    assert documents(tmp_path / "*.txt") == [["Call me."]]
    assert expand_inputs(CorpusConfig(inputs=("wikitext",))) == [Part("wikitext", "hub")]
    with pytest.raises(DataError, match="names no text"):
        expand_inputs(CorpusConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "utf-9"}, "corpus.encoding is 'utf-9'"),
        ({"encoding": "hex"}, "corpus.encoding is 'hex', which is no text encoding"),
        ({"start_pattern": "("}, "corpus.start_pattern"),
        ({"max_document_characters": 3}, "at least 1000"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        CorpusConfig(**options)
