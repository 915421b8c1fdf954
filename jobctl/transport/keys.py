"""Keys and certificates: which of ours to offer, in which order, signatures, and host certificates.

The order, and which files belong together, are those of OpenSSH (pubkey_prepare() in
sshconnect2.c).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import ssh as formats

from jobctl import configfile
from jobctl.model import printable
from jobctl.transport.config import Settings
from jobctl.transport.hostkeys import CERT_SUFFIX, fits, type_of
from jobctl.transport.keyagent import AgentError, AgentKey, KeyAgent, pack, unpack

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_CURVES: dict[str, tuple[str, type[hashes.HashAlgorithm]]] = {
    "secp256r1": ("ecdsa-sha2-nistp256", hashes.SHA256),
    "secp384r1": ("ecdsa-sha2-nistp384", hashes.SHA384),
    "secp521r1": ("ecdsa-sha2-nistp521", hashes.SHA512),
}
_RSA_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "rsa-sha2-256": hashes.SHA256,
    "rsa-sha2-512": hashes.SHA512,
}
_MAGIC = b"openssh-key-v1\0"
_ARMOUR = re.compile(
    rb"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END OPENSSH PRIVATE KEY-----", re.DOTALL
)
_MOST_BYTES = 1024 * 1024
_NO_KEY = "is no private key that can be used"
_PUTTY = "is a key of PuTTY: puttygen -O private-openssh turns it into one of OpenSSH"


class Unusable(Exception):
    """A key that cannot be used. The message says why, after the name of the file."""


class WrongPassphrase(Exception):
    """The private key is encrypted, with something else than the passphrase given."""


class Offer(NamedTuple):
    """A key that we may log in with."""

    name: str
    """What people know it by: its file, or its comment in the agent."""
    blob: bytes
    """The public key or certificate; empty where only the decrypted file would tell."""
    path: str = ""
    """The file of the private key, unless the agent holds it."""
    encrypted: bool = False
    agent: KeyAgent | None = None
    agent_blob: bytes = b""
    """By what the agent knows the key."""


class _File(NamedTuple):
    """What a file named by IdentityFile holds."""

    path: str
    blob: bytes
    encrypted: bool
    private: bool
    problem: str = ""
    """Why it cannot be used, after its name."""


_USUAL = re.compile(r".*/\.ssh/id_(rsa|dsa|xmss|ecdsa|ecdsa_sk|ed25519|ed25519_sk)")
"""Where ssh looks although nobody has said that there is a key."""


def offers(
    settings: Settings, agent: KeyAgent | None, held: list[AgentKey]
) -> tuple[list[Offer], list[str]]:
    """Return the keys to offer: certificates, agent keys named in the configuration, other
    agent keys unless IdentitiesOnly, and those that are only in files.

    And what to say of those that cannot be offered.
    """
    files = list(map(_read_file, settings.identity_files))
    by_blob = {key.blob: key for key in held}
    certificates = [
        offer
        for path in _certificate_files(settings)
        for offer in _certificate(path, files, by_blob, agent)
    ]
    named = [
        Offer(file.path, file.blob, agent=agent, agent_blob=file.blob)
        for file in files
        if file.blob in by_blob
    ]
    listed = {file.blob for file in files} | {offer.blob for offer in certificates}
    others = [
        Offer(f"{key.comment} (agent)", key.blob, agent=agent, agent_blob=key.blob)
        for key in held
        if key.blob not in listed and not settings.flag("identitiesonly")
    ]
    alone = [
        Offer(file.path, file.blob, file.path, file.encrypted)
        for file in files
        if file.private and file.blob not in by_blob
    ]
    usable = {offer.blob for offer in (*certificates, *named, *alone)}
    useless = [
        f"key {printable(file.path)}, which {file.problem}"
        for file in files
        if file.problem and not (file.blob and file.blob in usable)
    ]
    return certificates + named + others + alone, useless


def _certificate_files(settings: Settings) -> list[str]:
    beside = [f"{path}-cert.pub" for path in settings.identity_files]
    return list(dict.fromkeys([*settings.certificate_files, *beside]))


def _certificate(
    path: str, files: list[_File], held: dict[bytes, AgentKey], agent: KeyAgent | None
) -> list[Offer]:
    """Return the certificate in a file, with the key that it is for, if we have that."""
    blob = _public_line(_contents(path))
    if not type_of(blob).endswith(CERT_SUFFIX):
        return []
    try:
        certificate = formats.load_ssh_public_identity(_line(blob))
        assert isinstance(certificate, formats.SSHCertificate)
        key = _public_blob(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return []
    for known in (blob, key):
        if known in held:
            return [Offer(path, blob, agent=agent, agent_blob=known)]
    for file in files:
        if file.private and file.blob == key:
            return [Offer(path, blob, file.path, file.encrypted)]
    return []


def _contents(path: str) -> bytes:
    try:
        return _read(path)
    except OSError:
        return b""


def _read(path: str) -> bytes:
    with open(path, "rb", opener=configfile.opener) as file:
        return file.read(_MOST_BYTES)


def _read_file(path: str) -> _File:
    """Return what a file holds; the public part may be in PATH.pub, or not be known."""
    beside = _public_line(_contents(f"{path}.pub"))
    try:
        data = _read(path)
    except FileNotFoundError:
        problem = "" if _USUAL.fullmatch(path) and not beside else "does not exist"
        return _File(path, beside, False, False, problem)
    except OSError as error:
        return _File(path, beside, False, False, f"cannot be read: {error.strerror}")
    if blob := _public_line(data):
        return _File(path, blob, False, False, "is the public part alone")
    armour = _ARMOUR.search(data)
    if armour:
        try:
            inside = base64.b64decode(armour[1])
            cipher, rest = unpack(inside[len(_MAGIC) :])
            _function, rest = unpack(rest)
            _options, rest = unpack(rest)
            blob, rest = unpack(rest[4:])
        except (binascii.Error, AgentError):
            return _File(path, beside, False, False, _NO_KEY)
        return _File(path, blob, cipher != b"none", True)
    if b"PRIVATE KEY-----" in data:
        return _File(path, beside, b"ENCRYPTED" in data, True)
    kind = _PUTTY if data.startswith(b"PuTTY-User-Key-File") else _NO_KEY
    return _File(path, beside, False, False, kind)


def _public_line(data: bytes) -> bytes:
    """Return the key of a line TYPE BASE64 COMMENT; nothing if it is no such line."""
    words = data.split(None, 2)
    if len(words) < 2 or len(words[0]) > 64:
        return b""
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        return b""
    return blob if type_of(blob).encode() == words[0] else b""


def _line(blob: bytes) -> bytes:
    return type_of(blob).encode() + b" " + base64.b64encode(blob)


def _public_blob(key: formats.SSHCertPublicKeyTypes) -> bytes:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def load(path: str, passphrase: str | None) -> PrivateKey:
    """Return the private key in a file. Raises WrongPassphrase and Unusable."""
    data = _contents(path)
    if not data:
        raise Unusable("cannot be read")
    about = os.stat(path)
    if about.st_uid == os.getuid() and about.st_mode & 0o077:
        raise Unusable("can be read by others: chmod 600 it")
    secret = None if passphrase is None else passphrase.encode()
    read = formats.load_ssh_private_key
    if not _ARMOUR.search(data):
        read = serialization.load_pem_private_key  # type: ignore[assignment]
    try:
        key = read(data, secret)
    except TypeError:  # encrypted, but no passphrase given, or the other way round
        if passphrase is None:
            raise WrongPassphrase from None
        raise Unusable("needs no passphrase") from None
    except UnsupportedAlgorithm:
        raise Unusable("is of an unknown kind") from None
    except ValueError:
        if passphrase is None:
            raise Unusable(_NO_KEY) from None
        raise WrongPassphrase from None
    if not isinstance(key, PrivateKey):
        raise Unusable("is a DSA key, which servers refuse these days: make a new one")
    return key


def public_blob(key: PrivateKey) -> bytes:
    """Return the public part of a private key as SSH sends it."""
    return _public_blob(key.public_key())


def sign(key: PrivateKey, data: bytes, algorithm: str) -> bytes:
    """Return the signature of data in the form that SSH sends (RFC 4253, 5656, 8332, 8709)."""
    if isinstance(key, rsa.RSAPrivateKey):
        name = algorithm.partition("-cert-")[0]
        return _signature(name, key.sign(data, padding.PKCS1v15(), _RSA_HASHES[name]()))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        name, digest = _CURVES[key.curve.name]
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest())))
        return _signature(name, pack(_mpint(r)) + pack(_mpint(s)))
    return _signature("ssh-ed25519", key.sign(data))


def _signature(name: str, data: bytes) -> bytes:
    return pack(name.encode()) + pack(data)


def _mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def algorithm_for(blob: bytes, accepted: set[str], ours: Sequence[str] | None = None) -> str:
    """Return the algorithm to sign with by a key.

    Raises Unusable where there is none that both sides take.

    :param accepted: those that the server names, if it does.
    :param ours: those that the configuration allows, in this order; None: all.
    """
    kind = type_of(blob)
    base = kind.removesuffix(CERT_SUFFIX)
    suffix = CERT_SUFFIX if kind != base else ""
    if base == "ssh-dss":
        raise Unusable("is a DSA key, which servers refuse these days: make a new one")
    names = [kind]
    if base == "ssh-rsa":
        names = [name + suffix for name in ("rsa-sha2-512", "rsa-sha2-256")]
    names = [name for name in ours if name in names] if ours is not None else names
    if not names:
        raise Unusable("PubkeyAcceptedAlgorithms in the settings leaves out")
    if base != "ssh-rsa":
        return kind
    for name in names:
        bare = name.removesuffix(CERT_SUFFIX)
        if not accepted or bare in accepted or bare + CERT_SUFFIX in accepted:
            return name
    raise Unusable("is an RSA key, and the server takes only SHA-1 signatures of those")


class HostCertificate(NamedTuple):
    """What a machine's certificate says, once its signature has been checked."""

    authority: bytes
    key: bytes
    problem: str
    """Why it does not count; empty if it does."""


def host_certificate(blob: bytes, name: str) -> HostCertificate:
    """Return what is in the certificate that a machine has shown for a name.

    The rules are those of sshkey_cert_check_authority() in OpenSSH. Raises Unusable for one
    that cannot be read or whose signature is wrong.
    """
    try:
        certificate = formats.load_ssh_public_identity(_line(blob))
        assert isinstance(certificate, formats.SSHCertificate)
        certificate.verify_cert_signature()
        authority = _public_blob(certificate.signature_key())
        key = _public_blob(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise Unusable("cannot be verified") from None
    return HostCertificate(authority, key, _problem(certificate, name))


def _problem(certificate: formats.SSHCertificate, name: str) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).timestamp()
    if certificate.type is not formats.SSHCertificateType.HOST:
        return "is not one for hosts"
    if now < certificate.valid_after:
        return "is not valid yet"
    if now >= certificate.valid_before:
        return "has expired"
    if certificate.critical_options:
        return "has conditions that are not understood"
    principals = [
        principal.decode("utf-8", "replace") for principal in certificate.valid_principals
    ]
    if principals and not any(fits(pattern, name) for pattern in principals):
        return f"is for {', '.join(principals)}"
    return ""
