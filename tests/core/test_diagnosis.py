"""What doctor finds: each check with a verdict that can be bad, and advice where it is."""

import importlib.util
import os
import re
import shutil
import tomllib
import types

import jax
import jax.numpy as jnp
import pytest

from flaxbert.core import backend_flags, diagnosis, runtime
from flaxbert.core.backend_flags import CPU, TPU
from flaxbert.core.diagnosis import LEAST_DISK_BYTES, LEAST_MEMORY_BYTES, REQUIRED, Finding, diagnose
from flaxbert.core.units import format_bytes
from tests.helpers import ROOT

QUICK = ["python", "packages", "devices", "memory", "cpu flag", "cpu flag", "compile cache", "disk here", "hub cache"]
COMPUTED = ["compiled sums", "bfloat16 products", "int8 products"]


@pytest.fixture(autouse=True)
def ample_machine(monkeypatch):
    """Memory and disk of a machine that is large enough, so that findings do not depend on this one."""
    monkeypatch.setattr(runtime, "device_memory_limit_bytes", lambda device: 8 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100 * 2**30))


def find(name, *, configured=None, quick=True) -> Finding:
    (found,) = [finding for finding in diagnose(configured or {}, quick) if finding.name == name]
    return found


def test_findings_stand_in_the_order_in_which_they_are_read():
    findings = diagnose({"wrong_sum_cure": "set", "compilation_cache": "somewhere"})
    assert [finding.name for finding in findings] == [*QUICK[:6], *COMPUTED, *QUICK[6:]]
    assert [finding for finding in findings if not finding.good] == []


def test_quick_leaves_out_what_computes(monkeypatch):
    monkeypatch.setattr(runtime, "check_reduction_sum", lambda: pytest.fail("computed"))
    assert [finding.name for finding in diagnose({}, quick=True)] == QUICK


