"""The calculator against sums done by hand."""

import pytest

from benchmarks.fleet import capacity
from benchmarks.fleet.capacity import Rate, Traffic, plan
from benchmarks.fleet.page import PAGE
from serve_app.images.geometry import Size

MEGAPIXEL = Size(1024, 1024)


def traffic(**changes) -> Traffic:
    return Traffic(
        **{
            "requests_per_s": 2.0, "pictures": 1, "variants": 1, "steps": 50,
            "output": MEGAPIXEL, "reference": MEGAPIXEL, **changes,
        }
    )  # fmt: skip


# 0.5 s for a guided step at one megapixel: 2 rows of 8192 tokens.
HALF = Rate(0.5 / 16384)


def test_gpus_are_the_busy_ones_over_the_share_they_may_be_busy():
    found = plan(traffic(), HALF, 0.5)
    assert found.edit_s == pytest.approx(25)
    assert found.busy == pytest.approx(50)
    assert found.gpus == 100


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"pictures": 3, "variants": 4}, 12),
        ({"steps": 25}, 1 / 2),
        ({"guided": False}, 1 / 2),
        # The reference stays: of two megapixels, a quarter of one is left, and one.
        ({"output": Size(512, 512)}, 5 / 8),
        ({"requests_per_s": 20.0}, 10),
    ],
)
def test_work_grows_with_samples_steps_rows_and_pixels(changes, factor):
    assert plan(traffic(**changes), HALF, 0.5).busy == pytest.approx(50 * factor)


def test_encoding_and_decoding_count_for_each_output():
    assert plan(traffic(variants=4), Rate(0.0, overhead_s=0.25), 0.5).edit_s == pytest.approx(1.0)


def test_ingress_and_network_follow_the_pictures_and_not_the_steps():
    found = plan(traffic(requests_per_s=100), HALF, 0.5)
    # 100 PNGs a second at 0.08 s, half busy; 2.4 MB of base64 each; 3 bytes a pixel there and back.
    assert found.ingress == 16
    assert found.answer_bytes_per_s == pytest.approx(100 * 2.4 * 1024**2)
    assert found.handle_bytes_per_s == pytest.approx(2 * 100 * 3 * 1024**2)
    assert found.proxies == 4
    assert plan(traffic(requests_per_s=100, steps=1), HALF, 0.5).ingress == 16


def test_the_command_prints_the_plan(capsys):
    capacity.main(["--requests-per-second", "2", "--seconds-per-token", str(0.5 / 16384), "--busy", "0.5"])
    lines = dict(line.split("   ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["one request on one GPU"].strip() == "25.00 s"
    assert lines["GPUs"].split()[0] == "100"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 8, "guided": False},
        {"steps": 8, "guided": False, "output": Size(512, 512), "reference": Size(512, 512)},
        {"requests_per_s": 0.1, "pictures": 16, "variants": 4},
    ],
)
def test_the_page_says_what_the_calculator_says(changes):
    found = plan(traffic(**changes), Rate(3.94e-05), 0.6)
    assert PAGE.read_text().count(f"| {found.edit_s:.2f} s | {found.gpus} |") == 1


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        capacity.main(["--requests-per-second", "2", "--seconds-per-token", "1e-5", "--size", "big"])
    assert "--size" in capsys.readouterr().err
