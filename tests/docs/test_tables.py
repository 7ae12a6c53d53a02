"""The tables of the pages against the code that they are made of."""

import re

import pytest

from serve_app.deployments.metrics import METRICS
from tests.docs.pages import between
from tests.docs.tables import TABLES, error_classes


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_the_code_says(name: str) -> None:
    table = TABLES[name]
    assert between(name).findall(table.page.read_text()) == [table.make()], "run `make docs-tables`"


def test_every_error_code_is_explained() -> None:
    codes = {(cls.code, cls.when) for cls in error_classes()}
    assert len({when for _, when in codes}) == len(codes) == len({code for code, _ in codes})


def test_names_of_metrics_on_the_page_exist() -> None:
    known = {name for metric in METRICS for name in metric.exported}
    assert set(re.findall(r"ray_image_edits_\w+", TABLES["metrics"].page.read_text())) <= known
