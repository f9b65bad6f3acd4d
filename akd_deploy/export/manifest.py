"""A bundle's manifest: what every file must be, and what was measured, promised and built."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Any
from unicodedata import category

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.export.engine_facts import EngineFacts, engine_facts_from_dict, target_in_manifest
from akd_deploy.export.promises import contradiction
from akd_deploy.target import Target

FORMAT = "akd-deploy-bundle"
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
"""Version 1 has no `engines`."""
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
UNLISTED = (MANIFEST_NAME, SIGNATURE_NAME)
"""The two files that a manifest cannot list: itself, and the signature over itself."""

MAX_MANIFEST_BYTES = 1 << 20
"""1 MiB: `MAX_FILES` entries take 0.2 MiB, the facts a few KiB; a larger one is a mistake or an attack."""
MAX_FILES = 1_000
"""An engine is one to three files; a thousand leaves room for labels and documents and stays quick to check."""
MAX_NAME_BYTES = 200
"""Every file system takes 255 bytes per component; the rest is for the temporary names of unpackers."""
MAX_WHOLE = 2**63 - 1
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what begins a line, turns the direction of a text, or is not seen."""
MAX_DEPTH = 8
"""Folders inside folders; bundles need two."""

ROLES: Mapping[str, str] = {
    "onnx": "the network as deployed, in the target's precision",
    "engine": "what the target's engine loads",
    "engine_part": "a further file that the engine needs beside it",
    "source": "the network before it was cast or quantised",
    "variant": "the network in the precision of a further engine's target",
    "runner": "a program that runs the engine as it was measured",
    "config": "settings: run.toml, config.pbtxt, calibration",
    "document": "labels, licences, reports",
}

_COMPONENT = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever folder it is in and whatever follows a dot."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npy", ".ckpt")
"""Files that load by running what is inside them, or may."""


@dataclass(frozen=True)
class FileEntry:
    """What one file must be: the SHA-256 of its bytes, their number, and its role (a key of `ROLES`)."""

    sha256: str
    size_bytes: int
    role: str


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle says about its network. Mappings hold JSON types, with finite numbers only.

    `latency` has `measured_s`, `predicted_s`, `interval_s` and `budget_s` where known; `provenance` says
    where teacher and data come from; `engines` has the facts about every file of role "engine" that is known
    by more than its bytes; `created` is a date where the caller wants one (it changes the bytes).
    """

    target: Target
    device: DeviceFingerprint
    versions: Mapping[str, str]
    latency: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    accuracy: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, EngineFacts] = field(default_factory=dict)
    created: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Name → entry of every file but the manifest and its signature; `signed_by` is a public key in hexadecimal."""

    files: Mapping[str, FileEntry]
    facts: BundleFacts
    signed_by: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MappingProxyType(dict(sorted(self.files.items()))))

    @property
    def digest(self) -> str:
        """The checksum written inside, 64 hexadecimal digits: what `verify --digest` expects."""
        return hashlib.sha256(canonical_json(self._body())).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON with the checksum of everything else in `manifest_sha256`.

        Raises:
            UsageError: a fact that is not JSON, or a manifest over the limits.
        """
        try:
            data = canonical_json({**self._body(), "manifest_sha256": self.digest})
            manifest_from_bytes(data)  # what cannot be read back is not written
        except (TypeError, ValueError) as error:
            raise UsageError(
                asked="the manifest of a bundle", found=str(error), next="Use JSON types and finite numbers."
            ) from error
        return data

    def with_signer(self, public_key: str | None) -> Manifest:
        return replace(self, signed_by=public_key)

    def with_role(self, role: str) -> list[str]:
        """Names of the files of a role."""
        return [name for name, entry in self.files.items() if entry.role == role]

    def _body(self) -> dict[str, Any]:
        facts = self.facts
        without = self.format_version == 1 and not facts.engines
        engines = {} if without else {"engines": {name: engine.as_dict() for name, engine in facts.engines.items()}}
        return engines | {
            "format": FORMAT,
            "format_version": self.format_version,
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.size_bytes, "role": entry.role}
                for name, entry in self.files.items()
            },
            "target": facts.target.as_dict(),
            "device": dict(facts.device.facts),
            "versions": dict(facts.versions),
            "latency": dict(facts.latency),
            "certificate": facts.certificate,
            "accuracy": facts.accuracy,
            "parity": facts.parity,
            "provenance": dict(facts.provenance),
            "created": facts.created,
            "signed_by": self.signed_by,
        }


def canonical_json(value: object) -> bytes:
    """The one text of a JSON value: sorted keys, no spaces, ASCII, finite numbers, a newline at the end."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def name_problem(name: str) -> str | None:
    """Why a file's name may not be in a bundle, or None.

    Names are relative, of plain ASCII components with forward slashes, so that they mean the same file on
    every system and no archive tool can be led out of its folder.
    """
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"a name of more than {MAX_NAME_BYTES} bytes"
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        return f"{name!r} is more than {MAX_DEPTH} folders deep"
    if not all(_COMPONENT.fullmatch(part) for part in parts):
        return f"{name!r} is not a relative path of letters, digits and ._+- (no dot last) with forward slashes"
    if any(_DEVICES.fullmatch(part) for part in parts):
        return f"{name!r} is a device on Windows"
    if name.lower().endswith(_PICKLES):
        return f"{name!r} may be a pickle, which runs code when it is loaded"
    return None


