"""Top eigenvalues of the Hessian against the Hessian itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.compression.curvature import block_of, measure_curvature
from flaxbert.core.trees import flatten_names, stack_layers, unflatten_names
from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.train.losses import loss_for
from flaxbert.transforms import quantize
from tests.nn.models import small_config, small_params

EXACT = 2e-2
"""Relative: 30 steps of power iteration in float32, while the second eigenvalue may be close to the first."""

TASK = "sequence-classification"
CONFIG = small_config(
    "bert", TASK, hidden_size=6, num_attention_heads=2, intermediate_size=4, num_hidden_layers=2, vocab_size=20
)
MODEL = Model(CONFIG, small_params(CONFIG, TASK), TASK)


def labelled(count=8, labels=True):
    generator = np.random.default_rng(0)
    ids = generator.integers(5, CONFIG.vocab_size, count * 6).astype(np.int32)
    classes = generator.integers(0, 3, count).astype(np.int32) if labels else None
    return TokenizedExamples(ids, None, np.arange(count + 1) * 6, np.zeros(count, bool), classes)


@pytest.mark.slow
def test_the_eigenvalue_of_each_block_is_that_of_its_own_hessian():
    names = ["encoder.layers.0.feed_forward.down.kernel", "encoder.layers.1.feed_forward.down.kernel"]
    examples = labelled()
    found = measure_curvature(MODEL, examples, names, num_iterations=30, num_parts=1, part_size=8)
    assert set(found) == {"encoder.layers.0", "encoder.layers.1"}
    batch = {
        name: jnp.asarray(rows) for name, rows in collate(examples, np.random.default_rng(0).permutation(8), 6).items()
    }
    graphdef, loss = graph_definition(CONFIG, TASK, Execution(attention="xla")), loss_for(TASK)
    leaves = flatten_names(MODEL.params)
    for name in names:

        def mean_loss(kernel, name=name):
            total, weight = loss(
                forward(graphdef, unflatten_names({**leaves, name: kernel.reshape(4, 6)}), batch), batch
            )
            return total / weight

        hessian = jax.jit(jax.jacrev(jax.grad(mean_loss)))(jnp.asarray(leaves[name]).reshape(-1))
        values = np.linalg.eigvalsh(np.asarray(hessian, np.float64))
        assert found[block_of(name)] == pytest.approx(np.abs(values).max(), rel=EXACT)


def test_parts_that_differ_make_a_block_more_sensitive():
    names = ["encoder.layers.0.feed_forward.down.kernel"]
    together = measure_curvature(MODEL, labelled(), names, num_parts=2, part_size=4)
    again = measure_curvature(MODEL, labelled(), names, num_parts=2, part_size=4)
    assert together == again
    assert together["encoder.layers.0"] > 0


def test_blocks_are_layers_or_leaves_outside_of_them():
    assert block_of("encoder.groups.0.inner.1.up.kernel") == "encoder.groups.0"
    assert block_of("pooler.dense.kernel") == "pooler.dense.kernel"


@pytest.mark.parametrize(
    ("model", "examples", "error", "message"),
    [
        (MODEL.replace(params=stack_layers(MODEL.params)), labelled(), ConfigError, "stacked"),
        (MODEL.replace(params=quantize(MODEL.params)[0]), labelled(), ConfigError, "is a quantized leaf"),
        (MODEL, labelled(labels=False), DataError, "no labels"),
        (MODEL, labelled(1), DataError, "there are 1 examples"),
        (MODEL.replace(task="feature-extraction"), labelled(), ConfigError, "no training loss"),
    ],
)
def test_what_has_no_curvature_is_refused(model, examples, error, message):
    with pytest.raises(error, match=message):
        measure_curvature(model, examples, ["encoder.layers.0.feed_forward.down.kernel"])
