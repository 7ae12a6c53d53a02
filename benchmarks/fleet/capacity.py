"""`python -m benchmarks.fleet.capacity`: the number of GPUs for a traffic, from one replica's measured rate."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.images.geometry import Size

# Side of a token in pixels, of Qwen-Image-Edit and of the built-in model.
_TOKEN_SIDE = 16
# Measured on two cores (docs/operate/scaling.md): a PNG of 1024² pixels as the ingress writes it; bytes in the proxy.
_PNG_S = 0.08
_PNG_PIXELS = 1024**2
_PROXY_BYTES_PER_S = 64e6 / 0.4
# Bytes a pixel of a PNG of a photograph (1.8 MB at 1024²) in base64, which takes a third more.
_PNG_BYTES = 1.8 * 4 / 3
# Share of a core or proxy that may be busy before its queue grows long.
_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that are all alike; mixed traffic is a sum over kinds. `reference`: size of the model's input."""

    requests_per_s: float
    pictures: int
    variants: int
    steps: int
    output: Size
    reference: Size
    guided: bool = True

    @property
    def outputs(self) -> int:
        return self.pictures * self.variants

    @property
    def request_tokens(self) -> int:
        """The tokens of one request through the transformer; guidance takes two rows for each sample."""
        rows = 2 if self.guided else 1
        return rows * self.outputs * self.steps * (self.output.pixels + self.reference.pixels) // _TOKEN_SIDE**2


@dataclass(frozen=True, slots=True)
class Rate:
    """One replica's rate: `seconds_per_token` from its log at start; `overhead_s`: encode and decode of each output."""

    seconds_per_token: float
    overhead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The need for hardware.

    `edit_s`: seconds of GPU for one request. `busy`: GPUs that are busy on average. `answer_bytes_per_s`: of all
    answers. `handle_bytes_per_s`: of pictures between ingress and replicas.
    """

    edit_s: float
    busy: float
    gpus: int
    ingress: int
    proxies: int
    answer_bytes_per_s: float
    handle_bytes_per_s: float


def plan(traffic: Traffic, rate: Rate, busy_share: float) -> Plan:
    """Return the need of the traffic if each GPU may be busy `busy_share` of the time."""
    edit_s = traffic.request_tokens * rate.seconds_per_token + traffic.outputs * rate.overhead_s
    busy = traffic.requests_per_s * edit_s
    pixels_per_s = traffic.requests_per_s * traffic.outputs * traffic.output.pixels
    inputs_per_s = traffic.requests_per_s * traffic.pictures * traffic.reference.pixels
    answers = pixels_per_s * _PNG_BYTES
    return Plan(
        edit_s=edit_s,
        busy=busy,
        gpus=_at_least_one(busy / busy_share),
        ingress=_at_least_one(pixels_per_s / _PNG_PIXELS * _PNG_S / _BUSY),
        proxies=_at_least_one(answers / _PROXY_BYTES_PER_S / _BUSY),
        answer_bytes_per_s=answers,
        handle_bytes_per_s=3 * (pixels_per_s + inputs_per_s),
    )


def _at_least_one(count: float) -> int:
    # Rounding errors just above a whole number count as that number.
    return max(1, math.ceil(count - 1e-9))


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.capacity", description=__doc__)
    parser.add_argument("--requests-per-second", type=float, required=True)
    parser.add_argument("--seconds-per-token", type=float, required=True, help="from the replica's log at start")
    parser.add_argument("--pictures", type=int, default=1, help="in one request")
    parser.add_argument("--variants", type=int, default=1, help="n")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=_size, default=Size(1024, 1024), help="of an output, WxH")
    parser.add_argument("--reference", type=_size, default=Size(1024, 1024), help="of an input to the model, WxH")
    parser.add_argument("--unguided", action="store_true", help="guidance_scale=1")
    parser.add_argument("--overhead", type=float, default=0.0, help="seconds of encode and decode for each output")
    parser.add_argument("--busy", type=float, default=0.6, help="share of the time that a GPU may be busy")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    traffic = Traffic(
        requests_per_s=options.requests_per_second,
        pictures=options.pictures,
        variants=options.variants,
        steps=options.steps,
        output=options.size,
        reference=options.reference,
        guided=not options.unguided,
    )
    found = plan(traffic, Rate(options.seconds_per_token, options.overhead), options.busy)
    print(f"one request on one GPU   {found.edit_s:.2f} s")
    print(f"GPUs busy on average     {found.busy:.1f}")
    print(f"GPUs                     {found.gpus}   (each busy {options.busy:.0%} of the time)")
    print(f"EditIngress replicas     {found.ingress}   (a core each, PNG)")
    print(f"nodes with a proxy       {found.proxies}")
    print(f"answers                  {found.answer_bytes_per_s / 1e6:.1f} MB/s")
    print(f"pictures by handle       {found.handle_bytes_per_s / 1e6:.1f} MB/s")


if __name__ == "__main__":
    main()
