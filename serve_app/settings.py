"""All settings of the application: the content of `args:` in serve_config.yaml.

All models are frozen and reject unknown names, so a typing error in a configuration file stops the start. A test
compares the settings table of the documentation with these models.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

BUILTIN_TINY = "builtin:tiny"
BUILTIN_TINY_PLUS = "builtin:tiny-plus"
BUILTINS = (BUILTIN_TINY, BUILTIN_TINY_PLUS)
"""The models of this package."""

OPENAI_MODELS = (
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2.5-flare",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.6-flare",
    "gpt-image-2.6-sunburst",
    "chatgpt-image-latest",
    "dall-e-2",
)
"""Names of OpenAI's models that edit, which many clients have built in and cannot change (openai 3.54)."""

NO_QUANTIZATION: Literal["none"] = "none"
GGUF = "gguf:"
"""What a quantisation by a file begins with."""
QuantizationKind = Literal["none", "int8", "int8-dynamic", "fp8", "fp8-dynamic", "nf4"]

# An origin as browsers write it, since origins are compared letter by letter.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_OUTBOUND_HOST = re.compile(rf"(\*\.)?{_HOST_NAME.pattern}(:[1-9][0-9]{{0,4}})?")


License = Literal["qwen-research"]
"""A licence that a model is published under and that does not allow commerce."""

Sharing = Literal["caller", "all", "none"]
"""Whose edits may take over what was computed for the pictures of an earlier edit."""

MEMORY = "memory:"
"""The store of a server on its own, for which nothing has to be installed."""

MAX_STEPS = 150
MAX_GUIDANCE = 20
MAX_SCALE = 4.0
"""The greatest strength of an adapter, and the least is its negative."""


class Settings(BaseModel):
    """Base of all settings: frozen, without unknown names, and with validated defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that a request or a preset names. `scale`: its strength; None: that of `model.adapters`."""

    name: str
    scale: float | None = None


def parse_adapters(text: str) -> tuple[AdapterUse, ...]:
    """Return the adapters that a text such as `cinematic:0.8, sketch` names, none for "". Raises ValueError."""
    if not text:
        return ()
    parts = [part.strip().partition(":") for part in text.split(",")]
    try:
        return tuple(AdapterUse(name.strip(), float(scale) if colon else None) for name, colon, scale in parts)
    except ValueError:
        raise ValueError(
            f"must be names, each with a number at most, such as cinematic:0.8,sketch, not {text[:80]!r}"
        ) from None


class LoraSettings(Settings):
    """A LoRA adapter that is loaded at start."""

    source: str = Field(description="directory or hub id of the adapter")
    weight_name: str | None = Field(
        None, description="file name inside `source`, needed if it contains several files; a `.safetensors` file"
    )
    scale: float = Field(1.0, description="strength of the adapter")

    @field_validator("weight_name")
    @classmethod
    def _reject_pickles(cls, weight_name: str | None) -> str | None:
        # diffusers (0.42) reads a file of another name as a pickle, whatever it is told about safetensors.
        if weight_name is not None and not weight_name.endswith(".safetensors"):
            raise ValueError(
                f"model.loras, model.adapters: weight_name {weight_name!r} is no .safetensors file; other kinds run "
                "code when they are read, so this server does not"
            )
        return weight_name


class AdapterSettings(LoraSettings):
    """A LoRA adapter that requests choose by name."""

    scale: float = Field(
        1.0, ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False, description="strength, for requests that name none"
    )


ServedName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
"""The name of an adapter or a preset, as requests have it."""

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=1, le=MAX_GUIDANCE, allow_inf_nan=False)]


