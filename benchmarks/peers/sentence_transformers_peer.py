"""sentence-transformers on torch: the same encoder without head, mean pooled, from token ids."""

from collections.abc import Callable
from typing import Any

from benchmarks.settings import Settings, serve


def prepare(settings: Settings) -> tuple[Callable[[], float], dict[str, Any]]:
    """Returns one forward pass and the versions.

    Args:
      settings: What is measured; variants f32 and bf16.
    """
    import sentence_transformers
    import torch

    dtype = torch.bfloat16 if settings.variant == "bf16" else torch.float32
    model = sentence_transformers.SentenceTransformer(settings.folder, model_kwargs={"dtype": dtype})
    model.eval()
    batch = {name: torch.as_tensor(array).long() for name, array in settings.batch().items() if name != "labels"}

    def one() -> float:
        with torch.inference_mode():
            features = {name: tensor.to(model.device) for name, tensor in batch.items()}
            return float(model(features)["sentence_embedding"][0, 0].float())

    version = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    return one, {"version": version, "device": str(model.device)}


if __name__ == "__main__":
    serve(prepare)
