"""Running programs over many texts: order, buckets, padding rows, and programs that are shared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert import inference
from flaxbert.architecture import Execution
from flaxbert.core import row_parts
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.families.graph import INPUT_NAMES
from flaxbert.inference import (
    MOST_PENDING,
    PooledVectors,
    compiled_apply,
    compiled_forward,
    logits_of,
    run_examples,
)
from flaxbert.model import load
from flaxbert.nn.network import ModelOutput
from flaxbert.transforms.quantize import quantize
from tests.weights.tiny import CONFIG, random_params, write_tiny

TASK = "sequence-classification"
SAME = 2e-5
"""Padding to another length changes the order of float32 sums."""


def make_examples(lengths, vocab_size=CONFIG.vocab_size):
    """Returns examples of random ids; the first id of each is its number modulo the vocabulary."""
    lengths = np.asarray(lengths, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    ids = np.random.default_rng(0).integers(1, vocab_size, offsets[-1]).astype(np.int32)
    ids[offsets[:-1]] = np.arange(len(lengths)) % vocab_size
    return TokenizedExamples(ids, None, offsets, np.zeros(len(lengths), np.bool_))


class Recorder:
    """Stands for a program: returns the ids it got and keeps the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, params, batch):
        self.batches.append(batch)
        return batch["input_ids"]

    @property
    def shapes(self):
        return [batch["input_ids"].shape for batch in self.batches]


def run(program, examples, *, params=None, batch_size=4, max_length=64, keep_length=False):
    return run_examples(
        program, params, examples, batch_size=batch_size, max_length=max_length, keep_length=keep_length
    )


def own_ids(examples, index):
    return examples.input_ids[examples.offsets[index] : examples.offsets[index + 1]]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("keep_length", [False, True])
def test_results_stand_in_the_order_of_the_inputs(batch_size, keep_length):
    examples = make_examples([5, 40, 16, 17, 2, 64, 33, 5, 24, 1, 48], vocab_size=1000)
    results = run(Recorder(), examples, batch_size=batch_size, keep_length=keep_length)
    assert len(results) == len(examples)
    for index, row in enumerate(results):
        ids = own_ids(examples, index)
        assert row[0] == index
        np.testing.assert_array_equal(row[: len(ids)], ids)
        assert len(row) == len(ids) if keep_length else len(row) in (16, 24, 32, 48, 64)
        assert not row[len(ids) :].any()


def test_no_examples_run_nothing():
    program = Recorder()
    assert run(program, make_examples([])) == []
    assert program.batches == []


def test_any_input_compiles_a_small_set_of_shapes():
    program = Recorder()
    rng = np.random.default_rng(1)
    for count in range(1, 60):
        run(program, make_examples(rng.integers(1, 65, count)), batch_size=8)
    assert {rows for rows, _ in program.shapes} == {1, 2, 4, 8}
    assert {length for _, length in program.shapes} == {16, 24, 32, 48, 64}


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (1, 8, [1]),
        (3, 8, [4]),
        (4, 8, [4]),
        (5, 8, [8]),
        (5, 6, [6]),
        (9, 6, [6, 4]),
        (13, 6, [6, 6, 1]),
        (3, 1, [1] * 3),
    ],
)
def test_rows_are_a_power_of_two_but_never_above_the_batch_size(count, batch_size, expected):
    program = Recorder()
    run(program, make_examples([5] * count), batch_size=batch_size)
    assert program.shapes == [(rows, 16) for rows in expected]


@pytest.mark.parametrize(
    ("length", "max_length", "bucket"),
    [
        (1, 64, 16),
        (16, 64, 16),
        (17, 64, 24),
        (64, 64, 64),
        (20, 20, 20),
        (19, 20, 20),
        (3, 9, 9),
        (9, 9, 9),
        (33, 40, 40),
    ],
)
def test_a_batch_is_padded_to_the_next_bucket_and_not_above_the_longest_row(length, max_length, bucket):
    program = Recorder()
    run(program, make_examples([length]), max_length=max_length)
    assert program.shapes == [(1, bucket)]


def test_the_longest_texts_run_first_so_that_too_little_memory_shows_at_once():
    program = Recorder()
    run(program, make_examples([3, 60, 20, 3, 61, 30, 3, 62]), batch_size=2)
    assert program.shapes == [(2, 64), (1, 64), (1, 32), (1, 24), (2, 16), (1, 16)]
    assert program.batches[0]["input_ids"][:, 0].tolist() == [7, 4]


def test_rows_that_only_fill_a_batch_hold_tokens_but_give_no_results():
    program = Recorder()
    examples = make_examples([5, 6, 7, 4, 3])
    results = run(program, examples, batch_size=8)
    (batch,) = program.batches
    assert batch["attention_mask"].sum(axis=1).min() > 0
    assert batch["attention_mask"].shape == (8, 16)
    assert [row[0] for row in results] == [0, 1, 2, 3, 4]


def test_a_program_gets_what_a_network_reads_and_nothing_else():
    program = Recorder()
    examples = make_examples([5, 6]).with_labels(np.array([1, 0], np.int32))
    run(program, examples)
    (batch,) = program.batches
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"} <= set(INPUT_NAMES)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1), [6, 5])


def test_few_results_wait_to_be_fetched_and_none_is_lost():
    events = []

    class Waiting:
        """An array on a device that notes when it is fetched."""

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            events.append(-1)
            return self.values

    def program(params, batch):
        events.append(1)
        return Waiting(batch["input_ids"])

    results = run(program, make_examples([5] * 30), batch_size=1)
    assert [row[0] for row in results] == list(range(30))
    assert max(np.cumsum(events)) == MOST_PENDING + 1
    assert sum(events) == 0


