"""The files for Prometheus and Grafana name metrics that exist, and leave none out without a reason."""

import json
import re

import pytest
import yaml

from flaxbert.config import BatchingConfig, LimitsConfig
from flaxbert.serve.metrics import Metrics
from flaxbert.serve.service import Service
from tests.helpers import ROOT

FOLDER = ROOT / "docs" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]

NOT_SHOWN = {"process_virtual_memory_bytes": "address space that is only reserved says nothing of what is used"}
"""Metrics that the dashboard leaves out, each with its reason."""

WORDS = {"and", "or", "unless", "sum", "rate", "increase", "changes", "histogram_quantile", "time", "max", "min", "avg"}
"""What PromQL itself means by words of the expressions."""

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "unknown": ("",)}


@pytest.fixture(scope="module")
def exposed():
    """Names of samples that a server exposes, each with that of its metric."""
    service = Service(LimitsConfig(), BatchingConfig(), Metrics())
    found = {
        f"{metric.name}{suffix}": metric.name
        for metric in service.metrics.registry.collect()
        for suffix in SUFFIXES[metric.type]
    }
    service.metrics.expose()
    service._workers.shutdown()
    return found


def metrics_of(expression):
    """Names of an expression that are neither labels, values nor words of PromQL."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"(?<![\w$.])[a-zA-Z_:][\w:]*", bare)) - WORDS


def test_names_are_found_in_expressions():
    expression = 'sum by (job, le) (rate(a_bucket{x="sum y"}[5m])) / on (job) b_total > 0.5 and time() - c'
    assert metrics_of(expression) == {"a_bucket", "b_total", "c"}


@pytest.mark.parametrize("expression", [rule["expr"] for rule in RULES] + EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_exposed(exposed, expression):
    named = metrics_of(expression)
    assert named
    assert named - set(exposed) - {"up"} == set()  # which Prometheus itself knows of everything that it reads


def test_every_metric_is_on_the_dashboard_or_has_a_reason(exposed):
    shown = {exposed[name] for expression in EXPRESSIONS for name in metrics_of(expression)}
    assert set(exposed.values()) - shown == set(NOT_SHOWN)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rules_have_the_form_that_prometheus_reads(rule):
    assert set(rule) <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
    assert re.fullmatch(r"(\d+[smhd])+", rule.get("for", "1m"))
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    balanced(rule["expr"])
    for text in rule["annotations"].values():
        assert text.count("{{") == text.count("}}")
        for inside in re.findall(r"\{\{(.*?)\}\}", text):
            assert re.fullmatch(r" \$(value( \| humanize\w*)?|labels\.\w+) ", inside)


def balanced(expression):
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert expression.count('"') % 2 == 0


def test_rules_lie_in_one_group_and_have_names_of_their_own():
    document = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
    assert set(document) == {"groups"}
    assert [set(group) for group in document["groups"]] == [{"name", "rules"}]
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) > 10


def test_the_dashboard_can_be_imported():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert "model" in variables
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    for expression in EXPRESSIONS:
        balanced(expression)
        used = set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"}
        assert used <= set(variables)


def test_panels_do_not_lie_on_each_other():
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])}
        assert not own & cells
        assert all(across < 24 for across, _ in own)
        cells |= own


@pytest.mark.parametrize("variable", [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"])
def test_variables_ask_for_metrics_that_exist(exposed, variable):
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert asked is not None
    assert asked[1] in exposed
    assert variable["query"]["query"] == variable["definition"]
