"""``flaxbert checkpoints list`` and ``show`` on a real store."""

import shutil
import time

import jax.numpy as jnp
import pytest

from flaxbert.cli import checkpoints
from flaxbert.errors import CheckpointError
from flaxbert.train.checkpoint import CheckpointStore
from tests.helpers import run_python


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    with CheckpointStore(run / "checkpoints", keep=2) as store:
        for step, metric in ((10, 0.5), (20, 0.75), (30, None)):
            tree = {"trainable": {"kernel": jnp.full((50, 50), float(step))}, "step": jnp.int32(step)}
            host = {"config": {"train": {"learning_rate": 3e-5}}, "note": "naïve"}
            store.save(step, tree, host=host, kinds={"kernel": "sparse"}, metric=metric)
    return run


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_list_shows_steps_sizes_metrics_and_marks(run, capsys):
    assert checkpoints.list(str(run)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "saved", "size", "metric", "leaves", "state"]
    assert [line.split()[0] for line in lines[1:3]] == ["20", "30"]
    assert "0.7500" in lines[1]
    assert lines[1].endswith("good, best")
    assert " - " in lines[2]
    assert lines[2].endswith("good, newest")
    assert "kB" in lines[1]
    assert time.strftime("%Y-") in lines[1]
    assert "--verify" in lines[3]


def test_list_finds_a_flipped_byte_only_when_it_verifies(run, capsys):
    path = run / "checkpoints" / "30" / "arrays" / "_METADATA"
    content = bytearray(path.read_bytes())
    content[7] ^= 4
    path.write_bytes(content)
    assert checkpoints.list(str(run / "checkpoints")) == 0
    assert checkpoints.list(str(run), verify=True) == 1
    out = capsys.readouterr().out
    assert "damaged: arrays/_METADATA: content differs from its SHA-256" in out
    assert out.splitlines()[-2].endswith("good, newest, best")


def test_list_changes_nothing_and_works_beside_the_writer(run, capsys):
    (run / "checkpoints" / "30" / "host.json").unlink()
    (run / "checkpoints" / ".40.saving").mkdir()
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints.list(str(run)) == 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    assert "host.json: missing" in capsys.readouterr().out
    (run / "checkpoints" / ".40.saving").rmdir()
    with CheckpointStore(run / "checkpoints"):
        assert checkpoints.list(str(run)) == 1


@pytest.mark.parametrize(("word", "step"), [(20, 20), ("newest", 30), ("best", 20)])
def test_show_tells_documents_leaves_and_files(run, capsys, word, step):
    assert checkpoints.show(str(run), word, verify=True) == 0
    out = capsys.readouterr().out
    assert f"step      {step}" in out
    assert "every byte compared" in out
    assert "trainable: 1 arrays, 2,500 entries" in out
    assert "sparse leaves: 1" in out
    assert "orbax-checkpoint" in out
    assert "  arrays/manifest.ocdbt" in out
    assert '"learning_rate": 3e-05' in out
    assert "naïve" in out


@pytest.mark.parametrize("name", ["version.json", "host.json", "manifest.json"])
def test_show_tells_what_it_can_of_a_damaged_version(run, capsys, name):
    (run / "checkpoints" / "20" / name).write_text("{")
    assert checkpoints.show(str(run), 20) == 1
    out = capsys.readouterr().out
    assert f"DAMAGED   {name}: " in out
    assert ("host document" in out) == (name != "host.json")
    assert ("software" in out) == (name != "version.json")


def test_unknown_steps_and_folders_are_errors(run, tmp_path):
    with pytest.raises(CheckpointError, match="no version '25'; its steps are: 20, 30"):
        checkpoints.show(str(run), 25)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoints.list(str(tmp_path / "nowhere"))


def test_empty_folder_is_said(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert checkpoints.list(str(tmp_path)) == 0
    assert "No versions in" in capsys.readouterr().out


def test_command_line_reads_without_jax(run):
    program = (
        "import sys; from flaxbert.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(9 if 'jax' in sys.modules else code)"
    )
    result = run_python(["-c", program, "checkpoints", "list", str(run)])
    assert (result.returncode, result.stderr) == (0, "")
    assert "good, newest" in result.stdout
    result = run_python(["-c", program, "checkpoints", "show", str(run), "25"])
    assert result.returncode == 1
    assert result.stderr.startswith("flaxbert: error: ")
