"""Pre-training by transformers on torch, of the very run that ``flaxbert pretrain`` makes of a configuration.

First weights, rows, masks, their order, AdamW, decay rules, clipping and schedule are those of the run; model, autograd, optimizer and
schedule are torch's and transformers' own. Packed rows get a mask that keeps every piece to itself.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.torch_training import adamw

IGNORED = -100
"""Label that stock models leave out of the loss."""


def labels_of_all_tokens(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the labels of slots at the places of their tokens, -100 where nothing is hidden, int32 ``[batch, length]``.

    Args:
      rows: ``input_ids``, ``masked_positions`` and ``labels``.
    """
    labels = np.full(rows["input_ids"].shape, IGNORED, np.int32)
    known = rows["labels"] != IGNORED
    which = np.broadcast_to(np.arange(len(labels))[:, None], known.shape)
    labels[which[known], rows["masked_positions"][known]] = rows["labels"][known]
    return labels


def stock_inputs(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a batch of packed rows as stock classes take it.

    Args:
      batch: ``input_ids``, ``segment_ids``, ``position_ids``, ``masked_positions`` and ``labels`` of its slots.

    Returns:
      ``input_ids``, ``position_ids``, ``labels`` ``[batch, length]``, and an ``attention_mask`` ``[batch, 1, length, length]`` that is true
      inside of pieces.
    """
    import torch

    segments, labels = batch["segment_ids"], labels_of_all_tokens(batch)
    inside = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    inside |= np.eye(segments.shape[1], dtype=bool)[None]  # padding sees itself, so that no row of scores is empty
    return {
        "input_ids": torch.from_numpy(batch["input_ids"].astype(np.int64)),
        "position_ids": torch.from_numpy(batch["position_ids"].astype(np.int64)),
        "attention_mask": torch.from_numpy(inside[:, None]),
        "labels": torch.from_numpy(labels.astype(np.int64)),
    }


def pretrain_torch(config: Any, scratch: pathlib.Path, say: Callable[[str], None]) -> list[dict[str, float]]:
    """Pre-trains a masked language model with transformers on torch.

    Args:
      config: The run; its schedule is linear and its optimizer AdamW.
      scratch: Where the starting model is handed over.
      say: Where a line per evaluation goes.

    Returns:
      Every evaluation: step, loss, perplexity and accuracy of the hidden words of the held-out rows.
    """
    import torch
    import transformers

    from flaxbert.data.pretraining_batches import EvaluationRows
    from flaxbert.train.recipes.pretraining_setup import prepare_pretraining

    transformers.logging.set_verbosity_error()
    run, train = prepare_pretraining(config, say=lambda line: None), config.train
    folder = run.networks.main.save(scratch / "start", overwrite=True)
    torch.manual_seed(train.seed)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer, schedule = adamw(model, train, run.total_steps)
    held = list(EvaluationRows(run.validation, 32, config.data.max_validation_rows))
    history = []
    for step in range(run.total_steps + 1):
        if step % (train.evaluate_every or run.total_steps) == 0 or step == run.total_steps:
            history.append({"step": step, **_evaluate(model, held)})
            say(f"torch, step {step}: {history[-1]}")
        if step == run.total_steps:
            break
        optimizer.zero_grad()
        loss = model(**stock_inputs(run.batches[step])).loss
        loss.backward()
        if train.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        schedule.step()
    return history


def _evaluate(model: Any, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    import torch

    total, right, count = 0.0, 0, 0
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            inputs = stock_inputs(batch)
            labels = inputs.pop("labels")
            known = labels != IGNORED
            scores, wanted = model(**inputs).logits[known], labels[known]
            total += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
            right += int((scores.argmax(-1) == wanted).sum())
            count += int(known.sum())
    model.train()
    loss = total / max(count, 1)
    return {"loss": loss, "perplexity": math.exp(loss), "masked_accuracy": right / max(count, 1)}
