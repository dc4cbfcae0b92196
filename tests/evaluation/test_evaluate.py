"""Held-out batches on a mesh: logits in the order of the examples, whatever order and padding the batches have."""

import jax
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.sharding import build_mesh, param_shardings, place_batch, shard
from flaxbert.core.trees import leaf_names
from flaxbert.data.batches import collate, evaluation_batches
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.evaluation.evaluate import collect_logits, evaluation_program
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition
from tests.weights.tiny import CONFIG, random_params

TASK = "sequence-classification"
LENGTHS = (3, 16, 5, 2, 9, 8, 4, 12, 7, 6, 10, 3, 5)
SAME = 2e-5
"""Padding to another length, and another split over devices, change the order of float32 sums."""


def make_examples(lengths=LENGTHS):
    ids = np.random.default_rng(0).integers(1, CONFIG.vocab_size, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedExamples(ids, None, offsets, np.zeros(len(lengths), np.bool_))


def place(params, mesh):
    return shard(params, param_shardings(params, get_family("bert").parameter_axes(leaf_names(params)), mesh))


def all_at_once(params, examples, task):
    """Returns the logits of one batch on one device, compiled by itself."""
    graphdef = graph_definition(CONFIG, task, Execution())
    batch = collate(examples, np.arange(len(examples)), int(examples.lengths.max()))
    return np.asarray(jax.jit(lambda params, batch: forward(graphdef, params, batch).logits)(params, batch))


def one_device():
    return build_mesh(MeshConfig(), jax.devices()[:1])


def echo(params, batch):
    """Stands for a program: the scores are in the batch."""
    return batch["scores"], batch["example_index"]


def batch_of(indices, scores):
    return {"example_index": np.array(indices, np.int32), "scores": np.array(scores, np.float32)}


@pytest.mark.parametrize("axes", [(8, 1, 1), (4, 2, 1)])
def test_logits_are_those_of_one_batch_on_one_device(axes):
    mesh = build_mesh(MeshConfig(*axes))
    examples, params = make_examples(), random_params()
    program, shapes = evaluation_program(CONFIG, TASK, Execution(), mesh), set()

    def watched(params, batch):
        shapes.add(batch["input_ids"].shape)
        return program(params, batch)

    batches = evaluation_batches(examples, 8, (8, 16))
    found = collect_logits(watched, place(params, mesh), batches, len(examples), mesh)
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == ((len(LENGTHS), 3), np.float32)
    np.testing.assert_allclose(found, all_at_once(params, examples, TASK), atol=SAME)
    assert shapes == {(8, 8), (8, 16)}


def test_scores_per_token_keep_the_padding_of_their_batch():
    mesh, task = build_mesh(MeshConfig()), "token-classification"
    examples, params = make_examples(), random_params(task=task)
    program = evaluation_program(CONFIG, task, Execution(), mesh)
    found = collect_logits(program, place(params, mesh), evaluation_batches(examples, 8, (8, 16)), len(examples), mesh)
    assert isinstance(found, list)
    expected = all_at_once(params, examples, task)
    assert {row.shape for row in found} == {(8, 3), (16, 3)}
    for row, whole, length in zip(found, expected, LENGTHS, strict=True):
        assert len(row) >= length
        np.testing.assert_allclose(row[:length], whole[:length], atol=SAME)


def test_rows_go_where_their_index_says_and_filler_rows_nowhere():
    batches = [batch_of([2, 0, -1], [[2.0], [0.0], [9.0]]), batch_of([-1, 3, 1], [[9.0], [3.0], [1.0]])]
    found = collect_logits(echo, {}, batches, 4, one_device())
    np.testing.assert_array_equal(found, [[0.0], [1.0], [2.0], [3.0]])


def test_rows_that_fill_the_last_batch_do_not_overwrite_the_last_example():
    found = collect_logits(
        echo, {}, [batch_of([1, 0], [[1.0], [0.0]]), batch_of([-1, -1], [[9.0], [9.0]])], 2, one_device()
    )
    np.testing.assert_array_equal(found, [[0.0], [1.0]])


def test_no_examples_give_no_rows():
    assert list(collect_logits(echo, {}, [], 0, one_device())) == []


def test_few_results_wait_on_the_devices_and_the_last_ones_are_fetched_too():
    events = []

    class Waiting:
        """An array on a device that notes when it is fetched."""

        def __init__(self, number, values):
            self.number, self.values = number, values

        def __array__(self, dtype=None, copy=None):
            events.append(("fetched", self.number))
            return self.values

    def program(params, batch):
        index = np.asarray(batch["example_index"])
        number = int(index[0])
        events.append(("run", number))
        return Waiting(number, np.array([[float(number)]], np.float32)), index

    batches = (batch_of([number], [[0.0]]) for number in range(7))
    found = collect_logits(program, {}, batches, 7, one_device())
    np.testing.assert_array_equal(found[:, 0], np.arange(7))
    waiting = [sum(1 if kind == "run" else -1 for kind, _ in events[: end + 1]) for end in range(len(events))]
    assert max(waiting) == 3
    assert waiting[-1] == 0
    assert events.index(("run", 3)) > events.index(("fetched", 0))
    assert [number for kind, number in events if kind == "fetched"] == list(range(7))


def test_batches_are_split_over_the_devices_and_results_are_whole_on_each():
    mesh = build_mesh(MeshConfig())
    examples = make_examples()
    batch = place_batch(next(evaluation_batches(examples, 8, (8, 16))), mesh)
    assert {piece.data.shape[0] for piece in batch["input_ids"].addressable_shards} == {1}
    logits, index = evaluation_program(CONFIG, TASK, Execution(), mesh)(place(random_params(), mesh), batch)
    for array in (logits, index):
        assert array.sharding.is_fully_replicated
        assert len(array.sharding.device_set) == 8
    assert sorted(np.asarray(index).tolist()) == sorted(np.argsort(LENGTHS, kind="stable")[:8].tolist())


def test_equal_arguments_share_one_program_and_others_do_not():
    mesh = build_mesh(MeshConfig())
    program = evaluation_program(CONFIG, TASK, Execution(), mesh)
    assert evaluation_program(CONFIG.replace(), TASK, Execution(), build_mesh(MeshConfig())) is program
    assert evaluation_program(CONFIG, "token-classification", Execution(), mesh) is not program
    assert evaluation_program(CONFIG, TASK, Execution("bfloat16"), mesh) is not program
    assert evaluation_program(CONFIG, TASK, Execution(), one_device()) is not program
