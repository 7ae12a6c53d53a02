"""deploy/prometheus and deploy/grafana, offline: syntax, and that they name only metrics and labels that exist.

`python -m tests.deploy.test_metrics_files` writes deploy/prometheus/prometheusrule.yaml from alerts.yml.
"""

import json
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from serve_app.deployments.metrics import METRICS
from tests.deploy.queries import (
    ALERTS,
    DASHBOARD,
    PROMETHEUS_METRICS,
    RAY_METRICS,
    Query,
    alert_rules,
    panels,
    queries,
)
from tests.paths import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_HEADER = """\
# Made from alerts.yml by `python -m tests.deploy.test_metrics_files`: the same rules, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: image-edits
  labels:
    release: prometheus
spec:
"""
OURS = {name: metric for metric in METRICS for name in metric.exported}
SERVE_LABELS = {"application", "deployment", "replica", "model"}


def prometheus_rule() -> str:
    body = ALERTS.read_text().partition("\ngroups:\n")[2]
    return RULE_HEADER + "".join(f"  {line}".rstrip() + "\n" for line in ["groups:", *body.splitlines()])


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_a_query_parses_and_names_only_what_exists(query: Query):
    assert query.metrics
    assert query.metrics <= set(OURS) | RAY_METRICS | PROMETHEUS_METRICS


def test_the_list_of_rays_metrics_holds_what_is_used_and_no_more():
    used = {name for query in queries() for name in query.metrics}
    assert used - set(OURS) - PROMETHEUS_METRICS == RAY_METRICS


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_a_query_filters_our_metrics_by_labels_that_they_have(query: Query):
    for selector in query.selectors():
        metric = OURS.get(str(selector.name))
        if metric is not None:
            named = {matcher.name for matcher in selector.matchers.matchers}
            assert named <= SERVE_LABELS | set(metric.labels)


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_takes_the_files_and_sees_each_alert_fire(arguments: tuple[str, ...]):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; Debian has it in the package prometheus")
    checked = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_says_what_it_means_and_what_to_do():
    rules = alert_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_seen_to_fire_and_not_to_fire():
    names = {rule["alert"] for rule in alert_rules()}
    quiet, firing = (
        {case["alertname"]: case.get("exp_alerts") for case in test["alert_rule_test"]}
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    )
    assert set(quiet) == set(firing) == names
    assert not any(quiet.values())
    assert all(firing.values())


def test_the_operators_rules_are_the_same_rules():
    text = (PROMETHEUS / "prometheusrule.yaml").read_text()
    assert text == prometheus_rule(), "run `python -m tests.deploy.test_metrics_files`"
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(ALERTS.read_text())


def test_prometheus_and_the_operator_scrape_the_same_job():
    [job] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    monitor = yaml.safe_load((PROMETHEUS / "podmonitor.yaml").read_text())
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    relabelled = {rule["targetLabel"]: rule.get("replacement") for rule in endpoint["relabelings"]}
    assert job["job_name"] == relabelled["job"]
    assert job["metric_relabel_configs"] == endpoint["metricRelabelings"]
    assert [rule for rule in alert_rules() if f'job="{job["job_name"]}"' in rule["expr"]]


# --- the dashboard ------------------------------------------------------------------------------------------------


def test_grafanas_own_types_read_the_dashboard_and_lose_nothing():
    # Without them, panels and queries of each kind are read as they are.
    register_default_plugins()
    content = json.loads(DASHBOARD.read_text())
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(content)))
    assert lost(content, read) == []


def lost(given: Any, read: Any, path: str = "") -> list[str]:
    """Return the paths at which the other lacks or differs from the one; the other may hold more, as defaults."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [found for key in given for found in lost(given[key], read.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [found for k, pair in enumerate(zip(given, read, strict=True)) for found in lost(*pair, f"{path}[{k}]")]
    return [] if given == read else [path]


def test_panels_do_not_overlap_and_have_their_own_ids():
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in everything)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_a_legend_names_labels_that_its_query_keeps():
    for panel in panels():
        for target in panel["targets"]:
            kept = Query(panel["title"], target["expr"]).kept_labels
            named = set(target["legendFormat"].replace("{{", "\0").split("\0")[1:])
            assert {name.split("}}")[0] for name in named} <= kept, panel["title"]


def test_variables_are_those_that_the_dashboard_defines():
    content = DASHBOARD.read_text()
    defined = {variable["name"] for variable in json.loads(content)["templating"]["list"]}
    assert defined == {"datasource", "application"}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            ours = any(name in OURS for name in Query(panel["title"], target["expr"]).metrics)
            assert ("$application" in target["expr"]) or not ours


if __name__ == "__main__":
    (PROMETHEUS / "prometheusrule.yaml").write_text(prometheus_rule())
