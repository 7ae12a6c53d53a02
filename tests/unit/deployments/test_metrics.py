"""The page of metrics against the code, and the classes of shapes.

`python -m tests.unit.deployments.test_metrics` writes the table into docs/operate/metrics.md.
"""

import re

import pytest

from serve_app.deployments.metrics import METRICS, shape_labels
from serve_app.images import Size
from tests.paths import ROOT

PAGE = ROOT / "docs" / "operate" / "metrics.md"
_TABLE = re.compile(r"(?<=<!-- metrics -->\n).*?(?=<!-- /metrics -->)", re.DOTALL)


def metrics_table() -> str:
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        names = ", ".join(f"`{name}`" for name in metric.exported)
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| {names} | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_code_says():
    assert _TABLE.findall(PAGE.read_text()) == [metrics_table()], "run `python -m tests.unit.deployments.test_metrics`"


def test_names_on_the_page_exist():
    known = {name for metric in METRICS for name in metric.exported}
    assert set(re.findall(r"ray_image_edits_\w+", PAGE.read_text())) <= known


@pytest.mark.parametrize(
    ("size", "area", "aspect"),
    [
        (Size(1024, 1024), "1", "square"),
        (Size(1216, 864), "1", "landscape"),
        (Size(864, 1216), "1", "portrait"),
        (Size(1024, 960), "1", "square"),
        (Size(1448, 1448), "2", "square"),
        (Size(512, 512), "1/4", "square"),
        (Size(16, 16), "1/16", "square"),
        (Size(9999, 9999), "4", "square"),
    ],
)
def test_shapes_fall_into_a_few_classes(size: Size, area: str, aspect: str):
    assert shape_labels(size, 1024 * 1024) == {"area": area, "aspect": aspect}


if __name__ == "__main__":
    PAGE.write_text(_TABLE.sub(lambda _: metrics_table(), PAGE.read_text()))
