"""Rows for pre-training: all text once, nothing crosses documents, pairs and masks as told, found by number."""

import numpy as np
import pytest

from flaxbert.config import MaskingConfig
from flaxbert.data.masking import Masker
from flaxbert.data.prepared import PreparedCorpus, ShardWriter, TokenizedDocument, id_dtype, write_corpus_file
from flaxbert.data.pretraining_rows import RowSource, SpecialTokens, cut_after_sentences, cut_documents
from flaxbert.data.words import WordTable
from flaxbert.errors import ConfigError, DataError

PAD, CLS, SEP, MASK = range(4)
SPECIAL = SpecialTokens(CLS, SEP, PAD, MASK)


def write_corpus(folder, lengths, sentence=5):
    """Documents whose tokens are all different: token ``100 + i`` is the i-th of the whole corpus."""
    size = 100 + int(sum(lengths))
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, 0, 1, id_dtype(size))
    position = 100
    for length in lengths:
        ends = np.unique(np.append(np.arange(sentence, length, sentence), length))
        writer.add(TokenizedDocument(np.arange(position, position + length), ends))
        position += length
    write_corpus_file(folder, [writer.close()], size, {})
    return PreparedCorpus(folder)


def masker(corpus, **options):
    numbers = np.arange(corpus.vocab_size)
    return Masker(MaskingConfig(**options), WordTable(numbers >= 0, numbers < 4, numbers < 4), MASK, PAD)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path, [30, 9, 61, 17, 12, 25, 40, 8, 3, 100] * 3)


def original(rows):
    """The rows before masking."""
    ids = rows["input_ids"].astype(np.int64)
    real = rows["labels"] >= 0
    for row in range(len(ids)):
        ids[row, rows["masked_positions"][row][real[row]]] = rows["labels"][row][real[row]]
    return ids


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "none"])
def test_every_token_comes_once_and_in_order(packing, corpus):
    source = RowSource(corpus, SPECIAL, masker(corpus), row_length=32, packing=packing, min_tokens=1)
    rows = source.rows(range(len(source)), 0)
    ids = original(rows)
    assert sorted(ids[ids >= 100].tolist()) == list(range(100, corpus.vocab_size))
    for row, segments, positions in zip(ids, rows["segment_ids"], rows["position_ids"], strict=True):
        assert (row[segments == 0] == PAD).all()
        for segment in range(1, segments.max() + 1):
            piece = row[segments == segment]
            assert (piece[0], piece[-1]) == (CLS, SEP)
            assert (np.diff(piece[1:-1]) == 1).all(), "a piece is one stretch of one document"
            assert positions[segments == segment].tolist() == list(range(len(piece)))
    assert source.packing.efficiency > (0.9 if packing != "none" else 0.5)


def test_short_rests_are_left_out(corpus):
    source = RowSource(corpus, SPECIAL, masker(corpus), row_length=32, min_tokens=8)
    assert source.pieces.lengths.min() >= 8
    with pytest.raises(DataError, match="No document has 200 tokens"):
        cut_documents(corpus.lengths, 300, 200)
    with pytest.raises(ConfigError, match="Rows of 9 tokens have no room for 2 special tokens and 8 others"):
        RowSource(corpus, SPECIAL, masker(corpus), row_length=9)


def test_rows_are_found_by_number_in_any_order(corpus):
    source = RowSource(corpus, SPECIAL, masker(corpus, unit="span"), row_length=32, pairs="next_sentence", seed=3)
    together = source.rows([4, 0, 7], 2)
    again = RowSource(corpus, SPECIAL, masker(corpus, unit="span"), row_length=32, pairs="next_sentence", seed=3)
    for place, number in enumerate([4, 0, 7]):
        alone = again.rows([number], 2)
        assert all(np.array_equal(together[name][place], alone[name][0]) for name in together)


def test_epochs_and_seeds_differ_in_order_and_masks(corpus):
    source = RowSource(corpus, SPECIAL, masker(corpus), row_length=32)
    first, second, evaluation = (source.rows(range(3), epoch) for epoch in (0, 1, -1))
    assert np.array_equal(original(first), original(second))
    assert not np.array_equal(first["masked_positions"], second["masked_positions"])
    assert not np.array_equal(first["masked_positions"], evaluation["masked_positions"])
    assert sorted(source.order(0).tolist()) == list(range(len(source)))
    assert not np.array_equal(source.order(0), source.order(1))


