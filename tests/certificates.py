"""Certificates made for one test: a root, and under it a leaf as C2PA asks for, both valid for some days."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from serve_app.settings import ProvenanceSettings

USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """PEM: the leaf and the root, the leaf's key, the root alone."""

    certificates: bytes
    key: bytes
    root: bytes

    def settings(self, folder: Path, **others: Any) -> ProvenanceSettings:
        """Write the files, and return the settings that name them."""
        certificate, key = folder / "signing.pem", folder / "signing.key"
        certificate.write_bytes(self.certificates)
        key.write_bytes(self.key)
        return ProvenanceSettings(c2pa_certificate=certificate, c2pa_key=key, **others)


def make_chain(
    key: Any = None,
    usage: ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    password: bytes | None = None,
    dns: str | None = None,
) -> Chain:
    """Return a chain whose leaf has this key, by default of P-256, this extended usage, and maybe this host's name."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    key = key or ec.generate_private_key(ec.SECP256R1())
    root = _certificate("root", root_key.public_key(), root_key, "key_cert_sign", None)
    leaf = _certificate("leaf", key.public_key(), root_key, "digital_signature", usage, dns)
    pems = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in (leaf, root)]
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return Chain(b"".join(pems), key.private_bytes(serialization.Encoding.PEM, form, hidden), pems[1])


def _certificate(
    name: str,
    public: Any,
    signer: ec.EllipticCurvePrivateKey,
    usage: str,
    extended: ObjectIdentifier | None,
    dns: str | None = None,
) -> x509.Certificate:
    now, used = datetime.now(UTC), {one: one == usage for one in USAGES}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("root"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.BasicConstraints(extended is None, None), critical=True)
        .add_extension(x509.KeyUsage(**used), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([extended]), critical=True)
    if dns is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(common: str) -> x509.Name:
    names = {NameOID.COUNTRY_NAME: "DE", NameOID.ORGANIZATION_NAME: "Image edits", NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in names.items()])
