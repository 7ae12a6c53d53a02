"""C2PA signatures, read by C2PA's own reader."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import c2pa
import numpy as np
import PIL.Image
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import ValidationError

from serve_app.images.encoding import OutputFormat, encode
from serve_app.images.output_file import encode_marked
from serve_app.images.provenance import EDITED, GENERATED, Source
from serve_app.images.signing import check_signing
from serve_app.settings import ProvenanceSettings
from tests.certificates import Chain, make_chain
from tests.pictures import photo, source_type

FORMATS = get_args(OutputFormat)
CHAIN = make_chain()


def read(data: bytes, output_format: str, root: bytes = CHAIN.root) -> tuple[str, list[str], dict[str, Any]]:
    """Return the state of the file's signature, what is wrong with it, and its manifest."""
    context = c2pa.Context.from_dict({"trust": {"user_anchors": root.decode()}, "verify": {"verify_trust": True}})
    with c2pa.Reader(f"image/{output_format}", io.BytesIO(data), context=context) as reader:
        found = json.loads(reader.json())
        state = reader.get_validation_state()
    faults = [status["code"] for status in found.get("validation_status", [])]
    return state, faults, found["manifests"][found["active_manifest"]]


def sign(settings: ProvenanceSettings, output_format: OutputFormat = "png", source: Source = EDITED) -> bytes:
    return encode_marked(photo(), output_format, 90, source, settings)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_file_is_valid_and_trusted(output_format: OutputFormat, tmp_path: Path) -> None:
    data = sign(CHAIN.settings(tmp_path), output_format)
    state, faults, manifest = read(data, output_format)
    assert (state, faults) == ("Trusted", [])
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"]) == ("serve-image-edits", version("serve-image-edits"))
    # The other mark is still there, below the signature.
    assert source_type(data) is not None
    with (
        PIL.Image.open(io.BytesIO(data)) as signed,
        PIL.Image.open(io.BytesIO(encode(photo(), output_format, 90))) as plain,
    ):
        np.testing.assert_array_equal(np.asarray(signed), np.asarray(plain))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_changed_byte_breaks_the_signature(output_format: OutputFormat, tmp_path: Path) -> None:
    data = sign(CHAIN.settings(tmp_path), output_format)
    # Where the pixels begin, in each format.
    marker = {"png": b"IDAT", "jpeg": b"\xff\xda", "webp": b"VP8 "}[output_format]
    places = {
        data.index(marker) + 50: "assertion.dataHash.mismatch",
        data.index(b":DigitalSourceType>") + 30: "assertion.dataHash.mismatch",
        data.index(b"c2pa.created"): "assertion.hashedURI.mismatch",
    }
    for place, fault in places.items():
        changed = bytearray(data)
        changed[place] ^= 1
        state, faults, _ = read(bytes(changed), output_format)
        assert state == "Invalid"
        assert fault in faults


@pytest.mark.parametrize(
    ("source", "actions"), [(EDITED, ["c2pa.created", "c2pa.edited"]), (GENERATED, ["c2pa.created"])]
)
def test_the_manifest_says_how_the_file_came_to_be(source: Source, actions: list[str], tmp_path: Path) -> None:
    _, _, manifest = read(sign(CHAIN.settings(tmp_path), source=source), "png")
    [assertion] = manifest["assertions"]
    assert assertion["label"] == "c2pa.actions.v2"
    found = assertion["data"]["actions"]
    assert [action["action"] for action in found] == actions
    assert {action["digitalSourceType"].rsplit("/", 1)[-1] for action in found} == {source}


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "P-521", "Ed25519", "RSA"],
)
def test_the_algorithm_is_that_of_the_key(key: Any, tmp_path: Path) -> None:
    chain = make_chain(key)
    settings = chain.settings(tmp_path)
    check_signing(settings)
    assert read(sign(settings), "png", chain.root)[:2] == ("Trusted", [])


