"""Versions that change under load: nobody notices but by the answer."""

import concurrent.futures
import threading

import httpx2
import numpy as np
import pytest

import flaxbert
from flaxbert.config import AccessConfig, RolloutConfig
from flaxbert.registry import Reference, Registry
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from flaxbert.weights.save import save_checkpoint
from tests.helpers import run_python
from tests.object_store import object_store
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running, wait_for
from tests.weights.tiny import random_params, write_tiny

ADMIN = {"authorization": "Bearer let-me-in"}
TEXT = "a fine film ."


def write_version(folder, seed):
    write_tiny(folder, config=BASE)
    model = flaxbert.load(folder)
    params = random_params(BASE, "sequence-classification", seed)
    save_checkpoint(folder, config=BASE, task=model.task, params=params, tokenizer=model.tokenizer, overwrite=True)
    return folder


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_REGISTRY", str(tmp_path / "registry"))
    registry = Registry()
    for seed in (1, 2):
        registry.add("film", write_version(tmp_path / f"model-{seed}", seed), metrics={"accuracy": 0.8 + 0.01 * seed})
    registry.promote("film:1")
    return registry


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A store of objects with the registry in it."""
    monkeypatch.setenv("FLAXBERT_CACHE", str(tmp_path / "cache"))
    with object_store(monkeypatch) as running_store:
        monkeypatch.setenv("FLAXBERT_REGISTRY", f"{running_store.location}/serve")
        registry = Registry()
        for seed in (1, 2):
            registry.add("film", write_version(tmp_path / f"model-{seed}", seed))
        registry.promote("film:1")
        registry.promote("film:1", "canary")
        yield running_store


def serve(tmp_path, **rollout):
    keys = tmp_path / "admins"
    keys.write_text("# those who may\nlet-me-in\n")
    keys.chmod(0o600)
    return make_app(
        parse_specs(("registry:film",)),
        engine=SMALL,
        access=AccessConfig(admin_keys_file=str(keys)),
        rollout=RolloutConfig(**{"poll_seconds": 0.05, **rollout}),
    )


def expected_scores(registry, numbers=(1, 2)):
    return {str(n): flaxbert.load(registry.folder(f"film:{n}")).predict([TEXT])[0].scores for n in numbers}


def check(answer, expected):
    """Compares an answer with that of the version that it names."""
    assert answer.status_code == 200, answer.text
    scores = {entry["label"]: entry["score"] for entry in answer.json()}
    wanted = expected[answer.headers["x-model-version"]]
    np.testing.assert_allclose([scores[name] for name in wanted], list(wanted.values()), atol=1e-5)
    return answer.headers["x-model-version"]


def served_version(url):
    return httpx2.get(f"{url}/models").json()["models"][0]["versions"]["champion"]["version"]


def test_swaps_and_rollbacks_fail_no_request(registry, tmp_path):
    expected = expected_scores(registry)
    with running(serve(tmp_path)) as url:
        done = threading.Event()

        def ask():
            seen = []
            with httpx2.Client() as client:
                while not done.is_set():
                    seen.append(check(client.post(f"{url}/predict", json={"inputs": TEXT}, timeout=60), expected))
            return seen

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                for number in range(2):
                    answer = httpx2.post(
                        f"{url}/admin/models/film/promote", json={"version": 2}, headers=ADMIN, timeout=60
                    )
                    assert answer.json()["versions"]["champion"]["version"] == "2"
                    registry.promote("film:1") if number % 2 else registry.roll_back("film")  # from outside
                    wait_for(lambda: served_version(url) == "1")
            finally:
                done.set()
            seen = [version for task in asking for version in task.result()]
        assert set(seen) == {"1", "2"}
        metrics = httpx2.get(f"{url}/metrics").text
        assert 'flaxbert_model_swaps_total{model="film",outcome="swapped"} 4.0' in metrics
        assert 'err="' not in metrics


def test_a_damaged_version_leaves_the_old_one_in_place(registry, tmp_path):
    expected = expected_scores(registry)
    with running(serve(tmp_path)) as url:
        file = registry.folder("film:2") / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.chmod(0o644)
        file.write_bytes(content)
        registry.promote("film:2")
        wait_for(lambda: httpx2.get(f"{url}/models").json()["models"][0]["failed"] == {"champion": "2"})
        assert check(httpx2.post(f"{url}/predict", json={"inputs": TEXT}), expected) == "1"
        assert httpx2.get(f"{url}/health").status_code == 200


def test_a_store_that_can_not_be_reached_changes_nothing_and_is_asked_again(store, tmp_path):
    registry = Registry()
    with running(serve(tmp_path, canary_percent=1.0)) as url:
        promote = f"{url}/admin/models/film/promote"

        def models():
            return httpx2.get(f"{url}/models").json()["models"][0]

        def asked(part, times=30):
            """Waits until the server has asked for files with this in their path, often enough for several looks at everything."""
            before = len(store.requests)
            wait_for(lambda: sum(part in path for _, path in store.requests[before:]) >= times)

        store.fault = lambda method, path: "refuse"
        asked("")
        refused = httpx2.post(promote, json={"version": 2}, headers=ADMIN)
        assert refused.status_code == 503
        assert "can not be used now" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx2.get(f"{url}/admin/models/film", headers=ADMIN).status_code == 503
        assert set(models()["versions"]) == {"champion", "canary"}

        store.fault = lambda method, path: "refuse" if "/versions/" in path else ""  # aliases are told, files are not
        registry.promote("film:2")
        asked("/versions/")
        assert models()["failed"] == {}
        assert served_version(url) == "1"

        store.fault = lambda method, path: ""
        wait_for(lambda: served_version(url) == "2")
        registry.storage.remove("")  # a registry that is gone takes no canary away
        asked("/journal/")
        assert set(models()["versions"]) == {"champion", "canary"}


def test_what_another_process_writes_into_a_store_is_seen(store, tmp_path):
    with running(serve(tmp_path)) as url:
        move = "from flaxbert.registry import Registry; Registry().promote('film:2')"
        moved = run_python(["-c", move])
        assert moved.returncode == 0, moved.stderr
        wait_for(lambda: served_version(url) == "2")
        back = httpx2.post(f"{url}/admin/models/film/rollback", json={}, headers=ADMIN)
        assert back.status_code == 200
        assert served_version(url) == "1"


def test_a_canary_goes_although_there_is_no_champion(registry, tmp_path):
    registry.promote("film:2", "canary")
    with running(serve(tmp_path, canary_percent=50.0)) as url:

        def roles():
            return set(httpx2.get(f"{url}/models").json()["models"][0]["versions"])

        wait_for(lambda: roles() == {"champion", "canary"})
        registry.remove_alias("film", "champion")
        registry.remove_alias("film", "canary")
        wait_for(lambda: "canary" not in roles())
        assert roles() == {"champion"}


def test_an_alias_that_moved_is_no_failure_although_its_files_can_not_be_had(store, tmp_path):
    with running(serve(tmp_path)) as url:
        store.fault = lambda method, path: "refuse" if "/versions/" in path else ""
        moved = httpx2.post(f"{url}/admin/models/film/promote", json={"version": 2}, headers=ADMIN)
        assert moved.status_code == 200
        assert served_version(url) == "1"
        store.fault = lambda method, path: ""
        wait_for(lambda: served_version(url) == "2")


def test_a_canary_answers_its_share_and_a_shadow_none(registry, tmp_path):
    expected = expected_scores(registry)
    registry.promote("film:2", "canary")
    registry.promote("film:2", "next")
    app = serve(tmp_path, canary_percent=30.0, shadow_alias="next")
    with running(app) as url, httpx2.Client() as client:
        ids = [f"request-{number}" for number in range(200)]
        seen = [
            check(client.post(f"{url}/predict", json={"inputs": TEXT}, headers={"x-request-id": name}), expected)
            for name in ids
        ]
        assert 0.2 < seen.count("2") / len(seen) < 0.4
        again = client.post(f"{url}/predict", json={"inputs": TEXT}, headers={"x-request-id": ids[0]})
        assert again.headers["x-model-version"] == seen[0]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
        for number in ("1", "2"):  # a version that is named is the one that computes, whatever the id
            answer = client.post(f"{url}/v2/models/film/versions/{number}/infer", json={"inputs": [tensor]}).json()
            wanted = [expected[number][name] for name in BASE.label_names]
            np.testing.assert_allclose(answer["outputs"][1]["data"], wanted, atol=1e-5)
        wait_for(lambda: "flaxbert_shadow_total{" in client.get(f"{url}/metrics").text)
        registry.remove_alias("film", "canary")
        wait_for(lambda: "canary" not in client.get(f"{url}/models").json()["models"][0]["versions"])
        assert {check(client.post(f"{url}/predict", json={"inputs": TEXT}), expected) for _ in range(40)} == {"1"}


def test_only_administrators_move_aliases(registry, tmp_path):
    with running(serve(tmp_path)) as url:
        promote = f"{url}/admin/models/film/promote"
        assert httpx2.post(promote, json={"version": 2}).status_code == 401
        wrong = httpx2.post(promote, json={"version": 2}, headers={"authorization": "Bearer let-me-i"})
        assert wrong.status_code == 401
        assert httpx2.post(promote, json={"version": 9}, headers=ADMIN).status_code == 409
        known = httpx2.get(f"{url}/admin/models/film", headers=ADMIN).json()
        assert [entry["version"] for entry in known["known"]] == [1, 2]
        assert known["aliases"] == {"champion": 1}
        assert httpx2.post(f"{url}/admin/models/film/rollback", json={}, headers=ADMIN).status_code == 409
    assert registry.find(Reference("film", alias="champion")).number == 1


def test_a_version_that_does_not_fit_is_refused(registry, tmp_path):
    size = (registry.folder("film:1") / "model.safetensors").stat().st_size / 1e6
    with running(serve(tmp_path, memory_limit_mb=2.1 * size)) as url:
        registry.promote("film:2")
        wait_for(lambda: httpx2.get(f"{url}/models").json()["models"][0]["failed"] == {"champion": "2"})
        assert served_version(url) == "1"