def test_padding_and_company_do_not_change_what_is_said_of_a_text():
    task = "token-classification"
    params, examples = random_params(task=task), make_examples([5, 16, 2, 9])
    program = compiled_forward(CONFIG, task, Execution(), logits_of)
    together = run(program, examples, params=params, max_length=16, keep_length=True)
    assert [row.shape for row in together] == [(5, 3), (16, 3), (2, 3), (9, 3)]
    for index in (0, 2):
        alone = program(params, {"input_ids": own_ids(examples, index)[None]})[0]
        np.testing.assert_allclose(together[index], alone, atol=SAME)


HIDDEN = jnp.arange(24, dtype=jnp.float32).reshape(2, 4, 3)
MASK = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], jnp.int32)


def pooled(modes, num_skipped=0):
    output = ModelOutput(last_hidden_state=HIDDEN)
    return np.asarray(PooledVectors(modes, num_skipped)(output, {}, {"attention_mask": MASK}))


def test_sentence_vectors_of_several_modes_stand_side_by_side():
    expected = np.concatenate(
        [HIDDEN[:, 0], [HIDDEN[0, 2], HIDDEN[1, 1]], [HIDDEN[0, :3].mean(0), HIDDEN[1, :2].mean(0)]], 1
    )
    np.testing.assert_allclose(pooled(("cls", "max", "mean")), expected, rtol=1e-6)
    np.testing.assert_allclose(pooled(("mean",)), expected[:, 6:], rtol=1e-6)


def test_tokens_of_a_prompt_are_not_pooled():
    np.testing.assert_allclose(pooled(("mean",), 1), [HIDDEN[0, 1:3].mean(0), HIDDEN[1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(pooled(("max",), 2)[0], HIDDEN[0, 2])
    np.testing.assert_array_equal(pooled(("mean",), 2)[1], np.zeros(3))


def test_equal_arguments_share_one_program():
    program = compiled_forward(CONFIG, TASK, Execution(), logits_of)
    assert compiled_forward(CONFIG.replace(extra={"note": 1}), TASK, Execution(), logits_of) is program
    assert compiled_forward(CONFIG, TASK, Execution("bfloat16"), logits_of) is not program
    assert compiled_forward(CONFIG, TASK, Execution(), PooledVectors(("mean",))) is not program
    assert compiled_forward(CONFIG.replace(hidden_act="relu"), TASK, Execution(), logits_of) is not program
    assert compiled_forward(CONFIG, TASK, Execution(), PooledVectors(("mean",))) is compiled_forward(
        CONFIG, TASK, Execution(), PooledVectors(("mean",))
    )
    assert PooledVectors(("mean",), 1) != PooledVectors(("mean",))


def test_new_parameters_do_not_compile_again():
    inference.compiled_forward.cache_clear()
    program = compiled_forward(CONFIG, TASK, Execution(), logits_of)
    examples = make_examples([5, 6])
    first, second = (run(program, examples, params=random_params(seed=seed), max_length=16) for seed in (0, 1))
    assert program._cache_size() == 1
    assert not np.allclose(first, second)


def test_apply_returns_hidden_states_and_dropout_only_where_asked():
    batch = {"input_ids": jnp.array([[2, 5, 6, 3]], jnp.int32)}
    params = random_params()
    plain = compiled_apply(CONFIG, TASK, Execution(), False)(params, batch, None)
    assert plain.hidden_states is None
    kept = compiled_apply(CONFIG, TASK, Execution(), True)
    output = kept(params, batch, None)
    assert len(output.hidden_states) == CONFIG.num_hidden_layers + 1
    np.testing.assert_allclose(output.hidden_states[-1], output.last_hidden_state, atol=SAME)
    np.testing.assert_allclose(output.logits, plain.logits, atol=SAME)
    dropped, again, other = (kept(params, batch, jax.random.key(seed)).logits for seed in (1, 1, 2))
    np.testing.assert_array_equal(dropped, again)
    assert not np.allclose(dropped, other)
    assert not np.allclose(dropped, plain.logits)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_text(tmp_path, batch_size):
    model = load(write_tiny(tmp_path / "model"))
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}, but a batch holds at least one text"):
        model.predict_logits(["film"], batch_size=batch_size)


@pytest.mark.parametrize("kind", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_low_precision_answers_the_same_in_parts(monkeypatch, kind):
    execution = Execution(precision="bfloat16") if kind == "bfloat16" else Execution()
    params = random_params() if kind == "bfloat16" else quantize(random_params())[0]
    ids = np.random.default_rng(0).integers(5, CONFIG.vocab_size, (8, 16)).astype(np.int32)
    batch = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.ones_like(ids)}
    answers = []
    for tokens in (1024, 40):
        monkeypatch.setattr(row_parts, "CPU_PART_TOKENS", tokens)
        apply = functools.partial(compiled_apply.__wrapped__(CONFIG, TASK, execution, False), dropout_key=None)
        forward = compiled_forward.__wrapped__(CONFIG, TASK, execution, logits_of)
        assert all(("scan[" in str(jax.make_jaxpr(run)(params, batch))) == (tokens == 40) for run in (apply, forward))
        answers += [apply(params, batch).logits, forward(params, batch)]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=0.01)
