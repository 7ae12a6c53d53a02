"""The families of checkpoints: pipelines of diffusers with stages, and the values in which they differ."""

from typing import Any, ClassVar

from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE

from serve_app.models.edit import EditPipeline
from serve_app.models.pipeline import PICTURE
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.models.source import Family


class StepwiseQwenImageEditPipeline(EditPipeline, QwenImageEditPipeline):  # type: ignore[misc]
    """Qwen-Image-Edit of August 2025: one picture for each edit."""

    @property
    def _instructions(self) -> str:
        return str(self.prompt_template_encode.split(PICTURE)[0])

    def _template(self, pictures: int) -> str:
        return str(self.prompt_template_encode)


class StepwiseQwenImageEditPlusPipeline(EditPipeline, QwenImageEditPlusPipeline):  # type: ignore[misc]
    """Qwen-Image-Edit-2509, 2511, and models made from them: up to five pictures for each edit, of any sizes."""

    max_references: ClassVar[int] = 5
    default_text_area: ClassVar[int | None] = CONDITION_IMAGE_SIZE

    @property
    def default_steps(self) -> int:
        return 40

    @property
    def _instructions(self) -> str:
        return str(self.prompt_template_encode.split("{}")[0])

    def _template(self, pictures: int) -> str:
        seen = "".join(f"Picture {number}: {PICTURE}" for number in range(1, pictures + 1))
        return str(self.prompt_template_encode.replace("{}", f"{seen}{{}}"))


PIPELINES: dict[Family, Any] = {
    "edit": StepwiseQwenImageEditPipeline,
    "edit-plus": StepwiseQwenImageEditPlusPipeline,
    "2.1": StepwiseQwenImage21Pipeline,
}
