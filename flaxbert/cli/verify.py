"""``flaxbert verify``: checks a model folder against its config, its files and the reference implementation."""


def run(model: str, task: str | None = None, texts: int = 3, length: int = 32, seed: int = 0) -> int:
    """Checks a model: what became of every tensor, and how far layers and outputs are from stock transformers.

    Where torch is not installed, the comparison is left out and said so.

    Args:
      model: Folder or hub id of the model.
      task: Task to load the model for; default what the folder holds.
      texts: Random texts that both implementations are run on.
      length: Most tokens of one of them.
      seed: Seed of the texts.

    Returns:
      0 when everything passes, 1 otherwise.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.evaluation.verify import verify_folder
    from flaxbert.weights.hub import resolve

    verification = verify_folder(resolve(model), task, rows=texts, length=length, seed=seed)
    print(verification.to_text())
    return 0 if verification.passed else 1
