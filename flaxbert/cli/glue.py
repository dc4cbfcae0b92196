"""``flaxbert glue``: fine-tunes a model on the tasks of GLUE with several seeds and prints the usual table."""

from typing import Any

from flaxbert.config import DataConfig, MeshConfig, ModelSource, OutputConfig, RunConfig, TrainConfig


def run(
    model: ModelSource = ModelSource(),
    tasks: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    folder: str = "",
    changes: dict[str, dict[str, Any]] = {},  # noqa: B006  the parser shows the default; it is never written to
    data: DataConfig = DataConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(folder="runs/glue"),
) -> int:
    """Fine-tunes a model on the tasks of GLUE with several seeds and prints the usual table.

    Args:
      model: Which model every run starts from.
      tasks: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; empty takes all.
      seeds: Seeds; each is a run of every task.
      folder: Folder with the files of GLUE (CoLA/train.tsv, CoLA/dev.tsv, SST-2/train.tsv…); empty loads nyu-mll/glue from the hub.
      changes: Options of data by task, for files of another form, for example '{"rte": {"train": "a.tsv", "validation": "b.tsv"}}'.
      data: Lengths and limits of the examples of all tasks; sources and columns are those of GLUE.
      train: How every run is trained; its seed and metric are set for each.
      mesh: How devices are arranged.
      output: Where the runs write, a folder for each task and seed; the scores are in glue.json.

    Returns:
      The exit code.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.train.recipes.glue import run_glue

    config = RunConfig(model=model, data=data, train=train, mesh=mesh, output=output)
    run_glue(config, tasks=tasks, seeds=seeds, folder=folder, changes=changes)
    return 0