def test_a_key_as_openssl_writes_it_by_default_is_read(tmp_path: Path) -> None:
    chain = make_chain(form=serialization.PrivateFormat.TraditionalOpenSSL)
    assert b"BEGIN EC PRIVATE KEY" in chain.key
    check_signing(chain.settings(tmp_path))


def test_threads_share_the_signer(tmp_path: Path) -> None:
    settings = CHAIN.settings(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: sign(settings, "jpeg"), range(32)))
    assert {read(data, "jpeg")[0] for data in files} == {"Trusted"}


OTHER = make_chain()
DSA = make_chain(dsa.generate_private_key(1024))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (Chain(CHAIN.certificates, OTHER.key, b""), "c2pa_key: .*signing.key is not the key of the first certificate"),
        (Chain(CHAIN.certificates, b"no key", b""), "c2pa_key: .*signing.key holds no private key in PEM"),
        (Chain(CHAIN.certificates, make_chain(password=b"x").key, b""), "in PEM without a password"),
        (Chain(b"nothing", CHAIN.key, b""), "c2pa_certificate: .*signing.pem holds no PEM certificates"),
        (DSA, "signs with P-256, P-384, P-521, Ed25519 or RSA"),
        (make_chain(usage=ExtendedKeyUsageOID.SERVER_AUTH), "cannot sign pictures: .*certificate is invalid"),
    ],
    ids=["another key", "no key", "password", "no certificate", "dsa", "of a web server"],
)
def test_files_that_cannot_sign_stop_the_start(chain: Chain, message: str, tmp_path: Path) -> None:
    settings = chain.settings(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        check_signing(settings)
    for line in chain.key.splitlines()[1:-1]:
        assert line.decode() not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    settings = CHAIN.settings(tmp_path)
    (tmp_path / "signing.key").unlink()
    with pytest.raises(ValueError, match=r"provenance\.c2pa_key: cannot read .*signing\.key"):
        check_signing(settings)


def test_without_the_package_the_start_stops_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    check_signing(ProvenanceSettings())
    with pytest.raises(ValueError, match=r"c2pa-python, which is not installed.* uv pip install .*'\.\[c2pa\]'"):
        check_signing(CHAIN.settings(tmp_path))


def test_half_of_the_settings_is_refused(tmp_path: Path) -> None:
    for half in ({"c2pa_certificate": tmp_path}, {"c2pa_key": tmp_path}):
        with pytest.raises(ValidationError, match="are set together, or neither"):
            ProvenanceSettings(**half)
    with pytest.raises(ValidationError, match="no signatures to give a time"):
        ProvenanceSettings(c2pa_timestamp_url="http://tsa.example")
    with pytest.raises(ValidationError, match="c2pa_timestamp_url"):
        CHAIN.settings(tmp_path, c2pa_timestamp_url="tsa.example")


_CONFIGURATION = """
[tsa]
default_tsa = one
[one]
serial = serial
signer_cert = tsa.pem
certs = root.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
"""


@contextmanager
def timestamp_authority(folder: Path) -> Iterator[str]:
    """Yield the URL of an authority that answers as RFC 3161 says, by openssl."""
    chain = make_chain(rsa.generate_private_key(65537, 2048), ExtendedKeyUsageOID.TIME_STAMPING)
    for name, data in (("tsa.pem", chain.certificates), ("tsa.key", chain.key), ("root.pem", chain.root)):
        (folder / name).write_bytes(data)
    (folder / "serial").write_text("01")
    (folder / "tsa.cnf").write_text(_CONFIGURATION)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            command = "openssl ts -reply -config tsa.cnf -section one -queryfile query -out reply"
            subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
            reply = (folder / "reply").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_authority_gives_the_time_and_one_that_does_not_answer_stops_the_start(tmp_path: Path) -> None:
    with timestamp_authority(tmp_path) as url:
        settings = CHAIN.settings(tmp_path, c2pa_timestamp_url=url)
        check_signing(settings)
        state, _, manifest = read(sign(settings), "png")
        assert state == "Trusted"
        assert manifest["signature_info"]["time"].startswith("20")
    with pytest.raises(ValueError, match="cannot sign pictures: "):
        check_signing(settings)
