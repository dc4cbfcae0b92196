"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: str | pathlib.Path, *, durable: bool = False) -> Iterator[pathlib.Path]:
    """Gives a place to write to, which becomes the file once the block ends without error.

    Until then a file that stands at the path is left as it is; after an error, or a kill, it still is. Only a kill can leave
    the unfinished file behind, as ``.NAME.PID.partial`` beside it.

    Args:
      path: The file; its folder exists.
      durable: Whether the content is forced to the disk first, so that not even a power cut leaves half of it.

    Yields:
      The place to write to, in the same folder.
    """
    target = pathlib.Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
