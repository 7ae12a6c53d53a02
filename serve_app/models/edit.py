"""The stages of Qwen-Image-Edit and Edit-Plus: texts and references run beside the output in every forward."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration

from serve_app.engine.sampling import AdapterScales
from serve_app.engine.scheduler import Condition, StepCost
from serve_app.images.geometry import Geometry
from serve_app.images.pixels import lay_on_white
from serve_app.models.adapters import share_out
from serve_app.models.packed import Layout, RowShape, VarlenAttention, pack, step_cost
from serve_app.models.patches import skip_absent_frames
from serve_app.models.pipeline import NATIVE_AREA, Prepared, SampleState, StepwisePipeline, looks_at
from serve_app.models.plan import Plan
from serve_app.models.text_encoder import Embed, embed_for_qwen2_5
from serve_app.models.vision import merge_windows
from serve_app.request import Picture


class EditPipeline(StepwisePipeline):
    """The stages that both families share, for a class that inherits them and then a pipeline of diffusers.

    model_index.json stores `native_area`, `grid_positions` and `text_area` beside the components. `grid_positions`:
    whether the text encoder places a picture's tokens on a grid. The published text encoder was trained so, that of
    `builtin:tiny` not. `text_area`: pixels of a picture for the text encoder; None: those that the transformer reads.
    """

    weights: ClassVar[dict[str, Any]] = {
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
        "transformer": QwenImageTransformer2DModel,
        "vae": AutoencoderKLQwenImage,
    }
    default_text_area: ClassVar[int | None] = None

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        processor: Any,
        transformer: Any,
        native_area: int = NATIVE_AREA,
        grid_positions: bool = True,
        text_area: int | None = None,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, processor, transformer)
        text_area = text_area or self.default_text_area
        self.register_to_config(native_area=native_area, grid_positions=grid_positions, text_area=text_area)
        merge_windows(text_encoder)
        skip_absent_frames(vae)
        pack(transformer)
        # Diffusers has a constant 64, which is right for the published tokenizer only.
        self.prompt_template_encode_start_idx = len(tokenizer(self._instructions)["input_ids"])
        self._set_up()

    def attend_at_once(self) -> None:
        pack(self.transformer, VarlenAttention())

    @property
    def default_steps(self) -> int:
        return 50

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.native_area, 2 * self.vae_scale_factor, self.config.text_area)

    @property
    def step_cost(self) -> StepCost:
        return step_cost(self.transformer)

    @property
    def _channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    @property
    def _text_tokenizer(self) -> Any:
        return self.tokenizer

    @property
    def _instructions(self) -> str:
        """The template's text before the pictures and the caller's text, which the transformer does not see."""
        raise NotImplementedError

    def _text_positions(self, condition: Condition) -> int:
        views = [reference.view for reference in condition.references]
        merge = self._patcher.merge_size
        patches = sum(
            self._patcher.get_number_of_image_patches(view.text_size.height, view.text_size.width, {}) for view in views
        )
        sizes = [condition.output, *(view.size for view in views)]
        sides = [side for size in sizes for side in (size.width, size.height)]
        # A picture lies around position 0, and the text behind the longest half of a side.
        half = max(sides) // self.geometry.multiple // 2
        positions: int = self.transformer.pos_embed.pos_freqs.shape[0]
        return positions - half - int(patches) // int(merge) ** 2

    def _for_vae(self, picture: Picture) -> Picture:
        return lay_on_white(picture)

    @property
    def _instruction_tokens(self) -> int:
        return int(self.prompt_template_encode_start_idx)

    @property
    def _embed(self) -> Embed:
        return embed_for_qwen2_5

    @property
    def _grid_positions(self) -> bool:
        return bool(self.config.grid_positions)

    def _conditions(
        self,
        prepared: Sequence[Prepared],
        texts: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        references: Sequence[torch.Tensor],
    ) -> Sequence[tuple[Any, Any]]:
        return texts

    def _rows_of(self, state: SampleState) -> tuple[RowShape, ...]:
        return tuple(RowShape(state.grids[0], state.grids[1:], len(text)) for text in looks_at(state))

    def _lay_out(self, rows: Sequence[RowShape], adapters: Sequence[AdapterScales]) -> "_AdaptedLayout":
        return _AdaptedLayout(rows, adapters, self.transformer, self._execution_device)

    def _forward(self, states: Sequence[SampleState], plan: Plan, times: torch.Tensor) -> torch.Tensor:
        image = torch.cat(
            [part for index, _ in plan.rows for part in (states[index].latents, states[index].encoding.references)]
        )
        text = torch.cat([looks_at(states[index])[place] for index, place in plan.rows])
        with self.adapters.applied(plan.layout.shares):
            velocities: torch.Tensor = self.transformer(image, text, times, plan.layout)
        return velocities

    def _guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Apply classifier-free guidance, and rescale to the positive prediction's norm as diffusers does."""
        combined = negative + scale * (positive - negative)
        wanted, got = (torch.linalg.vector_norm(tensor, dim=-1, keepdim=True) for tensor in (positive, combined))
        rescaled: torch.Tensor = combined * (wanted / got)
        return rescaled


class _AdaptedLayout(Layout):
    """A layout with the shares of its rows' adapters."""

    def __init__(
        self, rows: Sequence[RowShape], adapters: Sequence[AdapterScales], transformer: Any, device: torch.device
    ) -> None:
        super().__init__(rows, transformer, device)
        self.shares = share_out(adapters, self, transformer.zero_cond_t)
