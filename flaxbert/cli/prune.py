"""``flaxbert prune``: removes layers, heads, neurons, tokens or single weights of a model."""

from typing import Any

from flaxbert.config import DataConfig, OneShotConfig, TaskConfig


def run(
    model: str,
    output: str,
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0, max_validation_examples=256),
    task_options: TaskConfig = TaskConfig(),
    task: str | None = None,
    report: str = "",
    register: str = "",
    registry: str = "",
    **options: Any,
) -> int:
    """Prunes a model in one shot. Several kinds go together: tokens first, then layers, heads and neurons, last single weights.

    Without any kind, only takes out heads and neurons that are zero already, as after training that prunes.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the pruned model is written to, with compression_report.json beside it.
      examples: File, folder or hub id of labelled examples for importance by gradient; empty takes data.validation.
      data: Where labels and texts stand in the examples; max_validation_examples bounds their number.
      task_options: What the model's task needs beyond texts and labels.
      task: Task to load the model for; default what the folder holds.
      report: New folder for a page that compares the two models, as flaxbert compare writes it; empty writes none.
      register: Name under which the pruned model is added to a registry; empty: to none.
      registry: Folder or URL of that registry; empty takes the variable FLAXBERT_REGISTRY.
      **options: Fields of ``OneShotConfig``: what is removed.

    Returns:
      The exit code.
    """
    from flaxbert.cli.compression import (
        add_to_registry,
        check_output,
        check_registration,
        plan_comparison,
        save_compressed,
    )

    check_registration(register, registry)
    folder = check_output(output)
    chosen = OneShotConfig(**options)
    compare = plan_comparison(model, output, report, examples, data, task_options, chosen.importance == "gradient")
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.compression.pruning import Measured, parse_weights, prune_model

    parse_weights(chosen)
    measured = Measured(examples or data.validation, data, task_options)
    pruned, done = prune_model(flaxbert.load(model, task=task), chosen, measured)
    save_compressed(pruned, done, folder, source=model)
    print(done.to_text(), end="")
    print(f"Saved to {output}.")
    add_to_registry(register, registry, output, model, "pruned")
    return compare()
