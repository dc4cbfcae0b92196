"""``import flaxbert`` and ``--help`` are quick, start no backend, and reach for no network."""

import pytest

from tests.architecture.sources import read_sources
from tests.helpers import run_python

LONGEST_IMPORT_SECONDS = 1.0
LONGEST_HELP_SECONDS = 1.0
NUM_ATTEMPTS = 5
"""The fastest attempt counts, since other processes of a busy machine only ever add time."""

GUARD = """
import os, socket, sys, time
def refuse(*_, **__): raise OSError("the network was reached for")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
before = {name: os.environ.get(name) for name in ("XLA_FLAGS", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL")}
start = time.perf_counter()
"""

REPORT = """
seconds = time.perf_counter() - start
bridge = sys.modules.get("jax._src.xla_bridge")
if bridge is not None and bridge._backends: sys.exit("a backend was started")
after = {name: os.environ.get(name) for name in before}
if after != before: sys.exit(f"the environment was changed: {after}")
print(f"{seconds:.4f}")
"""

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "datasets", "transformers", "sklearn", "matplotlib", "torch")


def fastest(program: str) -> float:
    """Returns the seconds that the fastest of several processes printed."""
    seconds = []
    for _ in range(NUM_ATTEMPTS):
        result = run_python(["-c", program])
        assert result.returncode == 0, result.stderr[-2000:]
        seconds.append(float(result.stdout.split()[-1]))
        if min(seconds) < LONGEST_HELP_SECONDS / 2:
            break
    return min(seconds)


def test_importing_flaxbert_is_quick_and_touches_nothing() -> None:
    assert fastest(f"{GUARD}\nimport flaxbert\n{REPORT}") < LONGEST_IMPORT_SECONDS


def test_importing_flaxbert_brings_no_heavy_library() -> None:
    program = f"import sys, flaxbert; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(["-c", program]).stdout.split() == []


@pytest.mark.parametrize("module", [source.module for source in read_sources("flaxbert/cli")])
def test_importing_a_command_starts_nothing(module: str) -> None:
    assert fastest(f"{GUARD}\nimport {module}\n{REPORT}") < LONGEST_IMPORT_SECONDS


def test_importing_every_module_starts_no_backend() -> None:
    modules = [source.module for source in read_sources("flaxbert") if source.module != "flaxbert.__main__"]
    result = run_python(["-c", f"{GUARD}\nimport {', '.join(modules)}\n{REPORT}"])
    assert result.returncode == 0, result.stderr[-2000:]


def test_data_brings_no_jax() -> None:
    modules = [source.module for source in read_sources("flaxbert/data")]
    program = f"import sys, {', '.join(modules)}; print('jax' in sys.modules)"
    result = run_python(["-c", program])
    assert result.stdout.split() == ["False"], result.stderr[-2000:]


def test_help_is_quick_and_offline() -> None:
    program = (
        f"{GUARD}\nimport contextlib, io, runpy\nsys.argv = ['flaxbert', '--help']\ntext = io.StringIO()\n"
        "try:\n  with contextlib.redirect_stdout(text): runpy.run_module('flaxbert', run_name='__main__')\n"
        "except SystemExit as end:\n  if end.code: sys.exit(f'--help ended with {end.code}')\n"
        "if 'finetune' not in text.getvalue(): sys.exit('--help does not name the commands')\n"
        f"{REPORT}"
    )
    assert fastest(program) < LONGEST_HELP_SECONDS


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import jax; jax.devices()", "a backend was started"),
        ("socket.create_connection(('192.0.2.1', 80))", "the network was reached for"),
        ("os.environ['XLA_FLAGS'] = '--xla_anything'", "the environment was changed"),
    ],
)
def test_the_guard_notices(program: str, complaint: str) -> None:
    result = run_python(["-c", f"{GUARD}\n{program}\n{REPORT}"])
    assert result.returncode != 0
    assert complaint in result.stderr
