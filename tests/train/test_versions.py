"""Version folders without orbax: which are kept, found, best and set aside."""

import json
import pathlib

import pytest

from flaxbert.core.digests import write_manifest
from flaxbert.errors import CheckpointError
from flaxbert.train.versions import (
    CheckpointInfo,
    best_of,
    find_checkpoints_folder,
    inspect_version,
    list_versions,
    remove_leftovers,
    remove_version,
    set_aside,
    versions_to_remove,
)


def info(step: int, metric: float | None = None, damage: tuple[str, ...] = (), higher: bool = True) -> CheckpointInfo:
    return CheckpointInfo(step, pathlib.Path(str(step)), 0.0, 0, metric, higher, 1, damage)


def make_version(folder: pathlib.Path, number: int, **changes) -> pathlib.Path:
    path = folder / str(number)
    (path / "arrays").mkdir(parents=True)
    document = {
        "format": "flaxbert-checkpoint-1",
        "step": number,
        "created_seconds": 1e9,
        "metric": None,
        "higher_is_better": True,
        "leaves": {},
        **changes,
    }
    (path / "version.json").write_text(json.dumps(document))
    (path / "host.json").write_text("{}")
    write_manifest(path)
    return path


def test_newest_and_best_stay_and_damaged_ones_are_left_alone():
    versions = [info(1, 0.9), info(2, 0.5), info(3, None, ("x: missing",)), info(4, 0.1), info(5, 0.9)]
    assert [version.step for version in versions_to_remove(versions, keep=1)] == [2, 4]
    assert [version.step for version in versions_to_remove(versions, keep=3)] == []
    assert versions_to_remove([], keep=1) == []


def test_best_is_the_earliest_of_equals_and_never_damaged_or_nan():
    assert best_of([info(1, 0.2), info(2, 0.7), info(3, 0.7), info(4, float("nan")), info(5, 0.9, ("x",))]).step == 2
    assert best_of([info(1, 0.2, higher=False), info(2, 0.1, higher=False)]).step == 2
    assert best_of([info(1), info(2, float("inf"))]) is None


def test_listing_orders_by_number_and_ignores_what_is_no_version(tmp_path):
    for step in (10, 9, 100):
        make_version(tmp_path, step, metric=step / 1000)
    for name in ("notes", ".7.saving", "7.tmp", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    versions = list_versions(tmp_path)
    assert [version.step for version in versions] == [9, 10, 100]
    assert [(version.is_newest, version.is_best) for version in versions] == [(False, False)] * 2 + [(True, True)]
    assert list_versions(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "changes",
    [{"step": 4}, {"format": "other"}, {"metric": "high"}, {"leaves": None}, {"created_seconds": []}],
    ids=lambda changes: next(iter(changes)),
)
def test_version_document_that_does_not_fit_is_damage_although_its_digest_is_right(tmp_path, changes):
    version = inspect_version(make_version(tmp_path, 3, **changes), contents=True)
    assert len(version.damage) == 1
    assert version.damage[0].startswith("version.json: ")


def test_version_without_documents_is_damage(tmp_path):
    (tmp_path / "3").mkdir()
    write_manifest(tmp_path / "3")
    assert inspect_version(tmp_path / "3", contents=False).damage


def test_renamed_version_is_damage(tmp_path):
    make_version(tmp_path, 3).rename(tmp_path / "4")
    assert "step 3" in list_versions(tmp_path)[0].damage[0]


def test_setting_aside_finds_a_free_name(tmp_path):
    names = [set_aside(make_version(tmp_path, 3)).name for _ in range(3)]
    assert names == ["3.damaged", "3.damaged.2", "3.damaged.3"]
    assert [version.damage for version in list_versions(tmp_path)] == [("set aside by an earlier run",)] * 3


def test_removal_leaves_nothing_that_looks_like_a_version(tmp_path, monkeypatch):
    import shutil

    path = make_version(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: None)  # killed before the first file was deleted
        remove_version(path)
    assert list_versions(tmp_path) == []
    assert remove_leftovers(tmp_path) == [".3.removing"]
    assert list(tmp_path.iterdir()) == []


def test_run_or_its_checkpoints_folder_may_be_named(tmp_path):
    make_version(tmp_path / "run" / "checkpoints", 1)
    make_version(tmp_path / "elsewhere", 1)
    assert find_checkpoints_folder(tmp_path / "run") == tmp_path / "run" / "checkpoints"
    assert find_checkpoints_folder(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints"
    assert find_checkpoints_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoints_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no versions"):
        find_checkpoints_folder(tmp_path)
