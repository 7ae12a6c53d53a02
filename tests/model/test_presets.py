"""Presets: their noise schedules are those of diffusers' scheduler with the adapter's published configuration."""

import math
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from serve_app.engine.sampling import NoiseSchedule, Sampling
from serve_app.models.families import StepwiseQwenImageEditPlusPipeline
from tests.model.edits import BOUND, edit, request
from tests.random_model import build_random_plus_model
from tests.scenes import difference

# As the model cards of Qwen-Image-Edit-Lightning have it.
LIGHTNING: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": math.log(3),
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": math.log(3),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


@pytest.fixture(scope="module")
def model() -> StepwiseQwenImageEditPlusPipeline:
    return build_random_plus_model()


@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize("sigmas", [None, "own"])
def test_the_noise_levels_are_those_of_the_published_scheduler(model, steps, sigmas):
    levels = np.linspace(1.0, 1 / steps, steps) if sigmas is None else np.geomspace(1.0, 0.1, steps)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(LIGHTNING)
    scheduler.set_timesteps(sigmas=levels, mu=math.log(3))
    own = NoiseSchedule(3.0, None if sigmas is None else tuple(levels))
    found, timesteps = model._schedule(Sampling(steps, 1.0, (), own), tokens=999)
    assert found == pytest.approx(scheduler.sigmas.tolist())
    assert timesteps == pytest.approx(scheduler.timesteps.tolist())


def test_an_edit_by_a_preset_equals_one_with_the_published_scheduler(model):
    parts = {**model.components, "scheduler": FlowMatchEulerDiscreteScheduler.from_config(LIGHTNING)}
    fast, slow = request(preset="fast", num_inference_steps=None), request(num_inference_steps=4, guidance_scale=1.0)
    expected = edit(StepwiseQwenImageEditPlusPipeline(**parts, native_area=256 * 256, text_area=112 * 112), [slow])[0]
    assert difference(edit(model, [fast])[0], expected) <= BOUND
    assert difference(edit(model, [slow])[0], expected) > BOUND
