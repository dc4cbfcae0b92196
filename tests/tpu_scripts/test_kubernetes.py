"""The manifests of servers: words that the command takes, routes that it has, ports, keys and volumes that belong together."""

import pytest
import yaml

from flaxbert.cli.main import parse_command
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from tests.helpers import ROOT

FOLDER = ROOT / "tpu_scripts" / "kubernetes"


def documents(name):
    with (FOLDER / name).open(encoding="utf-8") as file:
        return list(yaml.safe_load_all(file))


def containers():
    deployment = documents("serve.yaml")[0]
    runtime = documents("kserve.yaml")[1]
    return {
        "serve.yaml": deployment["spec"]["template"]["spec"]["containers"][0],
        "kserve.yaml": runtime["spec"]["containers"][0],
    }


@pytest.mark.parametrize("name", ["serve.yaml", "kserve.yaml"])
def test_the_command_takes_its_words_and_listens_where_it_is_asked(name):
    container = containers()[name]
    assert container["args"][0] == "serve"
    words = [word.replace("{{.Name}}", "film") for word in container["args"][1:]]
    _, options = parse_command("serve", words)
    assert options["host"] == "0.0.0.0"
    assert options["port"] == container["ports"][0]["containerPort"]
    assert parse_specs(options["models"])[0].name == "film"


@pytest.mark.parametrize("name", ["serve.yaml", "kserve.yaml"])
def test_probes_ask_routes_that_there_are(name, tmp_path):
    container = containers()[name]
    app = make_app(parse_specs((str(tmp_path),)))
    paths = set(app.openapi()["paths"])
    asked = [
        probe["httpGet"]["path"] for key, probe in container.items() if key.endswith("Probe") and "httpGet" in probe
    ]
    assert asked
    assert set(asked) <= paths
    assert "/health/live" in asked


def test_keys_registry_and_caches_are_mounted_where_the_command_looks():
    container = containers()["serve.yaml"]
    _, options = parse_command("serve", container["args"][1:])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in documents("serve.yaml")[0]["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for place in (options["access"].api_keys_file, options["access"].admin_keys_file):
        assert place.rsplit("/", 1)[0] in mounts
    for entry in container["env"]:
        if entry["value"].startswith("/"):
            assert any(entry["value"].startswith(mount) for mount in mounts), entry
    script = container["readinessProbe"]["exec"]["command"][2]
    compile(script, "probe", "exec")
    assert options["access"].api_keys_file in script
    assert f":{options['port']}/health" in script


def test_all_parts_select_the_same_pods():
    deployment, service, budget, scaler = documents("serve.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    _, options = parse_command("serve", deployment["spec"]["template"]["spec"]["containers"][0]["args"][1:])
    assert grace > options["rollout"].drain_seconds + options["limits"].deadline_seconds
