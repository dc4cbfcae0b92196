"""Marked entities and their relations, and what is wrong with them."""

import pytest

from flaxbert.config import DataConfig
from flaxbert.data.relations import parse_marked, read_relations
from flaxbert.errors import DataError

SEMEVAL = (
    '1\t"The <e1>child</e1> was in the <e2>cradle</e2>."\r\nOther\r\nComment:\r\n\r\n'
    '2\t"A <e1>author</e1> uses a <e2>disassembler</e2>."\nInstrument-Agency(e2,e1)\nComment: x\n'
)


def read(source, config, **settings):
    return read_relations(source, config, symbols=True, **settings)


def test_symbols_take_the_place_of_tags():
    text, spans, names = parse_marked("A <e1>big cat</e1> sat on <e2> it </e2>.", True, "")
    assert [text[start:end] for start, end in spans] == ["$ big cat $", "# it #"]
    assert names == ("big cat", "it")
    text, spans, names = parse_marked("<e2>It</e2> sat by <e1>cat</e1>", True, "")
    assert [text[start:end] for start, end in spans] == ["$ cat $", "# It #"]
    assert names == ("cat", "It")


def test_the_original_file(tmp_path):
    path = tmp_path / "TRAIN_FILE.TXT"
    path.write_text(SEMEVAL)
    examples = read(str(path), DataConfig(format="semeval"))
    assert examples.raw_labels == ["Other", "Instrument-Agency(e2,e1)"]
    assert examples.texts[0] == "The $ child $ was in the # cradle #."
    assert examples.where(1) == f"{path}, line 5"
    assert read(str(path), DataConfig(format="semeval"), limit=1, labelled=False).raw_labels is None


def test_tables(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("Other\tThe <e1> child </e1> in the <e2> cradle </e2> .\n")
    config = DataConfig(header=False, text_column="1", label_column="0")
    examples = read(str(path), config)
    assert examples.names == [("child", "cradle")]
    assert examples.texts == ["The  $ child $  in the  # cradle #  ."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no entities", "it has none"),
        ("<e1>a</e1> <e2>b", "it has <e1>, </e1>, <e2>"),
        ("<e1>a <e2>b</e2></e1>", "does not have both entities"),
        ("<e1>a</e1> <e2> </e2>", "the entity <e2> is empty"),
    ],
)
def test_faulty_tags_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "a.tsv"
    path.write_text(f"text\tlabel\n<e1>a</e1> <e2>b</e2>\tx\n{text}\ty\n")
    with pytest.raises(DataError, match=rf"a\.tsv, line 3: .*{message}"):
        read(str(path), DataConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('1\t"<e1>a</e1> <e2>b</e2>"\n2\t"x"\n', "line 1: there is no relation"),
        ('1\t"<e1>a</e1> <e2>b</e2>"\n', "line 1: there is no relation"),
        ("Other\n", "line 1: 'Other' is neither"),
        ("\n", "holds no sentences"),
    ],
)
def test_faulty_files_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read(str(path), DataConfig(format="semeval"))
