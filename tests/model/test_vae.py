import copy

import pytest
import torch

from serve_app.models.patches import skip_absent_frames
from tests.random_model import _vae


@pytest.mark.parametrize(("what", "shape"), [("a picture", (2, 3, 1, 64, 48)), ("a video", (1, 3, 5, 32, 32))])
def test_skipping_absent_frames_changes_nothing_but_the_time(what, shape):
    torch.manual_seed(0)
    stock = _vae()
    ours = copy.deepcopy(stock)
    skip_absent_frames(ours)
    frames = torch.rand(*shape) * 2 - 1
    with torch.no_grad():
        latents = stock.encode(frames).latent_dist.mode()
        torch.testing.assert_close(ours.encode(frames).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents).sample, stock.decode(latents).sample, rtol=1e-4, atol=1e-5)


def test_every_causal_convolution_of_a_pipeline_is_replaced(random_model):
    names = {type(module).__name__ for module in random_model.vae.modules()}
    assert "_FrameConv" in names
    assert "QwenImageCausalConv3d" not in names
