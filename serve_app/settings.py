"""Everything that can be set, in one place: what `args:` in serve_config.yaml holds.

All models are frozen and refuse unknown names, so a typing error in a configuration file stops the start. The README's
settings table is compared with these models by a test.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

BUILTIN_TINY = "builtin:tiny"

# As browsers write it, since it is compared letter by letter.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown names, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LoraSettings(Settings):
    """One LoRA adapter that is loaded and fused at start."""

    source: str = Field(description="directory or hub id of the adapter")
    weight_name: str | None = Field(None, description="file name inside `source`, where it holds several")
    scale: float = Field(1.0, description="strength")


class ModelSettings(Settings):
    """Which checkpoint is served and how it is loaded."""

    source: str = Field(BUILTIN_TINY, min_length=1, description="`builtin:tiny`, a directory, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    name: str | None = Field(None, description="the id in `/v1/models`; unset: the last part of `source`")
    aliases: tuple[str, ...] = Field((), description="other names that `model` may have in a request")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA where the cluster has it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto`: bfloat16 on CUDA, float32 on CPU"
    )
    cpu_threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads of the model on a CPU; unset: all cores"
    )
    attention_backend: str | None = Field(
        None, description="a diffusers attention backend, such as `_native_flash`; unset: PyTorch chooses"
    )
    compile: bool = Field(False, description="compile the transformer's repeated blocks")
    offload: Literal["none", "model", "sequential"] = Field(
        "none", description="keep weights in host memory: `model` by turns, `sequential` layer by layer"
    )
    vae_tiling: bool = Field(False, description="encode and decode in tiles: less memory for large pictures")
    loras: tuple[LoraSettings, ...] = Field((), description="adapters, fused at start in this order")
    native_area: Annotated[int, Field(ge=4096)] | None = Field(
        None, description="pixels the model was made for; unset: what the checkpoint says, else 1024²"
    )
    default_steps: Annotated[int, Field(ge=1, le=150)] | None = Field(
        None, description="`num_inference_steps` where a request has none; unset: 50 (`builtin:tiny`: 20)"
    )
    default_guidance: Annotated[float, Field(ge=1, le=20, allow_inf_nan=False)] | None = Field(
        None, description="`guidance_scale` where a request has none; unset: 4.0 (`builtin:tiny`: 2.0)"
    )

    @property
    def served_name(self) -> str:
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1]

    @property
    def all_names(self) -> tuple[str, ...]:
        return (self.served_name, *self.aliases)

    @model_validator(mode="after")
    def _check_offload(self) -> "ModelSettings":
        if self.offload != "none" and self.device == "cpu":
            raise ValueError("model.offload moves weights between a GPU and the host; with device: cpu there is no GPU")
        return self


class EngineSettings(Settings):
    """How samples share the GPU."""

    join: Literal["step", "batch"] = Field(
        "step",
        description="`step`: a sample joins at the next step, or some later where several can share what joining costs;"
        " `batch`: only when nothing is in flight",
    )
    order: Literal["shortest", "fifo"] = Field(
        "shortest", description="which request steps first: least remaining work with aging, or first come"
    )
    aging: float = Field(
        0.1, gt=0, le=1, description="`shortest`: a second of waiting counts as so many seconds less work"
    )
    max_samples: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description="samples in one forward; `auto` by GPU memory: over 24 GB 10, 12 to 24 GB 5, less 2, CPU 8"
    )
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="image tokens in one forward, the knee; `auto` measures it at start. One sample always fits",
    )
    max_paused: int = Field(
        8, ge=0, le=256, description="samples kept encoded beyond `max_samples`, so that shorter work can go first"
    )
    max_waiting: int = Field(256, ge=1, description="samples that may wait before requests get 503")
    max_caller_samples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="samples of one caller that may wait or run on a replica; beyond that it gets 429. Unset: any"
    )
    gather_s: float = Field(
        0.005, ge=0, le=1, description="how long `@serve.batch` gathers requests into one submission"
    )
    stall_s: float = Field(300.0, gt=0, description="a step, encode or decode longer than this turns health red")


class LimitSettings(Settings):
    """What is refused."""

    max_images: int = Field(16, ge=1, description="pictures in one request")
    max_outputs: int = Field(64, ge=1, description="pictures × n in one request")
    max_file_bytes: int = Field(50 * 2**20, ge=1, description="bytes of one picture file")
    max_request_bytes: int = Field(128 * 2**20, ge=1, description="bytes of one request body")
    max_uploading_bytes: int = Field(
        2 * 2**30, ge=1, description="bytes of all bodies that an ingress replica reads at once; more get 503"
    )
    max_field_bytes: int = Field(64 * 2**10, ge=1024, description="bytes of one text field")
    min_upload_bytes_per_s: float = Field(1000.0, gt=0, description="rate of an upload, from its beginning on")
    upload_grace_s: float = Field(10.0, gt=0, description="how much longer an upload may take than at that rate")
    # Above that, Pillow refuses a picture itself, in other words (twice its MAX_IMAGE_PIXELS).
    max_image_pixels: int = Field(
        40_000_000, ge=1, le=178_956_970, description="pixels of one input picture, checked before decoding"
    )
    decode_timeout_s: float = Field(20.0, gt=0, description="how long one picture may take to decode")
    max_decoder_bytes: int = Field(
        2 * 2**30, ge=2**26, description="memory that one picture may take while it is decoded"
    )
    max_decoding_pixels: int = Field(
        640_000_000, ge=1, description="pixels of the input pictures of all open edits of an ingress replica; more wait"
    )
    max_aspect_ratio: float = Field(8.0, ge=1, description="long side over short side, of pictures and of `size`")
    max_area_factor: float = Field(4.0, ge=1, description="pixels of `size`, as a multiple of the model's native area")
    request_timeout_s: float = Field(600.0, gt=0, description="deadline of a request, waiting included")
    idempotency_ttl_s: float = Field(
        600.0, gt=0, description="how long an answer is kept for retries with its `Idempotency-Key`"
    )
    idempotency_max_keys: int = Field(
        4096, ge=1, description="idempotency keys kept, of edits that run or are answered; the oldest answer makes room"
    )
    idempotency_max_bytes: int = Field(
        2**30, ge=1, description="bytes of answers kept for retries; the oldest make room, a larger one is not kept"
    )


class JobSettings(Settings):
    """Edits that are asked for with `async=true`, and fetched later."""

    ttl_s: float = Field(3600.0, gt=0, description="how long a job is kept after its end")
    max_jobs: int = Field(256, ge=1, description="jobs kept, running or ended; the oldest ended one makes room")
    max_result_bytes: int = Field(2 * 2**30, ge=1, description="bytes of results kept; the oldest make room")
    max_open_bytes: int = Field(
        2 * 2**30,
        ge=1,
        description="bytes of the decoded pictures of open jobs; a job that is open alone may have more",
    )


class AuthSettings(Settings):
    """API keys. Off where neither is set; one that is set and holds no key stops the start."""

    keys_file: Path | None = Field(
        None,
        description="file with one key a line, `NAME sha256:HEX` or plain; `#` begins a comment. Changes are read",
    )
    keys_env: str = Field(
        "IMAGE_EDITS_API_KEYS", description="environment variable with keys, `NAME=KEY` or plain, separated by commas"
    )


class CorsSettings(Settings):
    """Pages of other origins that a browser lets read the answers. Off unless there are origins."""

    origins: tuple[str, ...] = Field(
        (), description="origins such as `https://lab.example`, whose pages may call this API from a browser; `*`: all"
    )

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors.origins: {origin!r} is no origin: scheme, host and port, without a path")
        return origins


class PageSettings(Settings):
    """The page for people."""

    enabled: bool = Field(True, description="serve the page at `/`; it needs no key, what it asks for does")


class LogSettings(Settings):
    """The log line of each edit."""

    prompts: bool = Field(False, description="prompts and negative prompts too; otherwise no log holds them")


class AppSettings(Settings):
    """The whole application; validated at start."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    jobs: JobSettings = JobSettings()
    page: PageSettings = PageSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "AppSettings":
        if self.model.offload != "none" and self.engine.join == "step":
            raise ValueError(
                f"model.offload: {self.model.offload} moves the transformer off the GPU each time a sample joins; "
                "set engine.join: batch with it"
            )
        if self.engine.max_waiting < self.limits.max_outputs:
            raise ValueError(
                f"engine.max_waiting ({self.engine.max_waiting}) is less than limits.max_outputs "
                f"({self.limits.max_outputs}): the largest allowed request could never be accepted"
            )
        most = self.engine.max_caller_samples
        if most is not None and most < self.limits.max_outputs:
            raise ValueError(
                f"engine.max_caller_samples ({most}) is less than limits.max_outputs ({self.limits.max_outputs}): "
                "the largest allowed request could never be accepted"
            )
        if self.limits.max_request_bytes > self.limits.max_uploading_bytes:
            raise ValueError("limits.max_request_bytes is more than limits.max_uploading_bytes: none could arrive")
        if self.limits.max_file_bytes > self.limits.max_request_bytes:
            raise ValueError("limits.max_file_bytes is more than limits.max_request_bytes: no such file could arrive")
        return self


def read_settings(path: Path) -> AppSettings:
    """Return the settings in a YAML file. Raises ValueError, with the reason, if they cannot be read or used."""
    try:
        return AppSettings.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except ValidationError as error:
        reason = "; ".join(map(_reason, error.errors()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error)
    raise ValueError(f"{path} cannot be used: {reason}")


def _reason(error: ErrorDetails) -> str:
    """Return the name of a setting as it is in the file, and what is wrong with it."""
    if error["type"] == "value_error":
        # From a validator above, which names the settings itself.
        return error["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, error["loc"])) or "the file"
    return f"{name}: " + ("there is no such setting" if error["type"] == "extra_forbidden" else error["msg"])
