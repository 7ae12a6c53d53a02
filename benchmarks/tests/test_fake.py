"""The pipeline on a CUDA device without a GPU: where its tensors are, where it waits, and how much it launches."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorDeviceMismatchError

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.fake import CUDA, FakeCuda
from benchmarks.gpu.launches import EIGHT, LONE, MIXES, Edit, build, computed_flop, count_stages, count_step, report
from benchmarks.gpu.model import SIZES, published_size
from serve_app.images.geometry import Size
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.footprint import PartSize, Weights
from serve_app.models.memory import estimate
from serve_app.settings import AppSettings, ModelSettings

Published = tuple[FakeCuda, StepwiseQwenImageEditPipeline]

MOST_FOR_EIGHT = 1.15
"""The launches of eight different rows over those of one."""


@pytest.fixture(scope="module")
def published() -> Published:
    """Return the device and the published model."""
    cuda = FakeCuda()
    with cuda.counting():
        pipeline = build(cuda, SIZES["full"])
    return cuda, pipeline


@pytest.fixture(scope="module")
def stages():
    """Return the counts of each stage of one guided edit, of the miniature model."""
    cuda = FakeCuda()
    with cuda.counting():
        pipeline = build(cuda, SIZES["tiny"])
    return count_stages(cuda, pipeline, SIZES["tiny"])


def test_eight_rows_of_eight_shapes_and_texts_launch_hardly_more_than_one(published: Published):
    one, eight = (count_step(*published, edits)[0] for edits in (LONE, EIGHT))
    assert one.operations["scaled_dot_product_attention"] == eight.operations["varlen_attn"] == 60
    assert eight.launches <= MOST_FOR_EIGHT * one.launches, eight.operations - one.operations


def test_a_packed_step_costs_what_its_rows_cost(published: Published):
    rows = [Edit(Size(512, 512), 370, 350), Edit(Size(1456, 720), 1460), Edit(Size(128, 256), 60, 41), *LONE]
    counts, states = count_step(*published, rows)
    assert counts.flop == pytest.approx(computed_flop(SIZES["full"], states), rel=0.001)


@pytest.mark.parametrize("tiling", [False, True])
def test_the_work_of_an_edit_takes_the_memory_that_is_estimated(tiling: bool):
    """Of the published widths; the number of layers makes no difference."""
    cuda, size = FakeCuda(), published_size(depth=1 / 30)
    with cuda.counting():
        pipeline = build(cuda, size)
    pipeline.vae.enable_tiling() if tiling else pipeline.vae.disable_tiling()
    held = {stage: counts.peak_bytes for stage, counts in count_stages(cuda, pipeline, size).items()}
    settings = AppSettings(model=ModelSettings(vae_tiling=tiling))
    estimated = estimate(settings, Weights({"transformer": PartSize(1)}, 3072), 2).work_bytes
    assert 0.9 * estimated <= max(held.values()) <= estimated, held
    assert max(held, key=lambda stage: held[stage]) in (("step, new rows",) if tiling else ("preview", "decode"))


def test_the_memory_of_a_step_grows_with_its_tokens(published: Published):
    held = count_step(*published, MIXES["eight guided samples, eight shapes"])[0].peak_bytes
    size = Weights({"transformer": PartSize(1)}, 3072)
    settings = AppSettings.model_validate({"engine": {"batch_tokens": 16 * 8192}})
    assert 0.9 * estimate(settings, size, 2).work_bytes <= held <= estimate(settings, size, 2).work_bytes


@pytest.mark.parametrize(
    ("stage", "waits"),
    [
        # Whether the text has as many picture tokens as the picture.
        ("encode", {"import_utils.torch_compilable_check"}),
        ("start", set()),
        # Its end.
        ("step, new rows", {"pipeline.step"}),
        ("step, same rows", {"pipeline.step"}),
        # Whether the latents are finite, and the picture.
        ("preview", {"pipeline._decode_one_size"}),
        ("decode", {"pipeline._decode_one_size"}),
    ],
)
def test_a_stage_waits_for_the_device_only_where_it_must(stages, stage, waits):
    assert set(stages[stage].waits) == waits


def test_a_step_waits_once_and_copies_its_numbers_before_the_forward(stages):
    new, same = stages["step, new rows"], stages["step, same rows"]
    assert new.waits.total() == same.waits.total() == 1
    assert same.uploads == {"plan.numbers": 1}
    assert not new.late_uploads | same.late_uploads


def test_the_report_has_each_mix_and_each_stage(stages):
    text = "\n".join(report(SIZES["tiny"]))
    assert all(f"\n| {name} | " in text for name in [*MIXES, *stages])
    assert "| 2 × `pipeline._decode_one_size` |" in text


def test_the_fake_device_takes_no_other_option(capsys):
    with pytest.raises(SystemExit):
        main(["--fake", "--model", "half"])
    assert "takes no other option" in capsys.readouterr().err


class TestTheFakeDevice:
    def test_it_refuses_an_operation_between_cpu_and_cuda(self):
        with FakeCuda().counting(), pytest.raises(FakeTensorDeviceMismatchError):
            torch.ones(3) + torch.ones(3, device=CUDA)

    def test_tensors_on_the_cpu_are_real_and_not_counted(self):
        with FakeCuda().counting() as counts:
            assert (torch.ones(3) + 1).tolist() == [2.0, 2.0, 2.0]
        assert counts.launches == counts.waits.total() == counts.uploads.total() == 0

    def test_it_counts_operations_but_no_views(self):
        with FakeCuda().counting() as counts:
            grid = torch.ones(4, 6, device=CUDA)
            (grid.view(6, 4).t()[1:].unsqueeze(0) * 2).sum()
        assert counts.operations == {"aten.ones": 1, "aten.mul": 1, "aten.sum": 1}

    def test_it_counts_the_flop_of_products_and_of_attention(self):
        cuda = FakeCuda()
        with cuda.counting() as counts:
            torch.ones(2, 3, device=CUDA) @ torch.ones(3, 5, device=CUDA)
        assert counts.flop == 2 * 2 * 3 * 5
        with cuda.counting() as counts:
            query = torch.ones(1, 4, 10, 8, device=CUDA)
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert counts.flop == 4 * 4 * 8 * 10**2
        with cuda.counting() as counts:
            query = torch.ones(10, 4, 8, device=CUDA)
            starts = torch.tensor([0, 3, 10], dtype=torch.int32, device=CUDA)
            cuda.varlen_attn(query, query, query, starts, starts, 7, 7)
        assert counts.flop == 4 * 4 * 8 * (3**2 + 7**2)

    def test_it_counts_where_a_program_waits_and_knows_whole_numbers(self):
        with FakeCuda().counting() as counts:
            lengths = torch.tensor([3, 4], device=CUDA).cumsum(0)
            assert lengths.tolist() == [3, 7]
            assert lengths[1].item() == 7
            assert lengths.nonzero().shape == (2, 1)
            assert torch.full((2,), 0.5, device=CUDA).isfinite().all()
            assert torch.ones(2, device=CUDA).cpu().numpy().shape == (2,)
            torch.cuda.synchronize()
        here = "test_fake.test_it_counts_where_a_program_waits_and_knows_whole_numbers"
        assert counts.waits == {here: 6}

    def test_a_number_that_is_not_known_is_refused(self):
        with FakeCuda().counting(), pytest.raises(DataDependentOutputException):
            torch.rand(1, device=CUDA).item()

    def test_a_copy_behind_a_product_is_late(self):
        with FakeCuda().counting() as counts:
            torch.ones(2).to(CUDA)
            torch.ones(2, 2, device=CUDA) @ torch.ones(2, 2, device=CUDA)
            torch.from_numpy(np.ones(2)).to(CUDA)
        assert (counts.uploads.total(), counts.late_uploads.total()) == (2, 1)