def allowed_name(name: str) -> str:
    """A file's name as it is, or the nearest one that may be in a bundle: what is not allowed becomes an underscore.

    Of what is refused for what it may hold, as pickles are, nothing is changed.
    """
    allowed = re.sub(r"[^A-Za-z0-9._+-]", "_", name)
    allowed = re.sub(r"^[.+-]+|[.]+$", "_", allowed) or "_"
    if _DEVICES.fullmatch(allowed):
        allowed = f"_{allowed}"
    stem, dot, suffix = allowed.rpartition(".")
    most = MAX_NAME_BYTES // 2 - len(suffix)  # folders before it need room, too
    shortened = f"{stem[:most]}{dot}{suffix}" if dot and most > 0 else allowed[: MAX_NAME_BYTES // 2]
    return f"{shortened[:-1]}_" if shortened.endswith(".") else shortened


_OBJECT, _TEXT = (dict,), (str,)
_KEYS: Mapping[str, tuple[type, ...]] = {
    "format": _TEXT,
    "format_version": (int,),
    "files": _OBJECT,
    "target": _OBJECT,
    "device": _OBJECT,
    "versions": _OBJECT,
    "latency": _OBJECT,
    "certificate": (dict, type(None)),
    "accuracy": (dict, type(None)),
    "parity": (dict, type(None)),
    "provenance": _OBJECT,
    "engines": _OBJECT,
    "created": (str, type(None)),
    "signed_by": (str, type(None)),
    "manifest_sha256": _TEXT,
}


def manifest_from_bytes(data: bytes, where: str = MANIFEST_NAME) -> Manifest:
    """Read a manifest; only the canonical text with the right checksum is one.

    Raises:
        CorruptFileError: anything else; the message says what is wrong.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _corrupt(where, f"{len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise _corrupt(where, "no JSON object")
        canonical = canonical_json(body) == data
    except CorruptFileError:
        raise
    except (ValueError, RecursionError, UnicodeError) as error:
        raise _corrupt(where, f"no JSON: {str(error)[:120]}") from error
    if body.get("format") != FORMAT:
        raise _corrupt(where, f"format {str(body.get('format'))[:40]!r}, not {FORMAT!r}")
    version = body.get("format_version")
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise _corrupt(where, f"format version {str(version)[:40]}; this program reads {known}")
    if not canonical:
        raise _corrupt(where, "text that is not canonical JSON: it was changed after it was written")
    keys = {key: kinds for key, kinds in _KEYS.items() if key != "engines" or version > 1}
    if set(body) != set(keys):
        raise _corrupt(where, f"keys missing or unknown: {', '.join(sorted(set(body) ^ set(keys)))[:200]}")
    for key, kinds in keys.items():
        if not isinstance(body[key], kinds) or isinstance(body[key], bool):
            raise _corrupt(where, f"{key!r} is of the wrong type")
    stated = body.pop("manifest_sha256")
    if hashlib.sha256(canonical_json(body)).hexdigest() != stated:
        raise _corrupt(where, "a checksum that does not fit: the manifest was changed")
    for key, value in body.items():
        _check_plain(value, key, where)
    for key in ("certificate", "latency"):
        _check_promises(body[key] or {}, key, where)
    certificate = body["certificate"] or {}
    if body["certificate"] is not None and (against := contradiction(certificate, body["latency"])):
        raise _corrupt(where, f"a certificate that contradicts itself: {against}")
    budgets = [facts["budget_s"] for facts in (certificate, body["latency"]) if facts.get("budget_s") is not None]
    if len(set(budgets)) > 1:
        raise _corrupt(where, f"a certificate of {budgets[0]:g} s, and a budget of {budgets[1]:g} s in its latency")
    if body["signed_by"] is not None and not _PUBLIC_KEY.fullmatch(body["signed_by"]):
        raise _corrupt(where, "'signed_by' is no Ed25519 public key in hexadecimal")
    files = _files_from_json(body["files"], where)
    manifest = Manifest(files, _facts_from_json(body, files, where), body["signed_by"], version)
    if manifest.digest != stated:
        raise _corrupt(where, "facts that are not written in full")
    return manifest


def _check_plain(value: Any, at: str, where: str) -> None:
    """Only what can be printed and computed with: texts without control characters, whole numbers of 64 bits.

    Where the network comes from may be told in lines.
    """
    free = at.split(".")[0] == "provenance"
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(key, at, where)
            _check_plain(inner, f"{at}.{key}"[:MAX_NAME_BYTES], where)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, at, where)
    elif isinstance(value, str) and any(category(c) in _UNPRINTABLE and not (c in "\n\t" and free) for c in value):
        raise _corrupt(where, f"{at!r} holds control characters")
    elif isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise _corrupt(where, f"{at!r} is a whole number of more than 64 bits")


def _check_promises(facts: Mapping[str, Any], key: str, where: str) -> None:
    """What is told as a promise is one: numbers where numbers belong, in their range."""
    for name, low, high in (("budget_s", 0.0, inf), ("percentile", 0.0, 100.0), ("confidence", 0.0, 1.0)):
        value = facts.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise _corrupt(where, f"{name!r} of its {key} is no number between {low:g} and {high:g}")
    idle_s = facts.get("idle_s", 0.0)
    if isinstance(idle_s, bool) or not isinstance(idle_s, int | float) or idle_s < 0:
        raise _corrupt(where, f"'idle_s' of its {key} is no number of seconds")
    if not isinstance(facts.get("boundary", ""), str):
        raise _corrupt(where, f"'boundary' of its {key} is no text")


def _files_from_json(files: dict[str, Any], where: str) -> dict[str, FileEntry]:
    if len(files) > MAX_FILES:
        raise _corrupt(where, f"{len(files)} files, more than {MAX_FILES}")
    seen: dict[str, str] = {name: name for name in UNLISTED}
    folders: dict[str, str] = {}
    entries = {}
    for name, entry in files.items():
        problem = name_problem(name)
        if problem is not None:
            raise _corrupt(where, problem)
        if name.lower() in seen:
            raise _corrupt(where, f"{name!r} and {seen[name.lower()]!r} are one file where case does not count")
        seen[name.lower()] = name
        for end in (i for i, character in enumerate(name) if character == "/"):
            folder = folders.setdefault(name[:end].lower(), name[:end])
            if folder != name[:end]:
                raise _corrupt(where, f"{name[:end]!r} and {folder!r} are one folder where case does not count")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes", "role"}:
            raise _corrupt(where, f"the entry of {name!r} is not sha256, bytes and role")
        sha256, size, role = entry["sha256"], entry["bytes"], entry["role"]
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise _corrupt(where, f"the sha256 of {name!r} is not 64 hexadecimal digits")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise _corrupt(where, f"the size of {name!r} is not a whole number of bytes")
        if not isinstance(role, str) or role not in ROLES:
            raise _corrupt(where, f"the role of {name!r} is not one of {', '.join(ROLES)}")
        entries[name] = FileEntry(sha256, size, role)
    for both in sorted(folders.keys() & seen.keys()):
        raise _corrupt(where, f"{seen[both]!r} is a file, and a folder of others")
    return entries


def _facts_from_json(body: dict[str, Any], files: Mapping[str, FileEntry], where: str) -> BundleFacts:
    for key in ("device", "versions"):
        if not all(isinstance(value, str) for value in body[key].values()):
            raise _corrupt(where, f"{key!r} holds something other than text")
    engines = {}
    for name, fields in body.get("engines", {}).items():
        engines[name] = engine_facts_from_dict(fields, f"{where}, engine {name[:MAX_NAME_BYTES]!r}")
        needed = {name: "engine"} | dict.fromkeys(engines[name].parts, "engine_part")
        for other, role in needed.items():
            if other not in files or files[other].role != role:
                raise _corrupt(where, f"the facts of engine {name!r}, though {other!r} is no file of role {role!r}")
        network = engines[name].network
        if network is not None and network not in files:
            raise _corrupt(where, f"an engine built from {network!r}, which is not in the bundle")
    return BundleFacts(
        target=target_in_manifest(body["target"], where),
        device=DeviceFingerprint(body["device"]),
        engines=engines,
        **{k: body[k] for k in ("versions", "latency", "certificate", "accuracy", "parity", "provenance", "created")},
    )


def _corrupt(where: str, found: str) -> CorruptFileError:
    return CorruptFileError(asked=f"a bundle's manifest in {where}", found=found, next="Package the bundle again.")
