"""The process around the computation: flags, cache folder, cluster settings, memory and peaks."""

import os
import pathlib
import stat
import types

import jax
import pytest

from flaxbert.config import MeshConfig
from flaxbert.core import runtime
from flaxbert.errors import ConfigError, MeshError
from tests.helpers import run_python

NEEDS_CURE = runtime.importlib.metadata.version("jaxlib") in runtime.WRONG_SUM_VERSIONS


@pytest.fixture
def no_backend(monkeypatch):
    """Makes this process look as if no backend ran and no flag were set."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(runtime, "backend_started", lambda: False)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: runtime.WRONG_SUM_VERSIONS[0])


def test_sums_are_right_in_this_process():
    assert runtime.check_reduction_sum()


def test_the_cure_is_added_to_the_flags_that_are_there(no_backend, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    assert runtime.cure_wrong_sums() == "set"
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=x {runtime.WRONG_SUM_CURE}"
    assert runtime.cure_wrong_sums() == "set by user"


def test_the_user_s_own_choice_of_the_flag_stays(no_backend, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{runtime.WRONG_SUM_FLAG}=-reduce")
    assert runtime.cure_wrong_sums() == "set by user"
    assert os.environ["XLA_FLAGS"] == f"{runtime.WRONG_SUM_FLAG}=-reduce"


def test_other_versions_get_no_flag_since_one_they_do_not_know_ends_the_process(no_backend, monkeypatch):
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: "99.0.0")
    assert runtime.cure_wrong_sums() == "not needed"
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("right", [True, False])
def test_a_backend_that_runs_already_is_warned_about_only_where_its_sums_are_wrong(
    no_backend, monkeypatch, right, recwarn
):
    monkeypatch.setattr(runtime, "backend_started", lambda: True)
    monkeypatch.setattr(runtime, "check_reduction_sum", lambda: right)
    if right:
        assert runtime.cure_wrong_sums() == "too late"
    else:
        with pytest.warns(RuntimeWarning, match="wrong sums on CPU.*XLA_FLAGS"):
            assert runtime.cure_wrong_sums() == "too late"
    assert os.environ["XLA_FLAGS"] == ""


def test_backend_started_knows_this_process_computes():
    jax.numpy.ones(1).block_until_ready()
    assert runtime.backend_started()


def test_asking_whether_a_backend_runs_starts_none_and_configure_cures_a_fresh_process():
    code = (
        "from flaxbert.core import runtime\n"
        "assert not runtime.backend_started()\n"
        "done = runtime.configure(use_compilation_cache=False)\n"
        "assert not runtime.backend_started(), 'configure started a backend'\n"
        "assert runtime.check_reduction_sum(), 'wrong sum'\n"
        "assert runtime.backend_started()\n"
        "print(done['wrong_sum_cure'], done['compilation_cache'])\n"
    )
    result = run_python(["-c", code], environment={"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["set" if NEEDS_CURE else "not", *(() if NEEDS_CURE else ("needed",)), "off"]


def test_the_cache_folder_is_made_private(monkeypatch, tmp_path):
    folder = tmp_path / "a" / "cache"
    monkeypatch.setenv(runtime.CACHE_FOLDER_VARIABLE, str(folder))
    assert runtime.compilation_cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_open_cache_folder_is_closed(monkeypatch, tmp_path):
    tmp_path.chmod(0o777)
    monkeypatch.setenv(runtime.CACHE_FOLDER_VARIABLE, str(tmp_path))
    runtime.compilation_cache_folder()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_cache_folder_is_refused(monkeypatch, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv(runtime.CACHE_FOLDER_VARIABLE, str(tmp_path / "link"))
    with pytest.raises(ConfigError, match="not a folder of this user"):
        runtime.compilation_cache_folder()


def test_a_cache_folder_of_another_user_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(runtime.CACHE_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="not a folder of this user"):
        runtime.compilation_cache_folder()


def test_the_cache_lies_in_the_user_s_cache_folder_and_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.delenv(runtime.CACHE_FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.compilation_cache_folder() == tmp_path / "flaxbert" / "compilation"
    monkeypatch.setenv(runtime.CACHE_FOLDER_VARIABLE, "")
    assert runtime.compilation_cache_folder() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host:1"}, "mesh.num_processes"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, r"mesh.process_id \(now 2\)"),
        ({"num_processes": 2}, "needs mesh.coordinator"),
    ],
)
def test_incomplete_cluster_settings_are_refused(settings, message):
    with pytest.raises((MeshError, ConfigError), match=message):
        runtime.initialize_distributed(MeshConfig(**settings))


def test_one_process_joins_nobody(monkeypatch):
    for name in (*runtime._CLUSTER_VARIABLES, runtime.JOIN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert runtime.initialize_distributed(MeshConfig()) is False
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert runtime.initialize_distributed(MeshConfig()) is False


@pytest.mark.parametrize(
    "variables",
    [
        {runtime.JOIN_VARIABLE: "1"},
        {runtime.JOIN_VARIABLE: "1", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
    ],
)
def test_a_process_that_is_one_of_several_lets_jax_find_the_others(monkeypatch, variables):
    for name in (*runtime._CLUSTER_VARIABLES, runtime.JOIN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    runtime.initialize_distributed(MeshConfig())
    assert len(calls) == 1
    assert "coordinator_address" not in calls[0]


def test_a_wish_to_join_is_spelled_in_one_way(monkeypatch):
    monkeypatch.setenv(runtime.JOIN_VARIABLE, "yes")
    with pytest.raises(MeshError, match="FLAXBERT_JOIN is 'yes'; set it to 1"):
        runtime.initialize_distributed(MeshConfig())


def test_host_memory_is_the_smallest_limit(monkeypatch):
    monkeypatch.setattr(runtime.psutil, "virtual_memory", lambda: types.SimpleNamespace(total=1000))
    monkeypatch.setattr(runtime, "_read_limit", lambda path: 400 if path.endswith("memory.max") else None)
    assert runtime.host_memory_limit_bytes() == 400
    monkeypatch.setattr(runtime, "_read_limit", lambda path: None)
    assert runtime.host_memory_limit_bytes() == 1000


@pytest.mark.parametrize(("text", "limit"), [("123\n", 123), ("max\n", None), (None, None)])
def test_limits_are_read_from_files_that_may_be_absent_or_unlimited(tmp_path, text, limit):
    path = pathlib.Path(tmp_path) / "memory.max"
    if text is not None:
        path.write_text(text)
    assert runtime._read_limit(str(path)) == limit


def test_virtual_devices_share_the_host_s_memory(monkeypatch):
    monkeypatch.setattr(runtime, "host_memory_limit_bytes", lambda: 800)
    assert runtime.device_memory_limit_bytes(jax.devices()[0]) == 800 // jax.local_device_count()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_longest_name_that_fits(kind, peak):
    assert runtime.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak
