"""``flaxbert evaluate``: scores a model on labelled examples."""

import pathlib

from flaxbert.cli.engine import EngineName, computed_by
from flaxbert.config import AttentionName, DataConfig, PrecisionName, TaskConfig


def run(
    model: str,
    data: DataConfig = DataConfig(max_length=0),
    task: TaskConfig = TaskConfig(),
    examples: str = "",
    output: str = "",
    batch_size: int = 32,
    precision: PrecisionName = "float32",
    attention: AttentionName = "auto",
    engine: EngineName = "jax",
    offline: bool = False,
) -> int:
    """Scores a model on labelled examples: its task's metrics with an interval, and the scores per label.

    Args:
      model: Folder or hub id of the model.
      data: Where labels and texts stand in the examples; train, validation and test are not read.
      task: What the model's task needs beyond texts and labels.
      examples: File, folder or hub id of the labelled examples; empty takes data.validation.
      output: File for the metrics and the scores per label as JSON; empty writes none.
      batch_size: Most texts computed together.
      precision: Type that the matrix products are computed in.
      attention: Attention implementation.
      engine: What computes: jax, or on CPU the exported model in onnxruntime or openvino (extras onnx, openvino), auto the fastest of them; its files are kept in the compile cache.
      offline: Never contact the hub.

    Returns:
      The exit code.
    """
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.evaluation.predict import require_folder
    from flaxbert.evaluation.score import read_labelled, score_model

    if output:
        require_folder(pathlib.Path(output))
    loaded = flaxbert.load(model, precision=precision, attention=attention, offline=offline)
    source = examples or data.validation
    if engine != "jax":
        read_labelled(loaded, data, source, task)  # their mistakes are told before a model is exported
    loaded = computed_by(engine, loaded, model)
    result = score_model(loaded, data, source, batch_size=batch_size, options=task)
    print(result.to_text())
    if output:
        result.write(output)
    return 0
