"""Names that live in several places: metrics and settings in code, manuals, dashboards, alerts."""

import json
import pathlib
import re

import pytest
import yaml

from deploy_paths import BASE, GPU, ROOT

SUFFIXES = ("_bucket", "_sum", "_count")
# Series that Prometheus makes itself.
FOREIGN = {"up"}


def read(path):
    return (ROOT / path).read_text()


@pytest.fixture(scope="module")
def metrics():
    """name -> type, from the table that ServerMetrics registers from."""
    rows = re.findall(r'^\s*\{"(\w+)", k([CGH]),', read("server/metric_table.cc"), re.MULTILINE)
    assert len(rows) > 20, "the table of metrics was not understood"
    return {name: {"C": "counter", "G": "gauge", "H": "histogram"}[kind] for name, kind in rows}


@pytest.fixture(scope="module")
def settings():
    """key -> default, from the table of settings."""
    rows = re.findall(r'^\s*\{"([a-z0-9_.]+)", Kind::k\w+, "([^"]*)"', read("server/settings.cc"),
                      re.MULTILINE)
    assert len(rows) > 30, "the table of settings was not understood"
    return dict(rows)


def used_names(expression):
    """Metric names of a PromQL expression."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\{[^}]*\}|\b(by|without)\s*\([^)]*\)", " ", text)
    functions = set(re.findall(r"\b([a-z_]+)\s*\(", text))
    words = set(re.findall(r"\b[a-z][a-z0-9_]{1,}\b", re.sub(r"\[[^\]]*\]", " ", text)))
    return words - functions - {"and", "or", "unless", "by", "without", "sum", "max", "le"}


def check_names(expressions, metrics):
    for expression in expressions:
        names = used_names(expression)
        assert names, f"no metric found in {expression}"
        for name in names - FOREIGN:
            stem = next((name[: -len(s)] for s in SUFFIXES if name.endswith(s)), name)
            if stem != name and metrics.get(stem) == "histogram":
                continue
            assert name in metrics, f"{name} is not registered in server/metric_table.cc"
            assert metrics[name] != "histogram", f"{name} is a histogram, used without a suffix"


def dashboard_expressions():
    board = json.loads(read("deploy/grafana/morphserve.json"))
    queries = [t["expr"] for panel in board["panels"] for t in panel.get("targets", [])]
    variables = [re.search(r"\((.*),", v["query"]["query"]).group(1)
                 for v in board["templating"]["list"] if v["type"] == "query"]
    return queries, variables


def test_every_metric_of_the_dashboard_exists(metrics):
    queries, variables = dashboard_expressions()
    assert len(queries) > 20
    check_names(queries + variables, metrics)


def test_every_metric_of_the_alerts_exists(metrics):
    groups = yaml.safe_load(read("deploy/prometheus/alerts.yaml"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    check_names([rule["expr"] for rule in rules], metrics)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]


def test_every_alert_is_tested_to_fire():
    groups = yaml.safe_load(read("deploy/prometheus/alerts.yaml"))["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"]}
    tests = yaml.safe_load(read("deploy/prometheus/alerts_test.yaml"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {c["alertname"] for c in cases if c.get("exp_alerts")} == names
    assert {c["alertname"] for c in cases if not c.get("exp_alerts")} == names


@pytest.mark.parametrize("expression", ["rate(morphserve_no_such_total[5m])",
                                        "morphserve_step_duration_seconds"])
def test_a_wrong_metric_is_found(metrics, expression):
    with pytest.raises(AssertionError):
        check_names([expression], metrics)


def test_counters_end_in_total_and_nothing_else_does(metrics):
    for name, kind in metrics.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.startswith(("morphserve_", "process_")), name


def test_metrics_in_code_and_in_the_manual_are_the_same(metrics):
    manual = set(re.findall(r"^\| `((?:morphserve|process)_\w+)`", read("server/README.md"),
                            re.MULTILINE))
    assert manual == set(metrics), (
        f"only in server/README.md: {sorted(manual - set(metrics))}; "
        f"only in code: {sorted(set(metrics) - manual)}")


def test_every_setting_is_in_the_operators_manual(settings):
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| `?([^`|]*?)`? \|", read("deploy/README.md"),
                      re.MULTILINE)
    manual = dict(rows)
    assert set(manual) == set(settings), (
        f"only in deploy/README.md: {sorted(set(manual) - set(settings))}; "
        f"only in code: {sorted(set(settings) - set(manual))}")
    wrong = {key: (manual[key], default) for key, default in settings.items()
             if manual[key] != (default or "unset")}
    assert not wrong, f"defaults differ (manual, code): {wrong}"


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def config_files():
    return [*sorted((ROOT / "deploy" / "config").glob("*.yaml")), BASE / "config.yaml",
            GPU / "config.yaml"]


@pytest.mark.parametrize("path", config_files(), ids=lambda p: pathlib.Path(p).name)
def test_sample_configurations_use_known_keys(path, settings):
    tree = yaml.safe_load(path.read_text())
    assert tree, "an empty sample"
    unknown = set(flatten(tree)) - set(settings)
    assert not unknown, f"{path.name} sets {sorted(unknown)}"


def test_keys_named_in_the_scripts_exist(settings):
    text = "".join(read(f"deploy/{n}") for n in ("quickstart.sh",)) + read("Dockerfile")
    named = set(re.findall(r'--set[ =]"?([a-z]+\.[a-z0-9_]+)=', text))
    assert named and named <= set(settings), sorted(named - set(settings))
