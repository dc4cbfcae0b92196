"""Permutations are complete, and fixed for ever: a run must resume with another version of NumPy."""

from hypothesis import given
from hypothesis import strategies as st

from flaxbert.data.shuffling import stable_permutation

PINNED = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


@given(size=st.integers(0, 300), keys=st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
def test_every_number_is_there_once(size, keys):
    assert sorted(stable_permutation(size, *keys).tolist()) == list(range(size))


def test_the_order_never_changes():
    assert stable_permutation(10, 0, 0).tolist() == PINNED
    assert stable_permutation(10, 0, 1).tolist() != PINNED
