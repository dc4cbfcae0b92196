"""Work spread over a cluster by Ray Data: numbered rows of arrays go out, and rows of arrays come back in any order."""

import abc
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from flaxbert import errors
from flaxbert.cluster.connection import enter_folder
from flaxbert.config import ClusterConfig
from flaxbert.errors import ClusterError, FlaxbertError

Arrays = Mapping[str, np.ndarray]


def pack_arrays(arrays: Arrays) -> bytes:
    """Returns arrays as bytes, so that Ray Data need not find a common type for rows of different shapes.

    Args:
      arrays: By name.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays that ``pack_arrays`` packed.

    Args:
      content: The bytes.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


class RowWorker(abc.ABC):
    """What runs in a worker: makes one row of another. An error that flaxbert raises on purpose travels as a row.

    Ray keeps of an error that rises in its workers only the text of its traceback, so that nobody could tell the user one clear line.

    Args:
      folder: Folder of the launching process, which becomes the worker's.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @abc.abstractmethod
    def work(self, number: int, arrays: Arrays) -> Arrays:
        """Does the work of one row.

        Args:
          number: Number of the row.
          arrays: What it holds.

        Returns:
          What comes of it.
        """

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Is called by Ray Data for each row.

        Args:
          row: ``number`` and ``content``.

        Returns:
          The same of the result; ``error`` and ``message`` where there is none.
        """
        number = int(row["number"])
        try:
            enter_folder(self._folder)
            content = pack_arrays(self.work(number, unpack_arrays(row["content"])))
        except FlaxbertError as error:
            return {"number": number, "content": b"", "error": type(error).__name__, "message": str(error)}
        return {"number": number, "content": content, "error": "", "message": ""}


def spread(
    rows: Iterable[Arrays], worker: type[RowWorker], arguments: tuple[Any, ...], config: ClusterConfig
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Works on rows in the workers of a cluster that this process is connected to.

    Rows that a lost node had are done again by the others.

    Args:
      rows: What goes out.
      worker: What runs in each worker.
      arguments: What it is made with.
      config: How many workers, and what they need.

    Yields:
      Number of a row and what came of it, as soon as it is there.

    Raises:
      FlaxbertError: The error of the first row that failed.
      ClusterError: Ray itself failed.
    """
    import ray.data
    import ray.exceptions

    items = [{"number": number, "content": pack_arrays(arrays)} for number, arrays in enumerate(rows)]
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every execution
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    resources = dict(config.resources_per_worker)
    data = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _bind(worker, arguments),
        compute=ray.data.ActorPoolStrategy(size=min(config.num_workers, len(items))),
        num_cpus=resources.pop("CPU", 0.0),
        num_gpus=resources.pop("GPU", 0.0),
        resources=resources or None,
    )
    results = iter(data.iter_rows())
    while True:
        try:
            row = next(results, None)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Ray could not do the work: {str(error).strip().splitlines()[-1]}") from error
        if row is None:
            return
        if row["error"]:
            raise getattr(errors, row["error"], FlaxbertError)(row["message"])
        yield int(row["number"]), unpack_arrays(row["content"])


def _bind(worker: type[RowWorker], arguments: tuple[Any, ...]) -> Any:
    """Returns a class that is made without arguments: those that Ray keeps in its store may be lost when a worker is started again."""

    class Bound(worker):
        def __init__(self) -> None:
            super().__init__(*arguments)

    Bound.__name__ = Bound.__qualname__ = worker.__name__
    return Bound
