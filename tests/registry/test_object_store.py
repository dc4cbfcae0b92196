"""A registry in a store of objects: writers at once, answers that are lost, a store that refuses or is not there."""

import concurrent.futures
import socket

import pytest

from flaxbert.cli.main import main
from flaxbert.errors import ConfigError, RegistryError
from flaxbert.registry import Registry
from tests.helpers import run_python


@pytest.fixture
def location(store, tmp_path):
    yield f"{store.location}/{tmp_path.name}"
    store.fault = lambda method, path: ""


def is_event(method, path):
    return method == "PUT" and "/journal/" in path


def test_writers_at_once_lose_nothing(location, folders, tmp_path):
    def write(folder):
        registry = Registry(location, cache=str(tmp_path / "cache"))
        version = registry.add("films", folder)
        for _ in range(3):
            registry.promote(f"films:{version.number}", "newest")

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(write, folders[:3]))
    registry = Registry(location)
    assert registry.verify("films") == {1: [], 2: [], 3: []}
    assert len({record.digest for record in registry.state("films").versions.values()}) == 3
    assert registry.orphans("films") == []


def test_a_shared_registry_may_be_read_by_many_threads(location, folders):
    shared = Registry(location)
    shared.add("films", folders[0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        moves = [pool.submit(shared.promote, "films:1", f"alias{number}") for number in range(8)]
        reads = [pool.submit(shared.state, "films") for _ in range(16)]
        assert all(read.result().num_added == 1 for read in reads)
        assert all(f"alias{number}" in move.result().aliases for number, move in enumerate(moves))
    assert len(Registry(location).state("films").aliases) == 8


def test_an_event_whose_answer_was_lost_happens_once(store, location, folders):
    registry, lost = Registry(location), []

    def lose_one(method, path):
        if is_event(method, path) and not lost:
            lost.append(path)
            return "lose"
        return ""

    store.fault = lose_one
    registry.add("films", folders[0], aliases=["champion"])  # the library sends it again, and finds its own event there
    assert lost
    assert [event.action for event in registry.state("films").events] == ["add", "move"]
    assert registry.verify("films") == {1: []}


def test_files_stay_where_nobody_knows_whether_the_event_was_written(store, location, folders):
    registry = Registry(location)

    def lose_events(method, path):
        return "lose" if is_event(method, path) else "refuse" if "/journal/" in path and written(store) else ""

    def written(store):
        return any(is_event(*request) for request in store.requests[before:])

    before = len(store.requests)
    store.fault = lose_events
    with pytest.raises(RegistryError, match="can not be used now"):
        registry.add("films", folders[0])
    store.fault = lambda method, path: ""
    assert Registry(location).verify("films") == {1: []}


def test_what_could_not_be_added_is_no_version(store, location, folders):
    registry = Registry(location)
    registry.add("films", folders[0])
    store.fault = lambda method, path: "refuse" if is_event(method, path) else ""
    with pytest.raises(RegistryError, match="can not be used now"):
        registry.add("films", folders[1])
    store.fault = lambda method, path: ""
    assert list(registry.verify("films")) == [1]
    assert len(registry.orphans("films")) == 1
    assert registry.add("films", folders[1]).number == 2


def test_what_others_write_is_seen_whatever_was_listed_before(store, location, folders):
    ours = Registry(location)
    ours.add("films", folders[0])
    assert ours.models() == ["films"]
    assert ours.orphans("films") == []
    move = f"from flaxbert.registry import Registry; Registry({location!r}).promote('films:1', 'theirs')"
    assert run_python(["-c", move]).returncode == 0
    assert ours.state("films").aliases == {"theirs": 1}
    assert ours.promote("films:1", "ours").aliases == {"theirs": 1, "ours": 1}


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (412, "PreconditionFailed")])
def test_another_writer_at_the_same_moment_is_no_failure(store, location, folders, status, code):
    registry, refused = Registry(location), []
    registry.add("films", folders[0])

    def refuse_twice(method, path):
        if is_event(method, path) and len(refused) < 2:
            refused.append(path)
            return f"{status} {code}"
        return ""

    store.fault = refuse_twice
    assert registry.promote("films:1").aliases == {"champion": 1}
    assert len(refused) == 2


def test_a_store_that_is_busy_is_no_other_writer(store, location, folders):
    registry = Registry(location)
    registry.add("films", folders[0])
    store.fault = lambda method, path: "503 SlowDown" if is_event(method, path) else ""
    with pytest.raises(RegistryError, match="can not be used now"):
        registry.promote("films:1")


def test_only_what_is_new_is_read(store, location, folders):
    registry = Registry(location)
    registry.add("films", folders[0])
    for number in range(5):
        registry.promote("films:1", f"alias{number}")
    before = len(store.requests)
    assert registry.state("films").num_added == 1
    events = {path.rpartition("/")[2] for _, path in store.requests[before:] if path.endswith(".json")}
    assert events == {"00000006.json", "00000007.json"}


def test_another_registry_at_the_same_place_is_noticed(location, folders):
    registry = Registry(location)
    registry.add("films", folders[0], aliases=["champion"])
    registry.storage.remove("")
    with pytest.raises(ConfigError, match="has no model 'films'"):
        registry.state("films")
    Registry(location).add("films", folders[1], note="new")
    assert registry.find("films:1").note == "new"


def test_a_store_that_refuses_is_told_apart_from_one_without_the_model(store, location, monkeypatch, capsys):
    monkeypatch.setenv("FLAXBERT_REGISTRY", location)
    store.fault = lambda method, path: "refuse"
    assert main(["models", "show", "films"]) == 1
    assert f"flaxbert: error: The registry {location} can not be used now: " in capsys.readouterr().err
    store.fault = lambda method, path: ""
    assert main(["models", "show", "films"]) == 1
    assert "has no model 'films'" in capsys.readouterr().err


def test_a_store_that_is_not_there(store, folders, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    registry = Registry("s3://models/films")
    try:
        with pytest.raises(RegistryError, match="can not be used now: Could not connect"):
            registry.state("films")
        with pytest.raises(RegistryError, match="can not be used now: Could not connect"):
            registry.add("films", folders[0])
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_not_made(store, folders):
    with pytest.raises(RegistryError, match=r"s3://nowhere/x can not be written: .*bucket"):
        Registry("s3://nowhere/x").add("films", folders[0])
