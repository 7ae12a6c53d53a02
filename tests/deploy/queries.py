"""The PromQL of the alerts and of the dashboard, parsed: which metrics and labels it names."""

import json
import re
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
import yaml

from tests.paths import ROOT

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "image-edits.json"

# Ray's and Serve's metrics that are used here; tests/cluster/test_metrics.py finds them at a real /metrics.
RAY_METRICS = frozenset(
    {
        "ray_serve_deployment_replica_healthy",
        "ray_serve_num_http_requests_total",
        "ray_serve_http_request_latency_ms_bucket",
        "ray_serve_replica_processing_queries",
        "ray_node_gpus_utilization",
        "ray_node_gram_used",
        "ray_node_gram_available",
    }
)
# Exported only if there is a GPU.
GPU_METRICS = frozenset(
    {
        "ray_image_edits_gpu_memory_bytes",
        "ray_node_gpus_utilization",
        "ray_node_gram_used",
        "ray_node_gram_available",
    }
)
# Prometheus makes it itself, for each scrape.
PROMETHEUS_METRICS = frozenset({"up"})


@dataclass(frozen=True)
class Query:
    """One expression; `where` names its alert or panel."""

    where: str
    text: str

    def parsed(self) -> promql.Expr:
        """Parse it, with Grafana's variables substituted as Grafana does. Raise ValueError if it is no PromQL."""
        text = self.text.replace("$__rate_interval", "5m")
        return promql.parse(re.sub(r"\$\w+", "x", text))

    def selectors(self) -> list[promql.VectorSelector]:
        found: list[promql.VectorSelector] = []

        def visit(expression: promql.Expr) -> None:
            if isinstance(expression, promql.VectorSelector):
                found.append(expression)

        promql.walk(self.parsed(), visit)
        return found

    @property
    def kept_labels(self) -> set[str]:
        """Return the labels that its outermost aggregations keep."""
        return _kept(self.parsed())

    @property
    def metrics(self) -> set[str]:
        return {str(selector.name) for selector in self.selectors()}


def _kept(expression: promql.Expr) -> set[str]:
    if isinstance(expression, promql.AggregateExpr):
        return set(expression.modifier.labels) if expression.modifier else set()
    if isinstance(expression, promql.BinaryExpr):
        return _kept(expression.lhs)
    if isinstance(expression, promql.ParenExpr):
        return _kept(expression.expr)
    if isinstance(expression, promql.Call) and expression.func.name == "histogram_quantile":
        return _kept(expression.args[1]) - {"le"}
    raise ValueError(f"an aggregation is missing: {expression}")


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, without the rows that are only headings."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Return all queries, first of the alerts, then of the dashboard."""
    found = [Query(rule["alert"], rule["expr"]) for rule in alert_rules()]
    return found + [Query(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
