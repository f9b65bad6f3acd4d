"""Ed25519 signatures over a manifest, with keys in PEM files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from akd_deploy.errors import CorruptFileError, MissingFileError
from akd_deploy.export.manifest import canonical_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CONTEXT = b"akd-deploy-bundle manifest v1\n"
"""Signed before the manifest, so that a signature made for something else is never one of a bundle."""

MAX_SIGNATURE_BYTES = 512
"""A signature file has 247 bytes."""

MAX_KEY_BYTES = 16 << 10
"""An Ed25519 key in PEM has 120 bytes; 16 KiB leaves room for comments and stops a wrong file early."""


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file without a password (`openssl genpkey -algorithm ed25519`).

    Raises:
        MissingFileError, CorruptFileError: no such file, or not such a key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_pem(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path, "private", str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "private", f"a {type(key).__name__}")
    return key


def read_public_key(path: Path) -> str:
    """The public key in a PEM file (`openssl pkey -in key.pem -pubout`), as 64 hexadecimal digits.

    Raises:
        MissingFileError, CorruptFileError: no such file, or not such a key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_pem(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path, "public", str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "public", f"a {type(key).__name__}")
    return key.public_bytes_raw().hex()


def public_key_of(key: Ed25519PrivateKey) -> str:
    """The public half of a private key, as 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The bytes of `manifest.sig`: algorithm, public key and signature as canonical JSON."""
    return canonical_json(
        {
            "algorithm": "ed25519",
            "public_key": public_key_of(key),
            "signature": key.sign(_CONTEXT + manifest).hex(),
        }
    )


def signature_problem(signature: bytes, manifest: bytes, signed_by: str | None) -> str | None:
    """Why a signature file does not sign this manifest with the key that the manifest names, or None."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        fields = json.loads(signature)
        whole = (
            isinstance(fields, dict)
            and set(fields) == {"algorithm", "public_key", "signature"}
            and all(isinstance(value, str) for value in fields.values())
            and fields["algorithm"] == "ed25519"
            and re.fullmatch("[0-9a-f]{128}", fields["signature"]) is not None  # not the same number in capitals
            and canonical_json(fields) == signature
        )
        if not whole:
            return "the signature file is not one that this program writes"
        if fields["public_key"] != signed_by:
            return "the signature was made with another key than the manifest names"
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(fields["public_key"]))
        key.verify(bytes.fromhex(fields["signature"]), _CONTEXT + manifest)
    except (ValueError, RecursionError) as error:
        return f"the signature file cannot be read: {str(error)[:120]}"
    except InvalidSignature:
        return "the signature does not fit the manifest"
    return None


def _pem(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(asked=f"the key {path}", found="no such file", next="Check the path.")
    with path.open("rb") as file:
        data = file.read(MAX_KEY_BYTES + 1)
    if len(data) > MAX_KEY_BYTES:
        raise _not_a_key(path, "PEM", f"more than {MAX_KEY_BYTES} bytes")
    return data


def _not_a_key(path: Path, kind: str, found: str) -> CorruptFileError:
    return CorruptFileError(
        asked=f"an Ed25519 {kind} key in {path}",
        found=found,
        next="Make one with: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout.",
    )
