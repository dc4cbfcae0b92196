"""Pieces in rows: every piece once, no row too full, and as little padding as the strategy promises."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from flaxbert.data.packing import lay_out, pack
from flaxbert.errors import ConfigError, DataError

STRATEGIES = ("best_fit", "first_fit")


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), max_size=80), most=st.integers(0, 5))
def test_every_piece_has_one_place(strategy, lengths, most):
    sizes = np.array(lengths, np.int64)
    packing = pack(sizes, 64, strategy=strategy, max_pieces=most)
    assert sorted(packing.pieces.tolist()) == list(range(len(sizes)))
    rows = [packing.row(number) for number in range(len(packing))]
    assert all(0 < sizes[row].sum() <= 64 for row in rows)
    assert not most or all(len(row) <= most for row in rows)
    assert packing.num_tokens == sizes.sum()
    if not most:
        # Two rows that are at most half full would have been one.
        assert sum(sizes[row].sum() <= 32 for row in rows) <= 1


def first_fit_by_hand(lengths, room):
    rows = []
    for number, length in enumerate(lengths):
        row = next((r for r in rows if sum(lengths[i] for i in r) + length <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(number)
    return rows


def best_fit_room_by_hand(lengths, room):
    filled = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(filled) if used + length <= room]
        if fitting:
            filled[max(fitting, key=lambda i: filled[i])] += length
        else:
            filled.append(length)
    return sorted(filled)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_both_do_what_their_names_say(lengths):
    sizes = np.array(lengths)
    first = pack(sizes, 30, strategy="first_fit")
    assert [first.row(i).tolist() for i in range(len(first))] == first_fit_by_hand(lengths, 30)
    best = pack(sizes, 30)
    assert sorted(int(sizes[best.row(i)].sum()) for i in range(len(best))) == best_fit_room_by_hand(lengths, 30)


def test_lengths_of_documents_fill_rows():
    lengths = np.clip(np.random.default_rng(0).lognormal(4.5, 1.0, 20000).astype(np.int64), 4, 512)
    assert pack(lengths, 512).efficiency > 0.99
    assert pack(lengths, 512, strategy="first_fit").efficiency > 0.9


def test_rows_as_the_network_takes_them():
    pieces = [np.array([7, 8, 9]), np.array([5, 6])]
    rows = lay_out([pieces, []], 6, 1)
    assert rows.input_ids.tolist() == [[7, 8, 9, 5, 6, 1], [1] * 6]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    with pytest.raises(DataError, match="row 0 have more than 4"):
        lay_out([pieces], 4, 1)


def test_bad_input():
    with pytest.raises(DataError, match="Piece 1 has 9 tokens, but a row has room for 8"):
        pack(np.array([3, 9]), 8)
    with pytest.raises(DataError, match="Piece 0 has 0 tokens"):
        pack(np.array([0]), 8)
    with pytest.raises(ConfigError, match="Rows of 0 tokens"):
        pack(np.array([1]), 0)
    with pytest.raises(ConfigError, match="known are best_fit and first_fit"):
        pack(np.array([1]), 8, strategy="worst_fit")
    assert len(pack(np.zeros(0, np.int64), 8)) == 0