def test_lengths_do_not_tell_whether_a_text_follows(tmp_path):
    """Where most documents are short, an other text that is long enough is rare; pairs without one are left out, whatever their answer."""
    corpus = write_corpus(tmp_path, [15, 15, 15, 120] * 40)
    source = RowSource(corpus, SPECIAL, masker(corpus), row_length=64, pairs="next_sentence", packing="none")
    lengths = {0: [], 1: []}
    for epoch in range(16):
        rows = source.rows(range(len(source)), epoch)
        seconds = (rows["token_type_ids"] == 1).sum(1) - 1
        for label, sizes in lengths.items():
            sizes += seconds[rows["pair_labels"][:, 0] == label].tolist()
    assert min(map(len, lengths.values())) > 1200
    assert max(lengths[1]) > 30
    counts = {label: np.bincount(sizes, minlength=64) / len(sizes) for label, sizes in lengths.items()}
    np.testing.assert_allclose(counts[0], counts[1], atol=0.05)


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_pairs(pairs, tmp_path):
    corpus = write_corpus(tmp_path, [60] * 80)
    source = RowSource(corpus, SPECIAL, masker(corpus), row_length=64, pairs=pairs)
    rows = source.rows(range(len(source)), 0)
    ids = original(rows)
    labels = rows["pair_labels"]
    assert labels.shape[1] == source.max_pieces
    assert np.mean(labels[labels >= 0]) == pytest.approx(0.5, abs=0.15)
    for row in range(len(ids)):
        for place, label in enumerate(labels[row].tolist()):
            if label < 0:
                continue
            piece = rows["segment_ids"][row] == place + 1
            tokens, types = ids[row][piece], rows["token_type_ids"][row][piece]
            assert rows["first_positions"][row][place] == np.flatnonzero(piece)[0]
            first, second = tokens[types == 0], tokens[types == 1]
            assert first[0] == CLS
            assert first[-1] == second[-1] == SEP
            first, second = first[1:-1], second[:-1]
            follows = second[0] == first[-1] + 1
            assert follows == (label == 0)
            if label == 1 and pairs == "sentence_order":
                assert first[0] == second[-1] + 1
            # Sentences are 5 tokens long: all texts are whole ones, so that their ends tell nothing.
            assert (first[0] - 100) % 5 == (second[0] - 100) % 5 == 0
            assert (first[-1] - 99) % 5 == (second[-1] - 99) % 5 == 0
            if label == 1 and pairs == "next_sentence":
                assert (first[0] - 100) // 60 != (second[0] - 100) // 60, "the other text is another document's"
                assert len(first) + len(second) == 60


def test_pieces_of_pairs_end_after_sentences(tmp_path):
    corpus = write_corpus(tmp_path, [23, 9, 4], sentence=5)
    pieces = cut_after_sentences(corpus, corpus.lengths, 12)
    assert list(zip(pieces.documents.tolist(), pieces.starts.tolist(), pieces.lengths.tolist(), strict=True)) == [
        (0, 0, 10),
        (0, 10, 10),
        (0, 20, 3),
        (1, 0, 9),
        (2, 0, 4),
    ]
    assert cut_after_sentences(corpus, corpus.lengths, 12, min_tokens=9).lengths.tolist() == [10, 10, 9]
    assert cut_after_sentences(corpus, np.array([23, 0, 0]), 12).documents.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="No two sentences of a document fit into 7 tokens"):
        cut_after_sentences(corpus, corpus.lengths, 7)
    with pytest.raises(DataError, match="No document has 11 tokens"):
        cut_after_sentences(corpus, corpus.lengths, 12, min_tokens=11)


def test_long_sentences_are_cut_and_stand_alone(tmp_path):
    corpus = write_corpus(tmp_path, [50, 50], sentence=20)
    assert cut_after_sentences(corpus, np.array([50, 0]), 30).lengths.tolist() == [20, 30]
    long = write_corpus(tmp_path / "long", [50, 12], sentence=50)
    mixed = write_corpus(tmp_path / "mixed", [102, 12], sentence=6)
    with pytest.raises(DataError, match="No two sentences"):
        cut_after_sentences(long, long.lengths, 30)
    source = RowSource(
        mixed, SPECIAL, masker(mixed), row_length=32, pairs="sentence_order", min_tokens=4, packing="none"
    )
    rows = source.rows(range(len(source)), 0)
    ids, labels = original(rows), rows["pair_labels"][:, 0]
    separators = (ids == SEP).sum(axis=1)
    assert separators[labels < 0].tolist() == [1] * int((labels < 0).sum())
    assert (separators[labels >= 0] == 2).all()
    assert (labels < 0).any()
    assert (labels >= 0).any()


def test_pairs_without_types_have_two_separators(tmp_path):
    corpus = write_corpus(tmp_path, [20] * 4)
    special = SpecialTokens(CLS, SEP, PAD, MASK, doubled=True, typed=False)
    source = RowSource(corpus, special, masker(corpus), row_length=32, pairs="sentence_order")
    rows = source.rows([0], 0)
    assert "token_type_ids" not in rows
    assert (original(rows)[0] == SEP).sum() == 3


def test_words_of_a_segmenter_are_masked_whole(tmp_path):
    writer = ShardWriter(tmp_path, 0, 1, id_dtype(200))
    starts = np.arange(60) % 3 == 0
    writer.add(TokenizedDocument(np.arange(100, 160), np.array([60]), starts))
    write_corpus_file(tmp_path, [writer.close()], 200, {})
    corpus = PreparedCorpus(tmp_path)
    source = RowSource(corpus, SPECIAL, masker(corpus, unit="word", rate=0.3), row_length=64)
    rows = source.rows([0], 0)
    drawn = np.sort(rows["labels"][rows["labels"] >= 0]) - 100
    assert len(drawn) == 18
    assert (drawn.reshape(-1, 3) % 3 == [0, 1, 2]).all()