def test_required_packages_are_dependencies_of_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[><=\[; ]", entry)[0].replace("_", "-") for entry in project["dependencies"]}
    assert set(REQUIRED) - {"jaxlib"} <= names


def test_versions_are_shown_and_missing_packages_named(monkeypatch):
    found = find("packages")
    assert f"jax {jax.__version__}" in found.text
    assert "missing" not in found.text
    assert all(f"{name} " in found.text for name in REQUIRED)
    monkeypatch.setattr(diagnosis, "REQUIRED", ("no-such-package-a", "jax", "no-such-package-b"))
    found = find("packages")
    assert not found.good
    assert found.text == f"jax {jax.__version__}; missing: no-such-package-a, no-such-package-b"


@pytest.mark.parametrize(("version", "good"), [((3, 10, 14), False), ((3, 11, 0), True), ((4, 0, 0), True)])
def test_an_old_python_is_told_what_it_takes(monkeypatch, version, good):
    monkeypatch.setattr(diagnosis, "sys", types.SimpleNamespace(version_info=version))
    found = find("python")
    assert found.good is good
    assert ("needs Python 3.11 or newer" in found.text) is not good


def test_devices_are_counted_and_at_most_eight_listed(monkeypatch):
    found = find("devices")
    assert found.text.startswith(f"{len(jax.devices())} x cpu (0: ")
    many = [types.SimpleNamespace(id=number, platform="tpu", device_kind="TPU v4") for number in range(20)]
    monkeypatch.setattr(jax, "devices", lambda: many)
    found = find("devices")
    assert found.text.startswith("20 x tpu (0: TPU v4, 1: TPU v4")
    assert "7: TPU v4)" in found.text
    assert "8: " not in found.text


@pytest.mark.parametrize(
    ("plugin", "platforms", "expected"),
    [
        ("libtpu", None, ["libtpu (tpu extra) is installed, but JAX found only the CPU"]),
        ("jax_cuda12_plugin", "", ["jax_cuda12_plugin (cuda extra) is installed, but JAX found only the CPU"]),
        ("jax_cuda13_plugin", "cuda,cpu", ["jax_cuda13_plugin (cuda extra) is installed, but JAX found only the CPU"]),
        ("libtpu", "cpu", []),
        ("another_plugin", None, []),
    ],
)
def test_an_accelerator_that_is_installed_but_not_found_is_reported(monkeypatch, plugin, platforms, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == plugin else None)
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    found = [finding for finding in diagnose({}, quick=True) if finding.name == "accelerator"]
    assert [finding.text for finding in found] == expected
    assert not any(finding.good for finding in found)


def test_a_machine_with_an_accelerator_is_not_asked_for_plugins(monkeypatch):
    device = types.SimpleNamespace(id=0, platform="gpu", device_kind="NVIDIA H100")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    names = [finding.name for finding in diagnose({}, quick=True)]
    assert [name for name in names if name not in ("tpu flag", "cuda flag")] == QUICK


def test_every_flag_is_shown_with_its_value_its_state_and_its_reason(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    monkeypatch.setattr(backend_flags, "_version", {"jaxlib": "0.10.2", "libtpu": "99.0"}.get)
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {runtime.WRONG_SUM_FLAG}=-reduce")
    findings = [finding for finding in diagnose({}, quick=True) if finding.name.endswith(" flag")]
    shown = [(finding.name, finding.text) for finding in findings]
    assert all(finding.good for finding in findings)
    assert len(shown) == len(CPU.flags) + len(TPU.flags)
    assert shown[0][0] == "cpu flag"
    assert shown[0][1].startswith(
        f"{runtime.WRONG_SUM_CURE} (XLA_FLAGS): set by user to -reduce; without it this version"
    )
    name, text = shown[len(CPU.flags)]
    assert (name, text.split("; ")[0]) == (
        "tpu flag",
        f"{TPU.flags[0].text} (LIBTPU_INIT_ARGS): not known to libtpu 99.0",
    )
    assert TPU.flags[0].reason in text
    assert TPU.flags[0].source in text


@pytest.mark.parametrize(("size", "good"), [(LEAST_MEMORY_BYTES, True), (LEAST_MEMORY_BYTES - 1, False)])
def test_memory_of_a_device_has_a_least_size(monkeypatch, size, good):
    asked = []
    monkeypatch.setattr(runtime, "device_memory_limit_bytes", lambda device: asked.append(device) or size)
    found = find("memory")
    assert found.good is good
    assert found.text.startswith(f"{format_bytes(size)} for each device")
    assert asked == [jax.devices()[0]]


def test_wrong_sums_come_with_their_cure(monkeypatch):
    found = find("compiled sums", configured={"wrong_sum_cure": "set by user"}, quick=False)
    assert (found.good, found.text) == (True, "right (cure: set by user)")
    monkeypatch.setattr(runtime, "check_reduction_sum", lambda: False)
    found = find("compiled sums", quick=False)
    assert not found.good
    assert found.text.startswith("WRONG (cure: unknown)")
    assert f"XLA_FLAGS={runtime.WRONG_SUM_CURE}" in found.text


@pytest.mark.parametrize("kind", [jnp.float32, jnp.int32])
def test_one_wrong_product_is_enough_and_blamed_on_its_precision(monkeypatch, kind):
    original = jnp.matmul

    def matmul(left, right, *, preferred_element_type=None):
        product = original(left, right, preferred_element_type=preferred_element_type)
        return product.at[3, 5].add(1) if preferred_element_type == kind else product

    monkeypatch.setattr(jnp, "matmul", matmul)
    verdicts = {finding.name: finding for finding in diagnose({}) if finding.name in COMPUTED}
    wrong = "bfloat16 products" if kind == jnp.float32 else "int8 products"
    assert [name for name, finding in verdicts.items() if not finding.good] == [wrong]
    assert verdicts[wrong].text == "WRONG; do not use this precision on this device"


@pytest.mark.parametrize(("free", "good"), [(LEAST_DISK_BYTES, True), (LEAST_DISK_BYTES - 1, False)])
def test_both_disks_need_room(monkeypatch, tmp_path, free, good):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HF_HOME", str(home))
    for name, folder in (("disk here", here), ("hub cache", home)):
        sizes = {os.fspath(folder): free}
        usage = lambda path, sizes=sizes: types.SimpleNamespace(free=sizes.get(os.fspath(path), 2**40))
        monkeypatch.setattr(shutil, "disk_usage", usage)
        verdicts = {finding.name: finding for finding in diagnose({}, quick=True)}
        assert [verdicts[disk].good for disk in ("disk here", "hub cache")] == [
            good or disk != name for disk in ("disk here", "hub cache")
        ]
        assert verdicts[name].text == f"{format_bytes(free)} free"


def test_the_compile_cache_is_shown_and_may_be_off():
    assert find("compile cache") == Finding("compile cache", True, "off")
    assert find("compile cache", configured={"compilation_cache": "a/folder"}).text == "a/folder"


def test_a_home_that_does_not_exist_is_no_error(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or types.SimpleNamespace(free=2**40))
    monkeypatch.setenv("HOME", str(tmp_path / "missing" / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert find("hub cache").good
    assert asked[-1] == tmp_path
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert find("hub cache").good
    assert asked[-1] == tmp_path / "hub"