class PresetSettings(Settings):
    """What requests ask for by one name."""

    steps: Steps | None = Field(None, description="`num_inference_steps`; unset: as many as `sigmas`, else the default")
    guidance: Guidance | None = Field(None, description="`guidance_scale`; unset: the default")
    adapter: str | None = Field(
        None,
        description="`adapters`: names of `model.adapters`, each with a strength if not its own, with commas between",
    )
    shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        None,
        description="fixed shift of the noise schedule, without a terminal stretch, as distilled adapters have it; "
        "unset: the checkpoint's own",
    )
    sigmas: tuple[float, ...] | None = Field(
        None,
        description="noise levels before the shift, from 1 downwards, one for each step, as diffusers takes them; "
        "unset: evenly spaced. With another number of steps in a request they are left out",
    )

    @field_validator("sigmas")
    @classmethod
    def _check_sigmas(cls, sigmas: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if sigmas is not None:
            falling = all(one > other for one, other in pairwise(sigmas))
            if not sigmas or sigmas[0] != 1 or not falling or sigmas[-1] <= 0:
                raise ValueError("model.presets: sigmas must begin with 1 and fall, and the last must be above 0")
        return sigmas

    @model_validator(mode="after")
    def _check_steps(self) -> "PresetSettings":
        if self.sigmas is not None and self.steps not in (None, len(self.sigmas)):
            raise ValueError(f"model.presets: {len(self.sigmas)} sigmas for {self.steps} steps; leave steps out")
        return self


class ModelSettings(Settings):
    """The checkpoint that is served, and how it is loaded."""

    source: str = Field(
        BUILTIN_TINY,
        min_length=1,
        description="`builtin:tiny`, `builtin:tiny-plus` (a second picture), a directory, or a Hugging Face hub id",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    accept_license: License | None = Field(
        None,
        description="the licence of a model that is not free for commerce, once you have read it: `qwen-research` for "
        "Qwen-Image-2.1, which is refused without",
    )
    name: str | None = Field(None, description="id of the model in `/v1/models`; unset: the last part of `source`")
    aliases: tuple[str, ...] = Field(
        OPENAI_MODELS,
        description="further names that a request's `model` may have; a list of your own replaces these, and `[]` "
        "leaves none",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA if the cluster has a GPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto`: bfloat16 on CUDA, float32 on CPU"
    )
    cpu_threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads that the model uses on a CPU; unset: one per core"
    )
    attention_backend: str | None = Field(
        None, description="a diffusers attention backend, such as `_native_flash`; unset: PyTorch chooses"
    )
    compile: bool = Field(False, description="compile the transformer's repeated blocks")
    quantization: str = Field(
        NO_QUANTIZATION,
        description="weights of the transformer's blocks: `none`, `int8`, `int8-dynamic`, `fp8`, `fp8-dynamic`, "
        "`nf4`, or `gguf:FILE`, a file here or OWNER/NAME/FILE on the hub. `dynamic`: activations too. Needs the extra "
        "`quantization`",
    )
    text_encoder_quantization: QuantizationKind = Field(
        NO_QUANTIZATION, description="weights of the text encoder's language model"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="keep weights in host memory and move them to the GPU for use: `model`, one component at a time; "
        "`sequential`, one layer at a time",
    )
    vae_tiling: bool = Field(
        False, description="encode and decode in tiles, which needs less memory for large pictures"
    )
    loras: tuple[LoraSettings, ...] = Field((), description="adapters that are fused at start, in this order")
    adapters: dict[ServedName, AdapterSettings] = Field(
        {}, description="adapters that requests choose by these names; every row of a forward has its own"
    )
    presets: dict[ServedName, PresetSettings] = Field(
        {}, description="what requests ask for by `preset`: steps, guidance, adapters and noise schedule under one name"
    )
    quality: dict[Literal["low", "medium", "high"], str] = Field(
        {}, description="presets for OpenAI's `quality`, such as `{low: fast}`; unset: `quality` has no effect"
    )
    native_area: Annotated[int, Field(ge=4096)] | None = Field(
        None, description="pixels of a picture at the model's native size; unset: from the checkpoint, else 1024²"
    )
    default_steps: Steps | None = Field(
        None, description="`num_inference_steps` of a request that sets none; unset: 50 (built-in models: 20)"
    )
    default_guidance: Guidance | None = Field(
        None, description="`guidance_scale` of a request that sets none; unset: 4.0 (built-in models: 2.0)"
    )

    @property
    def served_name(self) -> str:
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_demonstration(self) -> bool:
        """Whether the model is one of this package, which know a few instructions only."""
        return self.source in BUILTINS

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name that a request's `model` may have, each once."""
        return tuple(dict.fromkeys((self.served_name, *self.aliases)))

    @model_validator(mode="after")
    def _check_presets(self) -> "ModelSettings":
        for name, preset in self.presets.items():
            setting = f"model.presets.{name}.adapter"
            try:
                uses = parse_adapters(preset.adapter or "")
            except ValueError as error:
                raise ValueError(f"{setting}: {error}") from None
            for use in uses:
                if use.name not in self.adapters:
                    raise ValueError(f"{setting}: there is no {use.name!r} in model.adapters; add it there")
        for quality, preset_name in self.quality.items():
            if preset_name not in self.presets:
                raise ValueError(f"model.quality.{quality}: there is no {preset_name!r} in model.presets; add it there")
        return self

    @field_validator("quantization")
    @classmethod
    def _check_quantization(cls, kind: str) -> str:
        kinds = get_args(QuantizationKind)
        if kind in kinds or (kind.startswith(GGUF) and kind.endswith(".gguf")):
            return kind
        raise ValueError(
            f"model.quantization: {kind!r} is unknown; it may be {', '.join(kinds)} or gguf:FILE with a .gguf file"
        )

    @model_validator(mode="after")
    def _refuse_fused_gguf(self) -> "ModelSettings":
        if self.loras and self.quantization.startswith(GGUF):
            raise ValueError(
                "model.loras are fused before weights are quantised, but those of a GGUF file are already; name them "
                "in model.adapters, or choose another model.quantization"
            )
        return self

    @model_validator(mode="after")
    def _check_offload(self) -> "ModelSettings":
        if self.offload != "none" and self.device == "cpu":
            raise ValueError(
                "model.offload moves weights between a GPU and the host, but with model.device: cpu there is no GPU; "
                "set model.offload: none"
            )
        if self.offload == "sequential" and (self.quantization.startswith(GGUF) or "nf4" in self._quantizations):
            raise ValueError(
                "model.offload: sequential takes layers apart, which those of nf4 and of GGUF files do not survive "
                "(accelerate 1.15); set model.offload: model, or quantise to int8 or fp8"
            )
        return self

    @property
    def _quantizations(self) -> tuple[str, str]:
        return self.quantization, self.text_encoder_quantization


class EngineSettings(Settings):
    """The rules by which samples share a replica's GPU."""

    join: Literal["step", "batch"] = Field(
        "step",
        description="`step`: a sample joins at the next step, or a few steps later if several samples can then share "
        "the cost of joining; `batch`: samples join only when no other sample is in flight",
    )
    order: Literal["shortest", "fifo"] = Field(
        "shortest",
        description="the request that steps first: `shortest`, the one with the least remaining work, with aging; "
        "`fifo`, the one that arrived first",
    )
    aging: float = Field(
        0.1, gt=0, le=1, description="`shortest`: each second of waiting counts as this many seconds less work"
    )
    max_samples: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto",
        description="samples in one forward; `auto`, by GPU memory: 10 above 24 GB, 5 from 12 to 24 GB, 2 below; on a "
        "CPU 8",
    )
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="image tokens in one forward; `auto`: the knee, measured at start. A single sample always fits",
    )
    max_paused: int = Field(
        8, ge=0, le=256, description="samples that may stay encoded beyond `max_samples` while shorter work goes first"
    )
    share_prefixes: Sharing = Field(
        "caller",
        description="Qwen-Image-2.1: edits of the same images take over what was computed of the images before: those "
        "of one `caller` (a server without keys has one); of `all`, whose answers then come faster where another "
        "caller has sent the same image; or `none`",
    )
    prefix_cache_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        2.5,
        description="Qwen-Image-2.1: memory of the model's device for that, in GB; one image of 1024 × 1024 takes 2.2",
    )
    max_waiting: int = Field(256, ge=1, description="samples that may wait; requests beyond that get 503")
    max_caller_samples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="samples of one caller that may wait or run on a replica; more get 429. Unset: no limit"
    )
    gather_s: float = Field(
        0.005, ge=0, le=1, description="time for which `@serve.batch` gathers requests into one submission"
    )
    stall_s: float = Field(
        300.0, gt=0, description="a replica whose step, encode or decode takes longer than this becomes unhealthy"
    )


class LimitSettings(Settings):
    """The limits beyond which requests are refused."""

    max_images: int = Field(16, ge=1, description="pictures in one request")
    max_references: int = Field(4, ge=0, description="pictures that one edit looks at beside its own")
    max_outputs: int = Field(64, ge=1, description="outputs of one request: pictures × n")
    max_file_bytes: int = Field(50 * 2**20, ge=1, description="bytes of one picture file")
    max_request_bytes: int = Field(128 * 2**20, ge=1, description="bytes of one request body")
    max_uploading_bytes: int = Field(
        2 * 2**30, ge=1, description="bytes of all bodies that an ingress replica reads at once; more get 503"
    )
    max_field_bytes: int = Field(64 * 2**10, ge=1024, description="bytes of one text field")
    min_upload_bytes_per_s: float = Field(
        1000.0, gt=0, description="average rate that an upload must keep from its beginning on"
    )
    upload_grace_s: float = Field(10.0, gt=0, description="extra time that an upload may take beyond that rate")
    max_image_pixels: int = Field(
        200_000_000, ge=1, description="pixels of one input picture, checked before it is decoded"
    )
    shrink_above_pixels: int = Field(
        2**22,
        ge=2**16,
        description="a picture with more pixels is shrunk to this many while it is decoded, unless it has a mask; no "
        "model reads more",
    )
    decode_timeout_s: float = Field(20.0, gt=0, description="time that decoding one picture may take")
    max_decoder_bytes: int = Field(2 * 2**30, ge=2**26, description="memory that decoding one picture may take")
    max_decoding_pixels: int = Field(
        640_000_000,
        ge=1,
        description="pixels of the decoded pictures and masks of all open edits of an ingress replica, and of their "
        "outputs at `size=original` or with a mask; further edits wait",
    )
    max_aspect_ratio: float = Field(8.0, ge=1, description="long side ÷ short side, of pictures and of `size`")
    max_area_factor: float = Field(4.0, ge=1, description="pixels of `size`, as a multiple of the model's native area")
    max_original_pixels: int = Field(
        300_000_000,
        ge=1,
        description="pixels of all outputs and previews of one request at `size=original` or with a mask",
    )
    request_timeout_s: float = Field(600.0, gt=0, description="deadline of a request, including the time that it waits")
    idempotency_ttl_s: float = Field(
        600.0, gt=0, description="time for which an answer is kept for retries with its `Idempotency-Key`"
    )
    idempotency_max_keys: int = Field(
        4096, ge=1, description="idempotency keys of running and answered edits; if full, the oldest answer is dropped"
    )
    idempotency_max_bytes: int = Field(
        2**30,
        ge=1,
        description="bytes of answers kept for retries; if full, the oldest are dropped. A larger answer is not kept",
    )


def _check_outbound_hosts(name: str, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _OUTBOUND_HOST.fullmatch(host):
            raise ValueError(
                f"{name}: {host!r} is not the name of a host; write it in lower case and without a scheme, such as "
                "pictures.example, *.pictures.example or pictures.example:8443"
            )
    return hosts


class InputSettings(Settings):
    """The images that a JSON body may name by a URL. None by default."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="hosts from which images are fetched that a JSON body names by an http or https URL: "
        "`pictures.example`, `*.pictures.example` for every name below it, each with a port if not the scheme's own",
    )
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="time that fetching all images of a request may take"
    )
    max_redirects: int = Field(3, ge=0, description="redirects that are followed for an image, to allowed hosts only")

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return _check_outbound_hosts("inputs.allowed_hosts", hosts)


class WebhookSettings(Settings):
    """The URLs that are told of the end of a job. None by default."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="hosts that a job's `webhook_url` may name: `hooks.example`, `*.hooks.example` for every name "
        "below it, each with a port if not the scheme's own",
    )
    secret_env: str = Field(
        "IMAGE_EDITS_WEBHOOK_SECRET",
        description="environment variable with the secret that signs the messages, in base64, as Standard Webhooks "
        "has it",
    )
    timeout_s: Annotated[float, Field(gt=0, le=300)] = Field(15.0, description="time that one call may take")

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return _check_outbound_hosts("webhooks.allowed_hosts", hosts)


class JobSettings(Settings):
    """Limits of jobs: edits that are requested with `async=true` and fetched later."""

    ttl_s: float = Field(3600.0, gt=0, description="time for which a job is kept after its end")
    max_jobs: int = Field(256, ge=1, description="running and ended jobs; if full, the oldest ended job is dropped")
    max_result_bytes: int = Field(
        2 * 2**30, ge=1, description="bytes of the results kept; if full, the oldest results are dropped"
    )
    max_open_bytes: int = Field(
        2 * 2**30,
        ge=1,
        description="bytes of the decoded pictures of all open jobs; a job may exceed it while no other job is open",
    )


class StoreSettings(Settings):
    """Where jobs and idempotency keys are, so that other processes and other clusters go on with them."""

    url: str = Field(
        MEMORY,
        pattern="^(memory:|rediss?://.*|unix://.*)$",
        description="`memory:`, a process on the head node; or Redis or Valkey: `redis://HOST:6379/0`, "
        "`rediss://` with TLS, or `unix://PATH`. With it, set `results.store` too",
    )
    password_env: str = Field(
        "IMAGE_EDITS_STORE_PASSWORD", description="environment variable with the password of Redis, if it has one"
    )
    namespace: str = Field(
        "image-edits",
        pattern="^[a-z0-9][a-z0-9_-]{0,63}$",
        description="begins the names of all keys in Redis; applications with the same one share their jobs",
    )

    @field_validator("url")
    @classmethod
    def _refuse_password(cls, url: str) -> str:
        if urlsplit(url).password:
            raise ValueError(
                "store.url: the settings can be read in Ray's dashboard, so no password may be in them; put it into "
                "the environment variable that store.password_env names"
            )
        return url


class ResultSettings(Settings):
    """Where the bytes of jobs, of answers to idempotency keys and behind links are: forms and pictures."""

    store: str = Field(
        MEMORY,
        pattern="^(memory:|(file|s3|s3a|gs|az|abfss?|https)://.+)$",
        description="`memory:`, a process on the head node; or a directory that all nodes share, `file:///PATH`; or an "
        "object store, `s3://BUCKET/PREFIX`, `gs://`, `az://`, with credentials from the environment",
    )
    link_ttl_s: float = Field(
        3600.0, gt=0, le=604_800, description="time for which a link of `response_format=url` opens its picture"
    )
    max_link_bytes: int = Field(
        2 * 2**30, ge=1, description="bytes of the pictures behind links; if full, the oldest answers are dropped"
    )


class AuthSettings(Settings):
    """The sources of API keys. Without a source, no key is needed; a source without a key stops the start."""

    keys_file: Path | None = Field(
        None,
        description="file with one key per line, `NAME sha256:HEX` or plain; `#` begins a comment. Changes take effect "
        "without a restart",
    )
    keys_env: str = Field(
        "IMAGE_EDITS_API_KEYS", description="environment variable with keys, `NAME=KEY` or plain, separated by commas"
    )


class CorsSettings(Settings):
    """The origins whose pages may read the answers in a browser. None by default."""

    origins: tuple[str, ...] = Field(
        (), description="origins such as `https://lab.example` whose pages may call this API from a browser; `*`: all"
    )

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"cors.origins: {origin!r} is not an origin; write it as browsers do, in lower case and without a "
                    "path, such as https://lab.example or http://localhost:5173"
                )
        return origins


class HttpSettings(Settings):
    """The names of the server, and the answers to plain edits that take long."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="names, without a port, by which a server without API keys may be reached, beside `localhost` and "
        "IP addresses; `*`: any. With keys, a list restricts the names too",
    )
    keepalive_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="for proxies that cut silent answers: a plain edit that takes longer than this many seconds is "
        "answered with status 200 and white space, as often, and an error then stands in the body; unset: never",
    )

    public_url: str | None = Field(
        None,
        description="address of this server as its callers know it, such as `https://edits.example`, with which links "
        "begin; unset: that of each request",
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"http.public_url: {url!r} is not the address of a server, such as https://edits.example")
        return url.rstrip("/")

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if host != "*" and not _HOST_NAME.fullmatch(host):
                raise ValueError(
                    f"http.allowed_hosts: {host!r} is not the name of a host; write it in lower case, without a scheme "
                    "and a port, such as edits.example"
                )
        return hosts


class ProvenanceSettings(Settings):
    """The marks in output files that say that a model has made or edited the picture."""

    xmp: bool = Field(
        True, description="name IPTC's digital source type in the XMP metadata of every output file and preview"
    )
    c2pa_certificate: Path | None = Field(
        None,
        description="PEM file with a certificate and those above it: every output file and preview is signed by C2PA. "
        "Needs `c2pa_key` and the extra `c2pa`",
    )
    c2pa_key: Path | None = Field(
        None, description="PEM file with the private key of that certificate, without a password"
    )
    c2pa_timestamp_url: str | None = Field(
        None,
        pattern="^https?://",
        description="timestamp authority (RFC 3161) that is asked for each file; unset: none, and signatures are valid "
        "as long as the certificate",
    )

    @model_validator(mode="after")
    def _check_signing(self) -> "ProvenanceSettings":
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("provenance.c2pa_certificate and provenance.c2pa_key are set together, or neither")
        if self.c2pa_timestamp_url is not None and self.c2pa_certificate is None:
            raise ValueError(
                "provenance.c2pa_timestamp_url: there are no signatures to give a time; set "
                "provenance.c2pa_certificate and provenance.c2pa_key"
            )
        return self


class PageSettings(Settings):
    """The page for browsers."""

    enabled: bool = Field(True, description="serve the page at `/`; the page needs no key, its edits do")


class LogSettings(Settings):
    """The content of each edit's log line."""

    prompts: bool = Field(False, description="log prompts and negative prompts too; otherwise no log contains them")


class AppSettings(Settings):
    """All settings of the application, validated at start."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    inputs: InputSettings = InputSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    http: HttpSettings = HttpSettings()
    jobs: JobSettings = JobSettings()
    webhooks: WebhookSettings = WebhookSettings()
    store: StoreSettings = StoreSettings()
    results: ResultSettings = ResultSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    page: PageSettings = PageSettings()
    log: LogSettings = LogSettings()

    def with_host(self, name: str) -> "AppSettings":
        """Return the same settings with one more name in `http.allowed_hosts`."""
        hosts = (*self.http.allowed_hosts, name.lower())
        return self.model_copy(update={"http": self.http.model_copy(update={"allowed_hosts": hosts})})

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "AppSettings":
        if self.model.offload != "none" and self.engine.join == "step":
            raise ValueError(
                f"model.offload: {self.model.offload} moves the transformer off the GPU each time a sample joins; "
                "set engine.join: batch with it"
            )
        if (self.store.url == MEMORY) != (self.results.store == MEMORY):
            raise ValueError(
                f"store.url ({self.store.url}) and results.store ({self.results.store}) must both be memory:, or "
                "neither: the one would outlive what the other holds of the same jobs"
            )
        if self.engine.max_waiting < self.limits.max_outputs:
            raise ValueError(
                f"engine.max_waiting ({self.engine.max_waiting}) is less than limits.max_outputs "
                f"({self.limits.max_outputs}), so the largest allowed request could never be accepted; "
                "raise the first or lower the second"
            )
        most = self.engine.max_caller_samples
        if most is not None and most < self.limits.max_outputs:
            raise ValueError(
                f"engine.max_caller_samples ({most}) is less than limits.max_outputs ({self.limits.max_outputs}), so "
                "the largest allowed request could never be accepted; raise the first or lower the second"
            )
        if self.limits.max_request_bytes > self.limits.max_uploading_bytes:
            raise ValueError(
                f"limits.max_request_bytes ({self.limits.max_request_bytes}) is more than limits.max_uploading_bytes "
                f"({self.limits.max_uploading_bytes}), so no such request could arrive; lower the first or raise the "
                "second"
            )
        if self.limits.max_file_bytes > self.limits.max_request_bytes:
            raise ValueError(
                f"limits.max_file_bytes ({self.limits.max_file_bytes}) is more than limits.max_request_bytes "
                f"({self.limits.max_request_bytes}), so no such file could arrive; lower the first or raise the second"
            )
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
