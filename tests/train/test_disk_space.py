"""What counts as a full disk, and what is told."""

import errno
import shutil

import pytest

from flaxbert.errors import CheckpointError
from flaxbert.train.disk_space import MARGIN_BYTES, is_disk_full, require_space


def wrapped(inner: BaseException) -> BaseException:
    try:
        raise RuntimeError("could not save") from inner
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (wrapped(OSError(errno.EDQUOT, "Disk quota exceeded")), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write 5 bytes: No space left on device [os_error_code='28']"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (wrapped(ValueError("other")), False),
        (None, False),
    ],
)
def test_full_disk_is_recognised_through_wrappers(error, full):
    assert is_disk_full(error) is full


def test_room_for_the_index_is_asked_for_too(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=102_000 + MARGIN_BYTES))
    require_space(tmp_path, 3, 100_000)
    with pytest.raises(CheckpointError, match=r"step 3 in .* about 4,296,406 bytes, 4,296,304 are free"):
        require_space(tmp_path, 3, 100_100)
