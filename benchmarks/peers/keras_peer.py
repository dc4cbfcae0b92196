"""keras-hub on its JAX backend: a BERT classifier of the same size, random weights."""

import os
from collections.abc import Callable
from typing import Any

from benchmarks.settings import Settings, serve


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one step of the job and the versions.

    Args:
      settings: What is measured; variants f32 and bf16.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    import json
    import pathlib

    import jax
    import keras
    import keras_hub

    if settings.variant == "bf16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    sizes = json.loads((pathlib.Path(settings.folder) / "config.json").read_text(encoding="utf-8"))
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=sizes["vocab_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        hidden_dim=sizes["hidden_size"],
        intermediate_dim=sizes["intermediate_size"],
        max_sequence_length=sizes["max_position_embeddings"],
    )
    model = keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=2, preprocessor=None)
    batch = settings.batch()
    inputs = {
        "token_ids": batch["input_ids"],
        "padding_mask": batch["attention_mask"],
        "segment_ids": batch["token_type_ids"],
    }
    facts = {
        "version": f"keras-hub {keras_hub.__version__}, keras {keras.__version__}, jax {jax.__version__}",
        "device": jax.devices()[0].device_kind,
    }
    if settings.job == "infer":
        return lambda: float(model.predict_on_batch(inputs)[0, 0]), facts
    model.compile(
        optimizer=keras.optimizers.AdamW(settings.learning_rate, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: float(model.train_on_batch(inputs, batch["labels"], return_dict=True)["loss"]), facts


if __name__ == "__main__":
    serve(prepare)
