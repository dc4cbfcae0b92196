"""Documents on disk: what was written comes back, at any place, and damage is named."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from flaxbert.data.prepared import (
    PreparedCorpus,
    ShardWriter,
    TokenizedDocument,
    decode_document,
    encode_document,
    id_dtype,
    write_corpus_file,
)
from flaxbert.errors import DataError


def document(number, vocab_size=1000, words=False):
    generator = np.random.default_rng(number)
    size = int(generator.integers(1, 300))
    ends = np.unique(np.concatenate([generator.integers(1, size + 1, 4), [size]]))
    starts = generator.random(size) < 0.5 if words else None
    return TokenizedDocument(generator.integers(0, vocab_size, size), ends, starts)


def same(first, second):
    words = (first.word_starts, second.word_starts)
    return (
        np.array_equal(first.input_ids, second.input_ids)
        and np.array_equal(first.sentence_ends, second.sentence_ends)
        and ((words[0] is None and words[1] is None) or np.array_equal(*words))
    )


@given(number=st.integers(0, 500), words=st.booleans(), wide=st.booleans())
def test_a_document_survives_its_record(number, words, wide):
    size = 200_000 if wide else 1000
    before = document(number, size, words)
    record = encode_document(before, id_dtype(size))
    assert same(decode_document(record, id_dtype(size)), before)
    with pytest.raises(DataError, match=r"does not hold|holds no document"):
        decode_document(record[:-1], id_dtype(size))


@pytest.fixture
def folder(tmp_path):
    shards = []
    for number in range(3):
        writer = ShardWriter(tmp_path, number, 3, id_dtype(1000))
        for place in range(number * 10, number * 10 + 10):
            writer.add(document(place))
        writer.add(TokenizedDocument(np.zeros(0, np.int32), np.zeros(0, np.int64)))
        shards.append(writer.close())
    write_corpus_file(tmp_path, shards, 1000, {"inputs": ["a.txt"]})
    return tmp_path


def test_every_document_is_found(folder):
    corpus = PreparedCorpus(folder)
    assert len(corpus) == 30
    assert corpus.made_from == {"inputs": ["a.txt"]}
    for number in (29, 0, 10, 9, 20):
        assert same(corpus.document(number), document(number))
        assert corpus.lengths[number] == len(document(number).input_ids)
    assert corpus.num_tokens == sum(len(document(number).input_ids) for number in range(30))
    assert len(corpus.digest) == 16


def test_a_corpus_goes_to_other_processes(folder):
    import pickle

    corpus = PreparedCorpus(folder)
    corpus.document(0)
    assert same(pickle.loads(pickle.dumps(corpus)).document(11), document(11))


def test_a_truncated_shard_is_named_and_can_be_left_out(folder):
    file = folder / "documents-00001-of-00003.array_record"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"documents-00001-of-00003\.array_record: the file has .*skip_damaged"):
        PreparedCorpus(folder)
    corpus = PreparedCorpus(folder, skip_damaged=True)
    assert len(corpus) == 20
    assert corpus.skipped == [file.name]
    assert same(corpus.document(10), document(20))


def test_a_flipped_byte_is_found_when_it_is_read(folder):
    file = folder / "documents-00000-of-00003.array_record"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    corpus = PreparedCorpus(folder)
    with pytest.raises(DataError, match=r"documents-00000-of-00003\.array_record: document \d+ can not be read"):
        [corpus.document(number) for number in range(10)]


def test_other_damage_is_named(folder, tmp_path_factory):
    with pytest.raises(DataError, match=r"is no prepared corpus: it has no corpus\.json"):
        PreparedCorpus(tmp_path_factory.mktemp("other"))
    lengths = folder / "lengths-00002-of-00003.npy"
    np.save(lengths, np.zeros(10, "<u4"))
    with pytest.raises(DataError, match=r"lengths-00002-of-00003\.npy: the file does not belong to"):
        PreparedCorpus(folder)
    lengths.unlink()
    with pytest.raises(DataError, match=r"lengths-00002-of-00003\.npy: a file of the corpus is missing"):
        PreparedCorpus(folder)
    outside = json.loads((folder / "corpus.json").read_text())
    outside["shards"][0]["file"] = "../../secret"
    (folder / "corpus.json").write_text(json.dumps(outside))
    with pytest.raises(DataError, match="names the file '../../secret', which lies outside its folder"):
        PreparedCorpus(folder)
    (folder / "corpus.json").write_text('{"format": 9}')
    with pytest.raises(DataError, match="has format 9, but this version reads 1"):
        PreparedCorpus(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(DataError, match="description of the corpus is damaged"):
        PreparedCorpus(folder)


def test_what_is_abandoned_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path, 0, 1, id_dtype(1000))
    writer.add(document(0))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
