"""Stands for Ray Data in tests that need none: the same workers on the same bytes, in this process and in another order."""

import pickle

from flaxbert import errors
from flaxbert.cluster.rows import pack_arrays, unpack_arrays


def spread(rows, worker, arguments, config):
    """Does what ``flaxbert.cluster.rows.spread`` does, last row first, each worker and its arguments through pickle."""
    workers = [pickle.loads(pickle.dumps(worker))(*pickle.loads(pickle.dumps(arguments))) for _ in range(2)]
    items = [{"number": number, "content": pack_arrays(arrays)} for number, arrays in enumerate(rows)]
    for row in reversed(items):
        result = workers[row["number"] % min(2, config.num_workers)](row)
        if result["error"]:
            raise getattr(errors, result["error"])(result["message"])
        yield result["number"], unpack_arrays(result["content"])
