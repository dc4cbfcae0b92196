"""The teachers of a distillation, as they are named in a config."""

from collections.abc import Iterator

from flaxbert.config import TeacherConfig
from flaxbert.model import Model, load


def load_each(source: TeacherConfig, task: str | None = None) -> Iterator[tuple[str, Model]]:
    """Loads the teachers one after the other.

    Args:
      source: Which, and how they are executed.
      task: Task to load them for; None takes what each folder holds.

    Yields:
      Path and model of each, the first one's first.

    Raises:
      WeightsError: One can not be loaded.
    """
    for number, path in enumerate((source.path, *(other.path for other in source.others))):
        yield (
            path,
            load(
                path,
                task=task,
                precision=source.precision,
                attention=source.attention,
                scan_layers=source.scan_layers,
                revision=(source.revision or None) if number == 0 else None,
                offline=source.offline,
            ),
        )
