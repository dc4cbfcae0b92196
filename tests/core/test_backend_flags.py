"""Compiler flags: only where a backend may start, only for versions that know them, never over the user's choice."""

import importlib.util
import os

import pytest

from flaxbert.core import backend_flags, runtime
from flaxbert.core.backend_flags import BACKENDS, CPU, GPU, TPU, flag_states, may_start, set_backend_flags
from tests.helpers import run_python


@pytest.fixture
def versions(monkeypatch):
    """An empty environment in which every package has a version that the table names."""
    for backend in BACKENDS:
        monkeypatch.setenv(backend.variable, "")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    known = {backend.package: f"{backend.flags[0].versions[0]}" for backend in BACKENDS}
    monkeypatch.setattr(backend_flags, "_version", known.get)
    monkeypatch.setattr(backend_flags, "processor_features", lambda: "flags : fpu")
    return known


def test_the_table_says_everything_of_every_flag():
    flags = [flag for backend in BACKENDS for flag in backend.flags]
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert flag.name.startswith("--xla_")
        assert flag.value
        assert min(len(flag.reason), len(flag.source)) > 10
        assert flag.versions
    assert CPU.flags[0].text == runtime.WRONG_SUM_CURE
    assert CPU.flags[0].versions == runtime.WRONG_SUM_VERSIONS


@pytest.mark.parametrize("backend", [TPU, GPU], ids=lambda backend: backend.platform)
def test_flags_are_added_once_and_the_user_s_choices_stay(versions, monkeypatch, backend):
    own = f"{backend.flags[0].name}=false --xla_dump_to=x"
    monkeypatch.setenv(backend.variable, own)
    states = {entry.flag.name: entry.state for entry in set_backend_flags([backend])}
    added = " ".join(flag.text for flag in backend.flags[1:])
    assert os.environ[backend.variable] == f"{own} {added}"
    assert states[backend.flags[0].name] == "set by user to false"
    assert {states[flag.name] for flag in backend.flags[1:]} == {"set"}
    set_backend_flags([backend])
    assert os.environ[backend.variable] == f"{own} {added}"


@pytest.mark.parametrize("backend", [TPU, GPU], ids=lambda backend: backend.platform)
@pytest.mark.parametrize("version", ["99.0", "", "0.0.421", "0.10.22"])
def test_other_versions_get_no_flag_since_one_they_do_not_know_ends_the_process(versions, backend, version):
    versions[backend.package] = version
    states = set_backend_flags([backend])
    assert {entry.state for entry in states} == {f"not known to {backend.package} {version or '(absent)'}"}
    assert os.environ[backend.variable] == ""


def test_a_patch_of_a_known_version_is_known(versions):
    versions["libtpu"] += ".1"
    assert {entry.state for entry in set_backend_flags([TPU])} == {"set"}


def test_wide_vectors_are_asked_of_processors_that_have_them_alone(versions, monkeypatch):
    width = CPU.flags[1]
    assert {entry.state for entry in set_backend_flags([CPU])} == {"not set", "not needed without amx_int8"}
    assert os.environ[CPU.variable] == ""
    monkeypatch.setattr(backend_flags, "processor_features", lambda: "flags : fpu amx_int8 amx_tile")
    assert [entry.state for entry in set_backend_flags([CPU])] == ["not set", "set"]
    assert os.environ[CPU.variable] == width.text
    monkeypatch.setenv(CPU.variable, f"{width.name}=256")
    assert set_backend_flags([CPU])[1].state == "set by user to 256"
    assert os.environ[CPU.variable] == f"{width.name}=256"


@pytest.mark.slow
def test_the_installed_compiler_knows_the_flags_of_processors():
    flags = " ".join(flag.text for flag in CPU.flags)
    result = run_python(["-c", "import jax; print(jax.numpy.ones(2).sum())"], environment={"XLA_FLAGS": flags})
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2.0"


@pytest.mark.parametrize(
    ("installed", "platforms", "expected"),
    [
        ((), "", ["cpu"]),
        (("libtpu",), "", ["cpu", "tpu"]),
        (("libtpu",), "cpu", ["cpu"]),
        (("libtpu",), "tpu", ["tpu"]),
        (("jax_cuda13_plugin",), "", ["cpu", "cuda"]),
        (("jax_cuda12_plugin",), "gpu,cpu", ["cpu", "cuda"]),
        (("jax_cuda12_plugin",), "cuda", ["cuda"]),
    ],
)
def test_only_backends_that_may_start_are_looked_at(versions, monkeypatch, installed, platforms, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert [backend.platform for backend in BACKENDS if may_start(backend)] == expected
    assert {entry.backend.platform for entry in set_backend_flags()} == set(expected)
    assert CPU.flags[0].name not in os.environ[CPU.variable]  # core.runtime alone sets that


def test_configure_says_what_became_of_the_flags(versions, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "libtpu" else None)
    assert runtime.backend_started()
    assert runtime.prepare_backends() == "too late"
    assert os.environ[TPU.variable] == ""
    monkeypatch.setattr(runtime, "backend_started", lambda: False)
    assert runtime.prepare_backends() == "set"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtime.prepare_backends() == "not needed"


@pytest.mark.slow
def test_the_installed_compiler_knows_the_flags_of_gpus():
    """The flags of GPUs are read by jaxlib on every platform; one that it does not know would end this process."""
    flags = " ".join(entry.flag.text for entry in flag_states([GPU]) if not entry.state.startswith("not known"))
    result = run_python(["-c", "import jax; print(jax.numpy.ones(2).sum())"], environment={"XLA_FLAGS": flags})
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2.0"


@pytest.mark.slow
def test_the_installed_libtpu_knows_the_flags_of_tpus():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    flags = " ".join(entry.flag.text for entry in flag_states([TPU]) if not entry.state.startswith("not known"))
    code = (
        "from jax.experimental import topologies\n"
        "print(len(topologies.get_topology_desc('v5e:2x2', platform='tpu').devices))\n"
    )
    environment = {"LIBTPU_INIT_ARGS": flags, "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    result = run_python(["-c", code], environment=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["4"]
