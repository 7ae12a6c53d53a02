"""C2PA signatures of output files (https://c2pa.org), by c2pa-python, which is the extra `c2pa`."""

import io
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.images.encoding import OutputFormat, encode
from serve_app.images.provenance import EDITED, Source, source_uri
from serve_app.settings import ProvenanceSettings

_PACKAGE = "c2pa"
_DISTRIBUTION = "serve-image-edits"
_EC_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# Thumbnails would double the time, and the output itself is small.
_CONTEXT = {"builder": {"thumbnail": {"enabled": False}}}


def check_signing(settings: ProvenanceSettings) -> None:
    """Sign a tiny picture of each format, if outputs are to be signed. Raises ValueError, for the operator, if not."""
    if settings.c2pa_certificate is None:
        return
    if find_spec(_PACKAGE) is None:
        raise ValueError(
            "provenance.c2pa_certificate needs the package c2pa-python, which is not installed; install the extra: "
            "uv pip install --constraint constraints.txt --editable '.[c2pa]'"
        )
    import c2pa

    load_signer.cache_clear()
    signer = load_signer(settings)
    formats: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")
    for output_format in formats:
        try:
            signer.sign(encode(np.zeros((8, 8, 3), np.uint8), output_format, 90), output_format, EDITED)
        except c2pa.C2paError as error:
            raise ValueError(
                f"provenance.c2pa_certificate: {settings.c2pa_certificate} cannot sign pictures: {error}"
            ) from None


@lru_cache(maxsize=2)
def load_signer(settings: ProvenanceSettings) -> "Signer":
    """Return the signer of this process for the certificate and key that the settings name. Raises ValueError."""
    return Signer(settings)


class Signer:
    """A certificate with its key. Threads may share it.

    Raises ValueError if one of the files cannot be used, or if the key is not the certificate's.
    """

    def __init__(self, settings: ProvenanceSettings) -> None:
        import c2pa

        assert settings.c2pa_certificate is not None
        assert settings.c2pa_key is not None
        chain = _read("provenance.c2pa_certificate", settings.c2pa_certificate)
        algorithm, key = _algorithm_and_key(settings, chain, _read("provenance.c2pa_key", settings.c2pa_key))
        try:
            info = c2pa.C2paSignerInfo(algorithm, chain, key, settings.c2pa_timestamp_url)
            self._signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise ValueError(f"provenance.c2pa_certificate, c2pa_key: {error}") from None
        self._context = c2pa.Context.from_dict(_CONTEXT)

    def sign(self, data: bytes, output_format: OutputFormat, source: Source) -> bytes:
        """Return the picture file with a manifest that says how it was made. Raises c2pa's errors."""
        import c2pa

        signed = io.BytesIO()
        with c2pa.Builder(_manifest(source), self._context) as builder:
            builder.sign(self._signer, f"image/{output_format}", io.BytesIO(data), signed)
        return signed.getvalue()


def _manifest(source: Source) -> dict[str, Any]:
    """Return what is signed: the program, and its actions. A manifest has to begin with how the file came to be."""
    names = ["c2pa.created", "c2pa.edited"] if source == EDITED else ["c2pa.created"]
    actions = [{"action": name, "digitalSourceType": source_uri(source)} for name in names]
    return {
        "claim_generator_info": [{"name": _DISTRIBUTION, "version": version(_DISTRIBUTION)}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{setting}: cannot read {path}: {error}") from None


def _algorithm_and_key(settings: ProvenanceSettings, chain: bytes, pem: bytes) -> tuple[str, bytes]:
    """Return C2PA's name of the key's algorithm, and the key in the one form that c2pa (0.38) reads, PKCS #8.

    Raises ValueError. No message has anything of the key.
    """
    # Comes with c2pa-python.
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        public = x509.load_pem_x509_certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        message = "holds no PEM certificates, the server's own first"
        raise ValueError(f"provenance.c2pa_certificate: {settings.c2pa_certificate} {message}: {error}") from None
    where = f"provenance.c2pa_key: {settings.c2pa_key}"
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{where} holds no private key in PEM without a password") from None
    if key.public_key() != public:
        raise ValueError(f"{where} is not the key of the first certificate in {settings.c2pa_certificate}")
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in _EC_ALGORITHMS:
            algorithm = _EC_ALGORITHMS[key.curve.name]
        case ed25519.Ed25519PrivateKey():
            algorithm = "ed25519"
        case rsa.RSAPrivateKey():
            algorithm = "ps256"
        case _:
            raise ValueError(
                f"{where}: C2PA signs with P-256, P-384, P-521, Ed25519 or RSA, not with a key of this kind"
            )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return algorithm, key.private_bytes(*form)
