"""Fine-tuning by transformers on torch, of the very run that ``flaxbert finetune`` makes of a configuration.

Head, batches and their order, AdamW, decay rules, clipping, linear schedule and the choice of the best evaluation are those of
the run; model, autograd, optimizer and schedule are torch's and transformers' own.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

CLASSES: dict[str, str] = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
"""Stock class of each task that can be compared; there is none for relations."""


def train_torch(config: Any, scratch: pathlib.Path) -> tuple[list[float], dict[str, float]]:
    """Fine-tunes with transformers on torch.

    Args:
      config: The run.
      scratch: Where the starting model is handed over.

    Returns:
      The loss of every step, and the metrics of the best evaluation: at the end of each pass and at the last step.

    Raises:
      SystemExit: Stock transformers has no model for the task, or the loop does not know the schedule.
    """
    import torch
    import transformers

    from flaxbert.train.recipes.setup import prepare

    transformers.logging.set_verbosity_error()
    prepared, train = prepare(config, say=lambda line: None), config.train
    task = prepared.model.task
    if task not in CLASSES or train.schedule != "linear" or train.optimizer != "adamw":
        raise SystemExit(f"The torch loop knows {', '.join(CLASSES)}, with adamw and a linear schedule.")
    folder = prepared.model.save(scratch / "start", overwrite=True)
    torch.manual_seed(train.seed)
    model = getattr(transformers, CLASSES[task]).from_pretrained(folder).train()
    exempt = [value for name, value in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [value for name, value in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    betas = (train.adam_beta1, train.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon)
    steps, every = prepared.total_steps, train.evaluate_every or prepared.steps_per_epoch
    warmup = train.warmup_steps or round(train.warmup_rate * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    metric, higher = prepared.metric
    losses: list[float] = []
    best: dict[str, float] = {}
    batches = iter(prepared.pipeline)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(**_tensors(next(batches), task, prepared.setting.problem_type)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % every == 0 or step == steps:
            found = _metrics(model, prepared)
            if not best or (found[metric] > best[metric]) == higher:
                best = found
    return losses, best


def _tensors(batch: Mapping[str, np.ndarray], task: str, problem_type: str) -> dict[str, Any]:
    import torch

    names = ("input_ids", "attention_mask", "token_type_ids")
    tensors = {name: torch.as_tensor(np.asarray(batch[name])).long() for name in names if name in batch}
    if "labels" not in batch:
        return tensors
    labels = torch.as_tensor(np.asarray(batch["labels"]))
    if task == "question-answering":
        return {**tensors, "start_positions": labels[:, 0].long(), "end_positions": labels[:, 1].long()}
    return {**tensors, "labels": labels.float() if problem_type == "regression" else labels.long()}


def _metrics(model: Any, prepared: Any) -> dict[str, float]:
    import torch

    from flaxbert.inference import run_examples

    task, encoded = prepared.data.task, prepared.data.splits["validation"]

    def logits(_: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            output = model(**_tensors(batch, prepared.model.task, ""))
        if prepared.model.task == "question-answering":
            return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()
        return output.logits.numpy()

    model.eval()
    outputs = run_examples(
        logits,
        None,
        encoded.features,
        batch_size=32,
        max_length=prepared.setting.max_length,
        keep_length=task.scores_tokens,
    )
    model.train()
    return dict(task.score(encoded, outputs, prepared.setting).metrics)
