"""transformers on torch: eager, compiled, and with autocast to bfloat16."""

import inspect
from collections.abc import Callable
from typing import Any

from benchmarks.settings import Settings, serve


def _train(settings: Settings, model: Any, device: str, autocast: bool) -> Callable[[], float]:
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    batch = {name: torch.as_tensor(array).long().to(device) for name, array in settings.batch().items()}

    def one() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    return one


def _pretrain(settings: Settings, model: Any, device: str, autocast: bool) -> Callable[[], float]:
    import itertools

    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, fused=True)
    batches = [
        {name: torch.as_tensor(array).long().to(device) for name, array in batch.items()}
        for batch in settings.batches()
    ]
    turns = itertools.cycle(batches)

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = model(**next(turns)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return one


def _infer(settings: Settings, model: Any, device: str, autocast: bool) -> Callable[[], float]:
    import torch

    model.eval()
    # Not every family has token types.
    known = set(inspect.signature(getattr(model, "_orig_mod", model).forward).parameters) - {"labels"}
    batch = {
        name: torch.as_tensor(array).long().to(device) for name, array in settings.batch().items() if name in known
    }

    def one() -> float:
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            return float(model(**batch).logits[0, 0].float())

    return one


def _label(settings: Settings, model: Any, device: str) -> Callable[[], float]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.folder)
    classify = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device=device, batch_size=settings.batch_size
    )
    sentences = settings.sentences()

    def one() -> float:
        return float(classify(sentences)[-1]["score"])

    return one


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one step of the job and the versions.

    Args:
      settings: What is measured; variants f32, autocast, bf16 (no training), each with ``+compiled`` or without.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, compiled = settings.variant.partition("+")
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    stock = transformers.AutoModelForSequenceClassification
    if settings.job == "pretrain":
        stock = transformers.AutoModelForMaskedLM
    model = stock.from_pretrained(settings.folder)
    model = model.to(device=device, dtype=dtype)
    if compiled:
        model = torch.compile(model)
    if settings.job == "label":
        step = _label(settings, model, device)
    else:
        jobs = {"train": _train, "pretrain": _pretrain, "infer": _infer}
        step = jobs[settings.job](settings, model, device, kind == "autocast")
    return step, {"version": f"transformers {transformers.__version__}, torch {torch.__version__}", "device": device}


if __name__ == "__main__":
    serve(prepare)
