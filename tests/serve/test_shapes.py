"""The shapes that are compiled, and which of them a batch takes."""

from flaxbert.serve.shapes import Costs, plan_shapes


def test_shapes_are_few_and_hold_every_length():
    plan = plan_shapes(512, 256, 16, growth=4)
    assert plan.rows == (1, 4, 16)
    assert len(plan.shapes()) == 17
    assert all(rows == 1 or rows * length <= 256 for rows, length in plan.shapes())
    for length in range(1, 513):
        bucket = plan.bucket(length)
        assert bucket >= length
        assert (1, bucket) in plan.shapes()


def test_rows_are_chosen_by_what_was_measured():
    costs = Costs()
    for count, seconds in ((1, 1.0), (4, 1.5), (16, 16.0)):
        costs.observe((count, 32), seconds)
    assert costs.best_rows((1, 4, 16), 32, 1) == 1
    assert costs.best_rows((1, 4, 16), 32, 3) == 4  # 1.5 for three is less than three times 1
    assert costs.best_rows((1, 4, 16), 32, 16) == 4  # 1.5 for four is less than 16 for sixteen


def test_what_was_not_measured_is_guessed_by_its_tokens():
    costs = Costs()
    costs.observe((1, 100), 0.1)
    assert costs.seconds((1, 400)) > 2.5 * costs.seconds((1, 100))
    costs.observe((1, 400), 9.0)
    assert costs.seconds((1, 400)) == 9.0
