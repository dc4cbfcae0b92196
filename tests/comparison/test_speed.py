"""Taking turns, and what is made of the times."""

import numpy as np
import pytest

from flaxbert.comparison.speed import interleave, measure_speed, summarize
from flaxbert.comparison.texts import random_examples
from flaxbert.model import load


def test_models_take_turns_and_each_round_begins_with_another():
    order, now = [], [0.0]

    def call(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    seconds = interleave([call("a", 1.0), call("b", 2.0), call("c", 4.0)], 4, clock=lambda: now[0])
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    np.testing.assert_array_equal(seconds, [[1.0] * 4, [2.0] * 4, [4.0] * 4])


def test_ratios_are_of_one_and_the_same_round():
    reference, other = [1.0, 2.0, 8.0], [2.0, 4.0, 4.0]  # the third round was slow for the reference alone
    first, second = summarize(np.array([reference, other]), batch_size=6, length=5)
    assert (first.median_seconds, first.rows_per_second, first.speedup) == (2.0, 3.0, 1.0)
    assert second.speedup == 0.5
    assert second.median_seconds == 4.0
    assert second.p90_seconds == pytest.approx(4.0)
    assert first.p90_seconds == pytest.approx(2.0 + 0.8 * 6.0)
    assert (second.rounds, second.batch_size, second.length) == (3, 6, 5)


def test_a_model_that_can_not_take_a_length_is_left_out(models):
    model = load(models["float"])
    short = model.replace(config=model.config.replace(max_position_embeddings=8))
    examples = [random_examples(model, 3, 6, 0)] * 2
    long, cut = measure_speed([model, short], examples, [2], [8, 16], 1)
    assert [entry.length for entry in long] == [8, 16]
    assert [entry.length for entry in cut] == [8]
