"""Versions, aliases, promotion, rollback, damage and many writers at once."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from flaxbert.errors import ConfigError, DataError, FlaxbertError, WeightsError
from flaxbert.model import load
from flaxbert.registry import PromotionRule, Registry, parse_reference
from flaxbert.registry.difference import compare_versions
from flaxbert.registry.signatures import check_version, sign_version
from tests.helpers import ROOT
from tests.weights.tiny import CONFIG, write_tiny


@pytest.fixture(params=["folder", "memory", "s3"])
def registry(request, tmp_path, folders) -> Registry:
    location = str(tmp_path / "registry") if request.param == "folder" else f"memory://{tmp_path.name}/registry"
    if request.param == "s3":
        location = f"{request.getfixturevalue('store').location}/{tmp_path.name}"
    return Registry(location, cache=str(tmp_path / "cache"))


def test_a_version_comes_back_bit_for_bit_and_aliases_say_which(registry, folders):
    first = registry.add("films", folders[0], metrics={"accuracy": 0.8}, note="the first", aliases=["champion"])
    second = registry.add("films", folders[1], metrics={"accuracy": 0.9}, parent="films:1")
    assert (first.number, second.number) == (1, 2)
    assert registry.models() == ["films"]
    for reference, folder in {"films": 0, "films@champion": 0, "films:1": 0, "films:2": 1}.items():
        found = registry.folder(reference)
        for file in folders[folder].iterdir():
            assert (found / file.name).read_bytes() == file.read_bytes()
    registry.promote("films:2")
    assert registry.find("films").number == 2
    assert load(registry.folder("films")).predict(["a fine film"]) == load(folders[1]).predict(["a fine film"])
    record = registry.find("films:1")
    assert (record.note, record.task, record.family) == ("the first", "sequence-classification", "bert")
    assert registry.verify("films") == {1: [], 2: []}
    again = Registry(registry.location)  # another process reads the same
    assert again.state("films") == registry.state("films")


def test_rolling_back_goes_further_back_each_time(registry, folders):
    for folder in folders[:3]:
        registry.add("films", folder, aliases=["champion"])
    assert registry.roll_back("films").aliases == {"champion": 2}
    assert registry.roll_back("films").aliases == {"champion": 1}
    with pytest.raises(ConfigError, match="stood at no other version before"):
        registry.roll_back("films")
    registry.promote("films:3")
    assert registry.roll_back("films").aliases == {"champion": 1}
    actions = [event.action for event in registry.state("films").events]
    assert actions == ["add", "move"] * 3 + ["rollback", "rollback", "move", "rollback"]


def test_a_deleted_version_is_skipped_on_the_way_back_and_its_number_is_never_given_again(registry, folders):
    for folder in folders[:3]:
        registry.add("films", folder, aliases=["champion"])
    with pytest.raises(ConfigError, match="films:3 is champion; move the alias first"):
        registry.delete("films:3")
    with pytest.raises(ConfigError, match="may mean another version tomorrow"):
        registry.delete("films@champion")
    registry.delete("films:2")
    assert registry.roll_back("films").aliases == {"champion": 1}
    registry.delete("films:3")
    with pytest.raises(ConfigError, match="Version 3 of films was deleted; there are 1"):
        registry.folder("films:3")
    assert registry.add("films", folders[3]).number == 4
    assert registry.orphans("films") == []


def test_an_alias_moves_only_where_its_rule_allows_it(registry, folders):
    for folder, accuracy in zip(folders, (0.8, 0.79, 0.9, 0.5), strict=True):
        registry.add("films", folder, metrics={"accuracy": accuracy, "loss": 1 - accuracy})
    registry.promote("films:1", rule=PromotionRule("accuracy", minimum=0.7, max_loss=0.005))
    with pytest.raises(ConfigError, match=r"accuracy is 0\.79, that of the version in use 0\.8"):
        registry.promote("films:2")
    registry.promote("films:3")
    with pytest.raises(ConfigError, match="is 0.5, but must be at least 0.7"):
        registry.promote("films:4")
    assert registry.find("films").number == 3
    state = registry.promote("films:4", force="the old one is broken")
    assert state.events[-1].details["forced"] == "the old one is broken"
    assert "at least 0.7" in state.events[-1].details["refusal"]
    registry.promote("films:2", "canary", rule=PromotionRule("loss", minimum=0.3, lower_is_better=True))
    with pytest.raises(ConfigError, match="loss is 0.5, but must be at most 0.3"):
        registry.promote("films:4", "canary")
    with pytest.raises(ConfigError, match=r"no metric f1 \(it has accuracy, loss\)"):
        registry.promote("films:1", "shadow", rule=PromotionRule("f1", minimum=0.1))
    assert registry.set_rule("films", "champion", None).rules.keys() == {"canary", "shadow"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": ""}, "needs the name of a metric"),
        ({"metric": "f1"}, "needs a value that it reaches"),
        ({"metric": "f1", "minimum": float("nan")}, "must be a number"),
        ({"metric": "f1", "max_loss": -1.0}, "at least 0"),
    ],
)
def test_rules_without_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PromotionRule(**settings)


NO_NAMES = ("", "..", "../films", "a/b", "a\\b", "a%2fb", "a\0b", ".hidden", "a..b", "a.", "ä", "x" * 65, "C:films")


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name_leads_out_of_the_registry(name, tmp_path, folders):
    registry = Registry(str(tmp_path / "inner" / "registry"))
    with pytest.raises(ConfigError):
        registry.add(name, folders[0])
    with pytest.raises(ConfigError):
        registry.state(name)
    with pytest.raises(ConfigError):
        registry.promote("films:1", name)
    assert not (tmp_path / "inner").exists()


@pytest.mark.parametrize(
    "text", ["films:0", "films:-1", "films:x", "films:", "films@", "films@7", "@champion", "films:1:2"]
)
def test_references_are_checked(text):
    with pytest.raises(ConfigError):
        parse_reference(text)


def test_what_is_no_model_or_changed_is_not_added(tmp_path, folders):
    registry = Registry(str(tmp_path / "registry"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError):
        registry.add("films", tmp_path / "empty")
    damaged = tmp_path / "damaged"
    shutil.copytree(folders[0], damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(DataError, match="not what its flaxbert_manifest.json says"):
        registry.add("films", damaged)
    linked = tmp_path / "linked"
    shutil.copytree(folders[0], linked)
    (linked / "extra").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        registry.add("films", linked)
    with pytest.raises(ConfigError, match="metric accuracy is nan"):
        registry.add("films", folders[0], metrics={"accuracy": float("nan")})
    assert registry.models() == []
    registry.add("films", folders[0])
    with pytest.raises(ConfigError, match="The same files are version 1 of films already"):
        registry.add("films", folders[0])
    assert registry.orphans("films") == []
    with pytest.raises(ConfigError, match="no model 'film'.*films"):
        registry.state("film")
    with pytest.raises(ConfigError, match="No registry is named"):
        Registry("")
    with pytest.raises(ConfigError, match="can not be opened"):
        Registry("nothing-like-this://bucket")


def corrupt(path: pathlib.Path, *, old: bytes = b"", new: bytes = b"") -> None:
    path.write_bytes(path.read_bytes().replace(old, new) if old else b"\0" + path.read_bytes()[1:])


def test_damage_of_any_byte_is_found(tmp_path, folders):
    registry = Registry(str(tmp_path / "registry"))
    for folder in folders[:2]:
        registry.add("films", folder, aliases=["champion"])
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "registry", whole)
    inside = registry.folder("films:1").relative_to(tmp_path / "registry")
    for file in sorted((whole / inside).iterdir()):
        shutil.rmtree(tmp_path / "registry")
        shutil.copytree(whole, tmp_path / "registry")
        corrupt(tmp_path / "registry" / inside / file.name)
        assert registry.verify("films", 1) == {1: [f"{file.name}: content differs from its SHA-256"]}
        with pytest.raises(DataError, match="films:1 is damaged"):
            registry.folder("films:1", verify=True)
    shutil.rmtree(tmp_path / "registry")
    shutil.copytree(whole, tmp_path / "registry")
    (tmp_path / "registry" / inside / "more.txt").write_text("x")
    (tmp_path / "registry" / inside / "config.json").unlink()
    assert registry.verify("films")[1] == ["config.json: missing", "more.txt: not part of the version"]


@pytest.mark.parametrize("how", ["byte", "number", "gap", "cut", "folder"])
def test_a_journal_that_was_changed_is_refused(how, tmp_path, folders):
    registry = Registry(str(tmp_path / "registry"))
    for folder in folders[:2]:
        registry.add("films", folder, aliases=["champion"])
    journal = tmp_path / "registry" / "films" / "journal"
    if how == "byte":
        corrupt(journal / "00000002.json", old=b'"version": 1', new=b'"version": 2')
    elif how == "number":
        shutil.copy(journal / "00000003.json", journal / "00000002.json")
    elif how == "gap":
        (journal / "00000003.json").unlink()
    elif how == "cut":
        (journal / "00000001.json").write_bytes((journal / "00000001.json").read_bytes()[:40])
    else:
        corrupt(
            journal / "00000001.json",
            old=json.loads((journal / "00000001.json").read_text())["details"]["folder"].encode(),
            new=b"../../etc",
        )
    with pytest.raises(DataError, match=r"journal of films"):
        Registry(str(tmp_path / "registry")).verify("films")


def test_a_damaged_copy_of_a_remote_version_is_not_kept(tmp_path, folders):
    location = f"memory://{tmp_path.name}/remote"
    registry = Registry(location, cache=str(tmp_path / "cache"))
    record = registry.add("films", folders[0])
    files = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/remote/films/versions/{record.folder}/config.json"
    files.pipe_file(path, b" " + files.cat_file(path)[1:])
    with pytest.raises(DataError, match="config.json: content differs"):
        registry.folder("films:1")
    assert list((tmp_path / "cache" / "registry").iterdir()) == []
    assert registry.verify("films") == {1: ["config.json: content differs from its SHA-256"]}


def add_and_promote(arguments: tuple[str, str, int]) -> str:
    location, folder, times = arguments
    registry = Registry(location)
    for number in range(times):
        with contextlib.suppress(ConfigError):  # the same files are a version already
            registry.add("films", folder, note=str(number))
        registry.promote(f"films:{registry.state('films').num_added}", "newest")
    return folder


def test_writers_in_many_processes_lose_nothing(tmp_path, folders):
    location = str(tmp_path / "registry")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add_and_promote, [(location, str(folder), 3) for folder in folders]))
    code = "import sys; from tests.registry.test_registry import add_and_promote; add_and_promote((sys.argv[1], sys.argv[2], 3))"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code, location, str(folder)], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        for folder in folders[:2]
    ]
    assert [process.wait(timeout=120) for process in others] == [0, 0]
    registry = Registry(location)
    state = registry.state("films")
    assert sorted(state.versions) == [1, 2, 3, 4]
    assert len({record.digest for record in state.versions.values()}) == 4
    assert registry.verify("films") == {number: [] for number in (1, 2, 3, 4)}
    assert registry.orphans("films") == []
    assert state.aliases["newest"] in state.versions


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_the_registry_whole(tmp_path, folders):
    location = str(tmp_path / "registry")
    Registry(location).add("films", folders[0], aliases=["champion"])
    code = (
        "import sys, itertools; from flaxbert.registry import Registry; r = Registry(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for n in itertools.count():\n"
        "    v = r.add('films', sys.argv[2], aliases=['champion']); r.roll_back('films'); r.delete(f'films:{v.number}')\n"
    )
    for pause in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        process = subprocess.Popen(
            [sys.executable, "-c", code, location, str(folders[1])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        registry = Registry(location)
        found = registry.verify("films")
        assert found[1] == []
        assert all(not damage for damage in found.values())
        for number in set(found) - {1}:
            if registry.state("films").aliases["champion"] == number:
                registry.roll_back("films")
            registry.delete(f"films:{number}")
    assert Registry(location).find("films").number == 1


def test_two_versions_are_compared(registry, folders, tmp_path):
    other = load(write_tiny(tmp_path / "other", config=CONFIG.replace(hidden_size=24))).save(tmp_path / "wider")
    registry.add("films", folders[0], metrics={"accuracy": 0.8})
    registry.add("films", other, metrics={"accuracy": 0.75, "f1": 0.7}, parent="films:1")
    found = compare_versions(registry, "films:1", "films:2")
    assert found.config["hidden_size"] == (CONFIG.hidden_size, 24)
    assert found.metrics == {"accuracy": (0.8, 0.75), "f1": (None, 0.7)}
    assert found.fields["parent"] == ("", "films:1")
    assert found.files["model.safetensors"] == "changed"
    assert "vocab.txt" not in found.files
    json.dumps(found.to_json())


def test_scores_and_origin_are_those_of_the_card(tmp_path, folders):
    folder = tmp_path / "model"
    shutil.copytree(folders[0], folder)
    card = {
        "base_model": "google-bert/bert-base-uncased",
        "metrics": [{"type": "f1", "name": "f1_macro", "value": 0.5}, {"type": "accuracy", "value": 1}],
    }
    (folder / "README.md").write_text(
        "---\n"
        + json.dumps({"base_model": card["base_model"], "model-index": [{"results": [{"metrics": card["metrics"]}]}]})
        + "\n---\n# Films\n"
    )
    record = Registry(str(tmp_path / "registry")).add("films", folder)
    assert dict(record.metrics) == {"f1_macro": 0.5, "accuracy": 1.0}
    assert record.parent == "google-bert/bert-base-uncased"
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert Registry(str(tmp_path / "registry")).add("films", folder).metrics == {}


def test_every_error_is_one_of_ours(tmp_path, folders):
    registry = Registry(str(tmp_path / "registry"))
    registry.add("films", folders[0])
    for call in (
        lambda: registry.find("films@champion@x"),
        lambda: registry.promote("films:7"),
        lambda: registry.roll_back("films"),
        lambda: registry.remove_alias("films", "canary"),
        lambda: registry.verify("films", 3),
        lambda: registry.delete("films:9"),
    ):
        with pytest.raises(FlaxbertError):
            call()


def write_keys(folder, name):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)
    return str(folder / f"{name}.pem"), str(folder / f"{name}.pub")


def test_a_signature_tells_who_has_seen_exactly_these_files(registry, folders, tmp_path):
    (private, public), (_, stranger) = write_keys(tmp_path, "ours"), write_keys(tmp_path, "other")
    registry.add("films", folders[0])
    registry.add("films", folders[1])
    with pytest.raises(DataError, match=r"films:1 is not signed by ours\.pub: It is not signed"):
        check_version(registry, "films:1", public)
    sign_version(registry, "films:1", private)
    check_version(registry, "films:1", public)
    with pytest.raises(DataError, match=r"films:1 is not signed by other\.pub: The signature does not fit"):
        check_version(registry, "films:1", stranger)
    with pytest.raises(DataError, match="films:2 is not signed"):
        check_version(registry, "films:2", public)
    config = registry.folder("films:1") / "config.json"
    whole = config.read_bytes()
    config.write_bytes(whole.replace(b"bert", b"brett"))
    with pytest.raises(DataError, match="The signature does not fit"):
        check_version(registry, "films:1", public)
    config.write_bytes(whole)
    (tmp_path / "bad.pem").write_text("no key")
    for key in (tmp_path / "bad.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"The (private )?key .* (can not be used|is no file)"):
            sign_version(registry, "films:2", str(key))
