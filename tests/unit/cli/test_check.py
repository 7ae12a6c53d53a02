"""`image-edits check`: its findings about installations and servers."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.cli.check import DISTRIBUTION, Finding, check_server, keys, packages, quantization, room, signing
from serve_app.cli.machine import Disk, Gpu, available_memory
from serve_app.models.footprint import PartSize, Weights
from serve_app.models.memory import estimate
from serve_app.settings import AppSettings, AuthSettings, ModelSettings, ProvenanceSettings
from tests.certificates import make_chain
from tests.editors import Inverter
from tests.http_calls import MODEL
from tests.http_server import listening
from tests.published_size import published

GIB = 2**30


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_EDITS_API_KEYS", "IMAGE_EDITS_API_KEY", "IMAGE_EDITS_SERVER"):
        monkeypatch.delenv(name, raising=False)


def said(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in findings]


class TestServer:
    def test_a_server_without_keys(self) -> None:
        with listening(create_app(Inverter(), AppSettings(model=MODEL))) as url:
            assert said(check_server(url)) == [
                ("ok", f"{url} is alive and ready"),
                ("ok", "it asks for no key"),
                ("ok", "names of its model: Qwen-Image-Edit, lab/edit"),
            ]

    def test_a_server_that_is_not_ready(self) -> None:
        editor = Inverter()
        editor.is_ready = False
        with listening(create_app(editor, AppSettings())) as url:
            assert said(check_server(url))[0] == ("problem", f"{url} is alive, but no replica has a warm model")

    def test_a_server_with_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
        with listening(create_app(Inverter(), AppSettings())) as url:
            last = ("problem", "it asks for a key, and IMAGE_EDITS_API_KEY is not set")
            assert said(check_server(url))[-1] == last
            monkeypatch.setenv("IMAGE_EDITS_API_KEY", "wrong")
            assert said(check_server(url))[-1] == ("problem", "it refuses the key in IMAGE_EDITS_API_KEY")
            monkeypatch.setenv("IMAGE_EDITS_API_KEY", "secret")
            assert said(check_server(url))[1:] == [
                ("ok", "it takes the key in IMAGE_EDITS_API_KEY"),
                ("ok", f"names of its model: {', '.join(AppSettings().model.all_names)}"),
            ]

    def test_a_server_that_does_not_know_its_name(self) -> None:
        with listening(create_app(Inverter(), AppSettings())) as url:
            # Another way to write the address, which is a name to the server.
            url = url.replace("127.0.0.1", "127.1")
            first, last = said(check_server(url))
            assert first == ("ok", f"{url} is alive and ready")
            assert (last[0], "http.allowed_hosts" in last[1]) == ("problem", True)

    def test_no_server_and_another_one(self) -> None:
        assert [level for level, _ in said(check_server("http://127.0.0.1:1"))] == ["problem"]
        assert said(check_server("nowhere"))[0][1].startswith("'nowhere' is not a server address")
        with listening(Starlette()) as url:
            assert said(check_server(url)) == [
                ("problem", f"{url} answers, but not as this server does: 404 Not Found")
            ]


def test_versions_are_compared_with_what_the_package_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sample-1.0.dist-info"
    folder.mkdir()
    needs = ["numpy<2", "pillow>=13", "no-such-package>=1", 'nor-this-one>=1; extra == "dev"']
    lines = ["Metadata-Version: 2.4", "Name: sample", "Version: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
    (folder / "METADATA").write_text("\n".join([*lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    old, missing, fitting = said(packages("sample"))
    assert (old[0], old[1].startswith("numpy is 2."), old[1].endswith("and <2 is needed")) == ("problem", True, True)
    assert missing == ("problem", "no-such-package is not installed")
    assert fitting[0] == "ok"
    assert fitting[1].startswith("packages that fit: pillow 1")
    assert [level for level, _ in said(packages(DISTRIBUTION))] == ["ok"]


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(keys(AuthSettings()))[0][0] == "warning"
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "one,two")
    assert said(keys(AuthSettings())) == [("ok", "API keys: 2")]
    ((level, what),) = said(keys(AuthSettings(keys_file=tmp_path / "none")))
    assert (level, what[:28]) == ("problem", "auth.keys_file: cannot read ")


def test_signing(tmp_path: Path) -> None:
    assert said(signing(ProvenanceSettings())) == []
    settings = make_chain().settings(tmp_path)
    assert said(signing(settings)) == [("ok", f"outputs are signed with {settings.c2pa_certificate}")]
    (tmp_path / "signing.key").write_text("")
    ((level, what),) = said(signing(settings))
    assert (level, what[:21]) == ("problem", "provenance.c2pa_key: ")


INT8 = {"quantization": "int8", "text_encoder_quantization": "int8"}
NF4 = {"quantization": "nf4", "text_encoder_quantization": "nf4"}
OFFLOAD = {"offload": "model", "vae_tiling": True}


@pytest.mark.parametrize(
    ("model", "gpu_gib", "memory_gib", "expected"),
    [
        # Two bytes a parameter on a GPU, four on a CPU; with offload all weights stay in memory too.
        ({}, 57, 1, ["ok"]),
        ({}, 56, 100, ["problem"]),
        ({"dtype": "float32"}, 80, 100, ["problem"]),
        ({}, None, 106, ["ok"]),
        ({}, None, 105, ["problem"]),
        ({"dtype": "bfloat16"}, None, 53, ["ok"]),
        ({"offload": "model"}, 43, 53, ["ok", "ok"]),
        ({"offload": "model"}, 42, 52, ["problem", "problem"]),
        ({"offload": "sequential"}, 6, 53, ["ok", "ok"]),
        (NF4, 20, 1, ["ok"]),
        (NF4, 19, 1, ["problem"]),
        ({**INT8, **OFFLOAD}, 23, 29, ["ok", "ok"]),
        ({**INT8, **OFFLOAD}, 22, 27, ["problem", "problem"]),
        ({**NF4, **OFFLOAD}, 14, 16, ["ok", "ok"]),
        ({**NF4, **OFFLOAD}, 13, 15, ["problem", "problem"]),
        ({"native_area": 512 * 512}, 55, 1, ["ok"]),
    ],
)
def test_a_model_has_room_or_not(
    model: dict[str, Any], gpu_gib: int | None, memory_gib: int, expected: list[str]
) -> None:
    gpu = None if gpu_gib is None else Gpu("H100", gpu_gib * GIB, 80 * GIB, has_bfloat16=True, capability=(9, 0))
    settings = AppSettings.model_validate({"model": model, "engine": {"join": "batch"}})
    assert [level for level, _ in said(room(settings, published(), gpu, memory_gib * GIB))] == expected


def test_a_file_takes_the_place_of_the_transformer() -> None:
    part = replace(published().parts["transformer"], file_bytes=13 * 10**9)
    settings = AppSettings.model_validate({"model": {"quantization": "gguf:a.gguf", "device": "cuda"}})
    ((level, what),) = said(room(settings, published(transformer=part), None, GIB))
    # 13 GB, and the other parts in 16 bits.
    assert (level, what.partition("which ")[2][:16]) == ("warning", "26.8 GiB weights")


def test_larger_forwards_take_more() -> None:
    few, many = (
        AppSettings.model_validate({"model": {"vae_tiling": True}, "engine": {"batch_tokens": tokens}})
        for tokens in (8192, 65536)
    )
    one, other = (estimate(settings, published(), 2).work_bytes for settings in (few, many))
    # A guided edit has 16384 image tokens, and always fits.
    assert other == pytest.approx(4 * one, rel=1e-6)


def test_prefixes_and_their_cache_need_memory_too() -> None:
    gpu = Gpu("H100", 70 * GIB, 80 * GIB, has_bfloat16=True, capability=(9, 0))
    size = replace(published(), width=4096, prefix_blocks=32)
    for cache_gb, needed, level in ((0, 2.4, "ok"), (20, 22.4, "problem")):
        settings = AppSettings.model_validate({"engine": {"prefix_cache_gb": cache_gb}})
        assert estimate(settings, size, 2).prefix_bytes == pytest.approx(needed * 1e9, rel=0.07)
        ((found, what),) = said(room(settings, size, gpu, GIB))
        assert (found, "for prefixes" in what) == (level, True)


def test_a_download_has_room_or_not(tmp_path: Path) -> None:
    free = Disk.of(tmp_path / "not" / "there" / "yet").free_bytes
    for size, expected in ((free // 2, "ok"), (2 * free, "problem")):
        weights = Weights({"vae": PartSize(1, 0, 1, size)}, 0, tmp_path / "cache")
        download, _ = said(room(AppSettings(), weights, None, GIB))
        assert (download[0], str(tmp_path / "cache") in download[1]) == (expected, True)


def test_a_quantisation_that_the_gpu_cannot_do_is_a_problem() -> None:
    if find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    settings = ModelSettings(quantization="int8")
    ((level, what),) = said(quantization(settings, None))
    assert (level, what.startswith("model.quantization: int8 needs the package torchao")) == ("problem", True)
    assert said(quantization(ModelSettings(), None)) == []


def test_memory_is_that_of_this_machine() -> None:
    text = Path("/proc/meminfo").read_text()
    total = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemTotal:"))
    assert 0 < available_memory() < total
