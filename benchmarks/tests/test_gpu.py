"""The GPU benchmark: its arithmetic, its model's size, and the whole script on a CPU with the miniature model."""

import re
from pathlib import Path

import diffusers
import pytest
import torch

from benchmarks.gpu.__main__ import _command, main
from benchmarks.gpu.floor import TransformerCost, edit_floor_s, known_peak_tflops
from benchmarks.gpu.measure import Bench
from benchmarks.gpu.model import SIZES, build_pipeline, build_text_encoder, build_transformer, build_vae, on_device
from benchmarks.gpu.prompts import SENTENCES
from benchmarks.gpu.report import Rows, Table, update
from benchmarks.gpu.sections import SECTIONS, Section
from training.parts import build_tokenizer

TINY = ["--device", "cpu", "--model", "tiny", "--repeats", "1", "--batches", "1,2", "--max-samples", "2"]
H100_TFLOPS = 989.0
TEXT_TOKENS = 250
"""Of the text in the table of figures below, which was counted elsewhere."""


def image_tokens(*sides: int) -> int:
    return sum(side**2 for side in sides) // 256


@pytest.fixture(autouse=True)
def _diffusers_speaks_as_before():
    before = diffusers.logging.get_verbosity()
    yield
    diffusers.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("sides", "tflop", "guided_50_s", "plain_8_s", "plain_4_s"),
    [
        ((1024, 1024), 167, 16.9, 1.35, 0.68),
        ((512, 1024), 94, 9.5, 0.76, 0.38),
        ((512, 512), 35, 3.6, 0.28, 0.14),
    ],
)
def test_the_floor_is_the_one_that_was_counted(sides, tflop, guided_50_s, plain_8_s, plain_4_s):
    flop = TransformerCost().forward_flop(image_tokens(*sides), TEXT_TOKENS)

    def seconds(steps: int, guided: bool) -> float:
        return edit_floor_s(flop, steps=steps, guided=guided, peak_tflops=H100_TFLOPS)

    assert flop / 1e12 == pytest.approx(tflop, abs=0.5)
    assert seconds(50, guided=True) == pytest.approx(guided_50_s, abs=0.05)
    assert seconds(8, guided=False) == pytest.approx(plain_8_s, abs=0.005)
    assert seconds(4, guided=False) == pytest.approx(plain_4_s, abs=0.005)


def test_a_token_and_a_pair_of_tokens_cost_what_was_counted():
    one, two = (TransformerCost().forward_flop(tokens, 0) for tokens in (1, 2))
    assert (two - 2 * one) / 2 == 737280
    assert one - 737280 == pytest.approx(13.59e9, rel=1e-3)


def test_a_batch_costs_what_its_rows_cost_and_padding_nothing():
    cost = TransformerCost()
    rows = [cost.forward_flop(8192, text) for text in (1369, 1400)]
    assert cost.batch_flop(8192, [1369, 1400]) == sum(rows)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312)],
)
def test_the_peak_is_known_by_the_devices_name(name, tflops):
    assert known_peak_tflops(name) == tflops


def test_no_peak_is_made_up_for_an_unknown_device():
    assert known_peak_tflops("x86_64 CPU") is None


def test_the_full_model_has_the_published_size():
    tokenizer = build_tokenizer(SENTENCES)
    with on_device(torch.device("meta"), torch.bfloat16):
        parts = [
            build_transformer(SIZES["full"]),
            build_text_encoder(SIZES["full"], tokenizer),
            build_vae(SIZES["full"]),
        ]
    gigabytes = [sum(p.numel() * p.element_size() for p in part.parameters()) / 1e9 for part in parts]
    # The sizes of the published files, in GB.
    assert gigabytes == pytest.approx([40.9, 16.6, 0.25], rel=0.02)
    assert sum(p.numel() for p in parts[0].parameters()) == pytest.approx(20.43e9, rel=1e-3)


def test_a_native_picture_is_1369_tokens_of_text():
    pipeline = build_pipeline(SIZES["tiny"], torch.device("meta"), torch.bfloat16)
    patches = pipeline.processor.image_processor.get_number_of_image_patches(1024, 1024, {})
    assert patches // pipeline.processor.image_processor.merge_size**2 == 1369


def test_weights_are_made_in_the_given_dtype_and_only_they():
    with on_device(torch.device("cpu"), torch.bfloat16):
        vae = build_vae(SIZES["tiny"])
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_whole_script_runs_and_fills_every_section(tmp_path: Path):
    out = tmp_path / "GPU.md"
    # The compiler takes minutes on a CPU. Without it, compiled blocks run as they are.
    with torch._dynamo.config.patch(disable=True):
        status = main([*TINY, "--out", str(out)])
    text = out.read_text()
    assert status == 0, text
    assert "Cut by the budget" not in text
    assert str(tmp_path) not in text
    for name, section in SECTIONS.items():
        [body] = re.findall(rf"<!-- {name} -->(.*)<!-- /{name} -->", text, re.DOTALL)
        rows = [line for line in body.splitlines() if line.startswith("|")]
        assert len(rows) > 2, name
        assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {len(section.columns)}, name
    # Ours and the stock pipeline made the same pictures from the same weights and seeds.
    stock = re.search(r"<!-- stock -->(.*)<!-- /stock -->", text, re.DOTALL)
    assert stock
    psnrs_db = [float(row.rsplit("|", 2)[1]) for row in stock[1].splitlines() if "| yes |" in row or "| no |" in row]
    assert min(psnrs_db) > 45


def test_a_run_replaces_its_own_sections_and_keeps_the_others(tmp_path: Path):
    out = tmp_path / "GPU.md"
    order = ["one", "two", "three"]
    for name in ("three", "one", "two"):
        update(out, name, Table(name, f"Old {name}", ["a"], rows=[["1"]]).markdown("then"), order)
    update(out, "two", Table("two", "New two", ["a"], rows=[["2"]]).markdown("now"), order)
    titles = re.findall(r"^## (.*)$", out.read_text(), re.MULTILINE)
    assert titles == ["Old one", "New two", "Old three"]


def test_a_spent_budget_leaves_a_table_that_says_so(tmp_path: Path):
    out = tmp_path / "GPU.md"
    assert main([*TINY, "--only", "knee", "--minutes", "0", f"--out={out}"]) == 0
    assert "Cut by the budget: rows are missing." in out.read_text()


def test_a_failing_section_says_why_and_the_next_one_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(bench: Bench) -> Rows:
        yield ["1"]
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(SECTIONS, "steps", Section("Broken", ["a"], [], broken))
    out = tmp_path / "GPU.md"
    assert main([*TINY, "--only", "steps,knee", "--out", str(out)]) == 1
    text = out.read_text()
    assert "| 1 |\n\nEnded by an error: RuntimeError: no such kernel" in text
    assert "knee: " in text


@pytest.mark.parametrize("out", [["--out", "x/y.md"], ["--out=x/y.md"]])
def test_the_command_is_reported_without_paths_of_this_machine(out):
    assert _command(["--only", "knee", *out, "--minutes", "2"]) == ("python -m benchmarks.gpu --only knee --minutes 2")


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "steps,sizes"])
    assert "no section 'sizes'" in capsys.readouterr().err
