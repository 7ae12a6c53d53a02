"""How the samples of a request are made: by the request's own fields, by its preset, or by the model's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.request import EditParams, check_adapters, check_preset
from serve_app.settings import ModelSettings, PresetSettings, parse_adapters

AdapterScales = tuple[tuple[str, float], ...]
"""Adapters by name and strength."""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """A noise schedule; the fields are those of PresetSettings. None: as the checkpoint has it."""

    shift: float | None = None
    sigmas: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sample is made."""

    steps: int
    guidance: float
    adapters: AdapterScales = ()
    schedule: NoiseSchedule = NoiseSchedule()


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model offers its requests: defaults, adapters with their strengths, and presets."""

    steps: int
    guidance: float
    adapters: Mapping[str, float] = field(default_factory=dict)
    presets: Mapping[str, PresetSettings] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: ModelSettings, steps: int, guidance: float) -> "SamplingDefaults":
        """Return the defaults of a model whose own are `steps` and `guidance`."""
        scales = {name: adapter.scale for name, adapter in settings.adapters.items()}
        return cls(steps, guidance, scales, settings.presets)

    def choose(self, params: EditParams) -> Sampling:
        """Return how a request is made: by its own fields first, then by its preset.

        Raises InvalidInput for an adapter or a preset that the model does not have.
        """
        check_adapters(params.adapters, self.adapters)
        check_preset(params.preset, self.presets)
        preset = PresetSettings() if params.preset is None else self.presets[params.preset]
        steps = params.num_inference_steps or preset.steps or len(preset.sigmas or ()) or self.steps
        uses = params.adapters or parse_adapters(preset.adapter or "")
        scales = tuple((use.name, self.adapters[use.name] if use.scale is None else use.scale) for use in uses)
        # Sigmas are those of so many steps, and none others.
        sigmas = preset.sigmas if preset.sigmas is not None and len(preset.sigmas) == steps else None
        return Sampling(
            steps,
            params.guidance_scale or preset.guidance or self.guidance,
            scales,
            NoiseSchedule(preset.shift, sigmas),
        )
