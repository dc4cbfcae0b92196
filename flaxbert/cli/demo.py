"""``flaxbert demo``: the whole main job, offline, on text that every Python carries."""


def run(output: str = "runs/demo", model: str = "", num_epochs: float = 2.0, learning_rate: float = 1e-4) -> int:
    """Fine-tunes, stops, resumes, scores, compresses, saves and predicts on docstrings of the standard library.

    Args:
      output: Folder that everything is written to; must not hold an earlier demonstration.
      model: Folder or hub id to start from; empty takes the installed MiniLM package, or a small BERT from scratch.
      num_epochs: Passes over the training texts.
      learning_rate: Peak learning rate.

    Returns:
      The exit code.
    """
    import pathlib

    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.train.recipes.demo import run_demo

    run_demo(pathlib.Path(output), model, num_epochs=num_epochs, learning_rate=learning_rate)
    return 0
