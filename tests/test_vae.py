import copy

import torch

from serve_app.tiny import _vae
from serve_app.vae import skip_absent_frames


def test_skipping_absent_frames_changes_nothing_but_the_time():
    torch.manual_seed(0)
    stock = _vae()
    ours = copy.deepcopy(stock)
    skip_absent_frames(ours)
    pictures = torch.rand(2, 3, 1, 64, 48) * 2 - 1
    with torch.no_grad():
        latents = stock.encode(pictures).latent_dist.mode()
        torch.testing.assert_close(ours.encode(pictures).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents).sample, stock.decode(latents).sample, rtol=1e-4, atol=1e-5)


def test_a_video_goes_the_way_it_always_went():
    torch.manual_seed(0)
    stock = _vae()
    ours = copy.deepcopy(stock)
    skip_absent_frames(ours)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = stock.encode(video).latent_dist.mode()
        torch.testing.assert_close(ours.encode(video).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents).sample, stock.decode(latents).sample, rtol=1e-4, atol=1e-5)


def test_every_causal_convolution_of_a_pipeline_is_replaced(tiny):
    names = {type(module).__name__ for module in tiny.vae.modules()}
    assert "_FrameConv" in names
    assert "QwenImageCausalConv3d" not in names
