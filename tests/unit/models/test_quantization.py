"""What a quantisation needs of the installation, the device and the files."""

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from serve_app.models.quantization import check_device, check_quantization, chosen, hub_file, scheme
from serve_app.settings import ModelSettings
from tests.paths import ROOT

KINDS = {"int8": "torchao", "fp8-dynamic": "torchao", "nf4": "bitsandbytes", "gguf:weights.gguf": "gguf"}


@pytest.mark.parametrize(("kind", "package"), KINDS.items())
def test_a_package_that_is_missing_is_named(kind: str, package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=rf"^model\.quantization: {kind} needs the package {package}, which is not"):
        check_quantization(ModelSettings(quantization=kind))


def test_the_setting_of_the_text_encoder_is_named() -> None:
    if find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    with pytest.raises(ValueError, match=r"^model\.text_encoder_quantization: int8 needs"):
        check_quantization(ModelSettings(text_encoder_quantization="int8"))


def test_what_is_not_quantised_needs_nothing() -> None:
    assert chosen(ModelSettings()) == {}
    check_quantization(ModelSettings())


def test_the_extra_and_its_make_target_have_all_packages() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["quantization"]
    packages = {Requirement(text).name for text in extra}
    assert packages == {scheme(kind).package for kind in KINDS}
    assert " ".join(Requirement(text).name for text in extra) in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("capability", "dtype", "complaint"),
    [
        (None, "float32", "8-bit floats, which takes a GPU of CUDA capability 8.9 .* this one is a CPU; use fp8"),
        ((8, 6), "bfloat16", "this one is of capability 8.6"),
        ((8, 9), "float16", "needs model.dtype: bfloat16, not float16"),
    ],
)
def test_a_device_that_cannot_multiply_so_is_named(
    capability: tuple[int, int] | None, dtype: str, complaint: str
) -> None:
    for part in ("quantization", "text_encoder_quantization"):
        with pytest.raises(ValueError, match=rf"^model\.{part}: fp8-dynamic .*{complaint}"):
            check_device(ModelSettings(**{part: "fp8-dynamic"}), capability, dtype)


def test_other_devices_and_kinds_are_taken() -> None:
    for capability in ((8, 9), (9, 0), (12, 0)):
        check_device(ModelSettings(quantization="fp8-dynamic"), capability, "bfloat16")
    for kind in ("none", "int8", "int8-dynamic", "fp8", "nf4", "gguf:weights.gguf"):
        check_device(ModelSettings(quantization=kind), None, "float32")


def test_a_file_is_here_or_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.touch()
    assert hub_file(f"gguf:{path}") is None
    assert hub_file("gguf:lab/edit-GGUF/folder/edit-Q4_K_M.gguf") == ("lab/edit-GGUF", "folder/edit-Q4_K_M.gguf")
    for missing in (tmp_path / "none.gguf", "none.gguf"):
        with pytest.raises(ValueError, match=rf"^model\.quantization: there is no file {missing}, and OWNER/NAME/FILE"):
            hub_file(f"gguf:{missing}")
