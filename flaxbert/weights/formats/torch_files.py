"""Files of ``torch.save``, read without torch and without running anything that they name.

Two layouts exist. Since torch 1.6 a file is a zip archive whose entries are stored as they are: ``NAME/data.pkl`` is the
pickle, ``NAME/data/KEY`` the bytes of a storage. Before, a file was five pickles in a row (a magic number, the version,
facts about the machine, the object, the keys of the storages) and then each storage: its number of elements in 8 bytes and
its bytes. Either way the tensors lie in the file as they are, so they can be read from their place.
"""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.pickle_machine import PickledMap, PickleMachine
from flaxbert.weights.formats.stored import StoredTensor, Window, broken, open_file
from flaxbert.weights.formats.torch_objects import KIND, NAMES, Storages, find_tensors, place_tensor
from flaxbert.weights.formats.zip_directory import LOCAL_HEADER, read_zip_directory

LARGEST_PICKLE_BYTES = 1 << 26
"""Archives whose pickle is larger are refused; that of a model of a thousand tensors has about 100 kB."""

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""The first object of a file in the old layout."""

_PROTOCOL_VERSION = 1001


def read_torch_file(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a file of ``torch.save``.

    Args:
      file: The file.

    Returns:
      Tensors by name, not yet read.

    Raises:
      WeightsError: The file can not be read, is damaged or compressed, names anything that tensors do not need, or holds no
        state dictionary.
    """
    with open_file(file) as (stream, size):
        start = stream.read(4)
        if start == LOCAL_HEADER:
            return _read_archive(stream, file, size)
        if start[:1] == b"\x80":
            return _read_old_layout(stream, file, size)
    raise broken(file, KIND, f"it starts with {start!r}, so it is neither a zip archive nor a pickle of torch")


def _read_archive(stream: io.BufferedReader, file: pathlib.Path, size: int) -> dict[str, StoredTensor]:
    entries = read_zip_directory(stream, file, KIND, size)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise broken(file, KIND, f"the archive has {len(pickles)} entries data.pkl, where one is due")
    folder = pickles[0].removesuffix("data.pkl")
    start, num_bytes = entries[pickles[0]]
    if num_bytes > LARGEST_PICKLE_BYTES:
        raise broken(file, KIND, f"its pickle has {num_bytes} bytes, more than {LARGEST_PICKLE_BYTES}")
    if f"{folder}byteorder" in entries:
        place, length = entries[f"{folder}byteorder"]
        order = Window(stream, file, KIND, place, place + length).take(min(length, 16))
        if order != b"little":
            raise WeightsError(
                f"{file} has the byte order {order!r}; flaxbert reads little. Save it on such a machine."
            )
    storages = Storages()
    content = PickleMachine(Window(stream, file, KIND, start, start + num_bytes), NAMES, storages.find).run()
    places: dict[str, tuple[int, int]] = {}
    for key, storage in storages.by_key.items():
        if f"{folder}data/{key}" not in entries:
            raise broken(file, KIND, f"storage '{key[:80]}' is not in the archive")
        places[key] = entries[f"{folder}data/{key}"]
        needed = storage.num_elements * storage.dtype.itemsize
        if places[key][1] != needed:
            raise broken(file, KIND, f"storage '{key}' has {places[key][1]} bytes, where its {needed} are due")
    return _place_all(file, content, places, size)


def _place_all(
    file: pathlib.Path, content: Any, places: Mapping[str, tuple[int, int]], size: int
) -> dict[str, StoredTensor]:
    tensors = find_tensors(file, content)
    return {name: place_tensor(file, name, tensor, places, size) for name, tensor in tensors.items()}


def _read_old_layout(stream: io.BufferedReader, file: pathlib.Path, size: int) -> dict[str, StoredTensor]:
    window = Window(stream, file, KIND, 0, size)
    if (magic := PickleMachine(window, NAMES).run()) != MAGIC_NUMBER or type(magic) is not int:
        raise broken(file, KIND, "it is a pickle, but not one of torch.save")
    version = PickleMachine(window, NAMES).run()
    if type(version) is not int or version != _PROTOCOL_VERSION:
        raise broken(file, KIND, f"its layout is not the known version {_PROTOCOL_VERSION}")
    machine = PickleMachine(window, NAMES).run()
    facts = machine.pairs if isinstance(machine, PickledMap) else []
    if ("little_endian", False) in [pair for pair in facts if isinstance(pair[0], str) and isinstance(pair[1], bool)]:
        raise WeightsError(f"{file} was written on a big-endian machine; flaxbert reads little-endian files.")
    storages = Storages()
    content = PickleMachine(window, NAMES, storages.find).run()
    keys = PickleMachine(window, NAMES).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise broken(file, KIND, "its list of storages is malformed")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in storages.by_key or key in places:
            raise broken(file, KIND, f"its list names storage '{key[:80]}' twice or for no tensor")
        storage = storages.by_key[key]
        num_elements = window.take_number(8)
        if num_elements != storage.num_elements:
            raise broken(
                file, KIND, f"storage '{key}' has {num_elements} elements, where {storage.num_elements} are due"
            )
        num_bytes = num_elements * storage.dtype.itemsize
        places[key] = (window.skip(num_bytes), num_bytes)
    if window.position != size:
        raise broken(file, KIND, f"{size - window.position} bytes follow the last storage")
    return _place_all(file, content, places, size)
