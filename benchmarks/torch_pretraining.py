"""Pre-training by transformers on torch, of the very run that ``flaxbert pretrain`` makes of a configuration.

First weights, rows, masks, their order, AdamW, decay rules, clipping and schedule are those of the run; model, autograd, optimizer and
schedule are torch's and transformers' own. Packed rows get a mask that keeps every piece to itself.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

IGNORED = -100
"""Label that stock models leave out of the loss."""


def stock_inputs(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a batch of packed rows as stock classes take it.

    Args:
      batch: ``input_ids``, ``segment_ids``, ``position_ids``, ``masked_positions`` and ``labels`` of its slots.

    Returns:
      ``input_ids``, ``position_ids``, ``labels`` ``[batch, length]``, and an ``attention_mask`` ``[batch, 1, length, length]`` that is true
      inside of pieces.
    """
    import torch

    segments = batch["segment_ids"]
    labels = np.full(segments.shape, IGNORED, np.int64)
    known = batch["labels"] != IGNORED
    rows = np.broadcast_to(np.arange(len(labels))[:, None], known.shape)
    labels[rows[known], batch["masked_positions"][known]] = batch["labels"][known]
    inside = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    inside |= np.eye(segments.shape[1], dtype=bool)[None]  # padding sees itself, so that no row of scores is empty
    return {
        "input_ids": torch.from_numpy(batch["input_ids"].astype(np.int64)),
        "position_ids": torch.from_numpy(batch["position_ids"].astype(np.int64)),
        "attention_mask": torch.from_numpy(inside[:, None]),
        "labels": torch.from_numpy(labels),
    }


def adamw(model: Any, train: Any, steps: int) -> tuple[Any, Any]:
    """Returns torch's AdamW and linear schedule with the options of a run.

    Args:
      model: The stock model.
      train: Options of training.
      steps: Steps of the run.
    """
    import torch
    import transformers

    decayed, exempt = ([value for value in model.parameters() if (value.ndim > 1) == large] for large in (True, False))
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_epsilon
    )
    warmup = train.warmup_steps or math.ceil(train.warmup_rate * steps)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)


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
