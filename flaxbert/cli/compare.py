"""``flaxbert compare``: size, speed, quality and error of several models beside the first."""

from collections.abc import Mapping
from typing import Any

from flaxbert.config import AttentionName, DataConfig, PrecisionName, TaskConfig


def run(
    models: list[str],
    output: str = "",
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
    task: TaskConfig = TaskConfig(),
    texts: str = "",
    names: tuple[str, ...] = (),
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    lengths: tuple[int, ...] = (),
    rounds: int = 20,
    together: int = 4,
    num_texts: int = 16,
    batch_size: int = 32,
    num_resamples: int = 1000,
    loading: bool = True,
    precision: PrecisionName = "float32",
    attention: AttentionName = "auto",
    offline: bool = False,
    seed: int = 0,
) -> int:
    """Compares models with the first of them, prints tables, and writes a page (comparison.html) and its numbers (comparison.json).

    Args:
      models: Folders or hub ids, the reference first: flaxbert compare A B C --output FOLDER.
      output: New folder for the page and the numbers; empty prints the tables only.
      examples: File, folder or hub id of labelled examples, for the quality; --data FILE is the same. Empty: all but quality.
      data: Where labels and texts stand in the examples; train, validation and test are not read.
      task: What the models' task needs beyond texts and labels.
      texts: File of texts for speed and the errors of hidden states, one a line or a table; empty takes those of the examples, else words of the vocabulary.
      names: Names of the models in tables; empty takes the last parts of their paths.
      batch_sizes: Rows of the batches that are timed.
      lengths: Tokens of the rows that are timed; empty takes 128, or the maximum of the model that takes least.
      rounds: Times that every model is timed with every shape; the models take turns.
      together: Most models in memory at once while they are timed, the first one included each time.
      num_texts: Texts that hidden states are compared on.
      batch_size: Most texts computed together where quality is measured.
      num_resamples: Draws of a bootstrap interval.
      loading: Whether each model is also loaded in a fresh process, to see how far it grows.
      precision: Type that the matrix products are computed in.
      attention: Attention implementation.
      offline: Never contact the hub.
      seed: Seed of made-up texts.

    Returns:
      The exit code.
    """
    return compare(dict(locals()))


def compare(options: Mapping[str, Any]) -> int:
    """Runs the command.

    Args:
      options: The arguments of ``run``.

    Returns:
      The exit code.
    """
    import sys

    from flaxbert.cli.compression import check_output
    from flaxbert.comparison.settings import ComparisonSettings

    folder = check_output(options["output"]) if options["output"] else None
    others = ("models", "output", "data", "task")
    settings = ComparisonSettings(**{name: value for name, value in options.items() if name not in others})
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.comparison.compare import compare_models
    from flaxbert.comparison.page import write_comparison
    from flaxbert.train.provenance import public_command

    command = public_command(["flaxbert", *sys.argv[1:]])
    comparison = compare_models(options["models"], settings, options["data"], options["task"], command=command)
    written = None if folder is None else write_comparison(comparison, folder)
    print(comparison.to_text(), end="")
    if written is not None:
        print(f"Wrote {written[0]} and {written[1].name}.")
    return 0
