"""Fine-tuning by transformers on torch, of the very run that ``flaxbert finetune`` makes of a configuration.

Head, batches and their order, AdamW, decay rules, clipping, linear schedule and the choice of the best evaluation are those of
the run; model, autograd, optimizer and schedule are torch's and transformers' own.
"""

import inspect
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


NOT_KNOWN = (
    "schedule",
    "optimizer",
    "end_learning_rate",
    "accumulation_steps",
    "label_smoothing_rate",
    "class_weights",
    "freeze",
    "early_stopping_patience",
    "plateau_patience",
    "load_best_at_end",
)
"""Options of training that have to stand as they are by default."""


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
    usual = {name: getattr(type(train)(), name) for name in NOT_KNOWN}
    other = [name for name, value in usual.items() if getattr(train, name) != value]
    if task not in CLASSES or other:
        raise SystemExit(f"The torch loop knows {', '.join(CLASSES)}, and no other train.{', train.'.join(NOT_KNOWN)}.")
    folder = prepared.model.save(scratch / "start", overwrite=True)
    torch.manual_seed(train.seed)
    model = getattr(transformers, CLASSES[task]).from_pretrained(folder).train()
    steps, every = prepared.total_steps, train.evaluate_every or prepared.steps_per_epoch
    optimizer, schedule = adamw(model, train, steps)
    metric, higher = prepared.metric
    losses: list[float] = []
    best: dict[str, float] = {}
    batches = iter(prepared.pipeline)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(**_tensors(model, next(batches), task, prepared.setting.problem_type)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % every == 0 or step == steps:
            found = _metrics(model, prepared)
            if not best or (found[metric] > best[metric] if higher else found[metric] < best[metric]):
                best = found
    return losses, best


def adamw(model: Any, train: Any, steps: int) -> tuple[Any, Any]:
    """Returns torch's AdamW and linear schedule with the options of a run.

    Args:
      model: The stock model.
      train: Options of training.
      steps: Steps of the run.
    """
    import torch
    import transformers

    from flaxbert.train.schedules import num_warmup_steps

    decayed, exempt = ([value for value in model.parameters() if (value.ndim > 1) == large] for large in (True, False))
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_epsilon
    )
    warmup = num_warmup_steps(train, steps)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)


def _tensors(model: Any, batch: Mapping[str, np.ndarray], task: str, problem_type: str) -> dict[str, Any]:
    import torch

    # The rows that fill an epoch's last batch weigh nothing for flaxbert; torch gets the others alone.
    real = np.asarray(batch["example_weight"]) > 0 if "example_weight" in batch else slice(None)
    names = {"input_ids", "attention_mask", "token_type_ids"} & set(inspect.signature(model.forward).parameters)
    tensors = {name: torch.as_tensor(np.asarray(batch[name])[real]).long() for name in names if name in batch}
    if "labels" not in batch:
        return tensors
    labels = torch.as_tensor(np.asarray(batch["labels"])[real])
    if task == "question-answering":
        return {**tensors, "start_positions": labels[:, 0].long(), "end_positions": labels[:, 1].long()}
    return {
        **tensors,
        "labels": labels.long() if problem_type in ("", "single_label_classification") else labels.float(),
    }


def _metrics(model: Any, prepared: Any) -> dict[str, float]:
    import torch

    from flaxbert.inference import run_examples

    task, encoded = prepared.data.task, prepared.data.splits["validation"]

    def logits(_: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            output = model(**_tensors(model, batch, prepared.model.task, ""))
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
