"""flaxbert itself: training steps as ``flaxbert finetune`` runs them, inference as ``Model.apply`` does."""

import re
from collections.abc import Callable
from typing import Any

from benchmarks.settings import Settings, serve

PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "int8": "float32"}
"""Precision that a model is loaded in, by the first word of the variant."""


def _train(settings: Settings, model: Any) -> Callable[[], float]:
    import jax.numpy as jnp

    from flaxbert.train.losses import loss_for

    batch = {name: jnp.asarray(array) for name, array in settings.batch().items()}
    batch["example_weight"] = jnp.ones((settings.batch_size,), jnp.float32)
    return _steps(settings, model, loss_for(model.task, "single_label_classification"), [batch], dropout=True)


def _pretrain(settings: Settings, model: Any) -> Callable[[], float]:
    import jax.numpy as jnp

    from flaxbert.train.objectives import PretrainingLoss

    batches = [{name: jnp.asarray(array) for name, array in batch.items()} for batch in settings.batches()]
    return _steps(settings, model, PretrainingLoss(), batches, dropout=False)


def _steps(settings: Settings, model: Any, loss: Any, batches: list[Any], dropout: bool) -> Callable[[], float]:
    import itertools

    import jax

    from flaxbert.config import TrainConfig
    from flaxbert.families.graph import forward, graph_definition
    from flaxbert.train.optimizers import make_optimizer
    from flaxbert.train.state import create_state
    from flaxbert.train.step import make_train_step

    graphdef = graph_definition(model.config, model.task, model.execution)

    def run(params: Any, batch: Any, *, dropout_key: Any = None) -> Any:
        return forward(graphdef, params, batch, dropout_key=dropout_key)

    config = TrainConfig(learning_rate=settings.learning_rate, warmup_steps=100, num_steps=10_000)
    optimizer = make_optimizer(config, 10_000)
    state, kinds = create_state(model.params, (), optimizer, copy=False)
    step = make_train_step(run, loss, optimizer, kinds)
    key = jax.random.key(0) if dropout else None
    holder, turns = [state], itertools.cycle(batches)

    def one() -> float:
        holder[0], metrics = step(holder[0], next(turns), key)
        jax.block_until_ready(holder[0])
        return float(metrics.loss_sum / metrics.weight)

    return one


def _infer(settings: Settings, model: Any) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    batch = {name: jnp.asarray(array) for name, array in settings.batch().items() if name != "labels"}
    if settings.variant.startswith("int8"):
        params = _in_int8(settings, model)
        model = model.replace(params=params).with_execution(precision="bfloat16")
    engine = settings.variant.rpartition("-")[2]
    if engine in ("openvino", "onnxruntime"):
        from flaxbert.export import in_engine

        run: Any = in_engine(model, engine).engine
        return lambda: float(run(batch).logits[0, 0])
    params = jax.device_put(model.params)

    def one() -> float:
        return float(jax.device_get(model.apply(params, batch).logits)[0, 0])

    return one


def _in_int8(settings: Settings, model: Any) -> Any:
    """Returns the parameters in int8, with static activations calibrated on other ids where the variant says so."""
    import dataclasses

    import numpy as np

    from flaxbert.config.quantization import QuantizationSpec
    from flaxbert.data.tokenization import TokenizedExamples
    from flaxbert.evaluation.calibrate import calibrate
    from flaxbert.transforms.quantize import default_quantization_rules, quantize

    if settings.variant == "int8":
        return quantize(model.params)[0]
    ids = dataclasses.replace(settings, seed=settings.seed + 1).batch()["input_ids"]
    boundaries = np.arange(len(ids) + 1) * ids.shape[1]
    examples = TokenizedExamples(ids.reshape(-1), None, boundaries, np.zeros(len(ids), np.bool_))
    rules = default_quantization_rules(QuantizationSpec(activations="static"))
    return quantize(model.params, rules, calibrate(model, examples, rules))[0]


def _label(settings: Settings, model: Any) -> Callable[[], float]:
    sentences = settings.sentences()
    if settings.variant == "int8":
        from flaxbert.transforms.quantize import quantize

        model = model.replace(params=quantize(model.params)[0]).with_execution(precision="bfloat16")

    def one() -> float:
        return model.predict(sentences, batch_size=settings.batch_size)[-1].score

    return one


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one step of the job and the versions.

    Args:
      settings: What is measured.
    """
    from flaxbert.core.runtime import configure

    configure()
    import jax

    import flaxbert

    precision = PRECISIONS[re.split(r"[+-]", settings.variant)[0]]
    task = "fill-mask" if settings.job == "pretrain" else "sequence-classification"
    model = flaxbert.load(settings.folder, task=task, precision=precision)
    step = {"train": _train, "pretrain": _pretrain, "infer": _infer, "label": _label}[settings.job](settings, model)
    del model
    device = jax.devices()[0].device_kind
    return step, {"version": f"flaxbert {flaxbert.__version__}, jax {jax.__version__}", "device": device}


if __name__ == "__main__":
    serve(prepare)
