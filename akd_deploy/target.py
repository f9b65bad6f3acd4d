"""One deployment target: a device, an engine with its options, a precision and a batch."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from akd_deploy.errors import CorruptFileError, UnknownNameError, UsageError

OptionValue = str | int | float | bool | tuple[str, ...]

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
GENERIC_DEVICES = ("cpu", "gpu")
"""Devices that mean "this machine's": their latency tables are kept one per device fingerprint."""


@dataclass(frozen=True)
class Target:
    """What a network is profiled, searched and shipped for.

    `name` is an opaque id (the TOML file's stem); the other fields are the truth. `engine_options`
    are checked by the engine that reads them. `host` is "local" or "ssh://user@host".
    """

    name: str
    device: str
    engine: str
    precision: str = "fp32"
    batch: int = 1
    host: str = "local"
    engine_options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS, where=f"target {self.name}")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise UsageError(
                asked=f"batch of target {self.name}", found=repr(self.batch), next="Write a whole number ≥ 1."
            )
        if self.host != "local" and not self.host.startswith("ssh://"):
            raise UsageError(
                asked=f"host of target {self.name}",
                found=repr(self.host),
                next='Write "local" or "ssh://user@host".',
            )
        object.__setattr__(self, "engine_options", MappingProxyType(dict(self.engine_options)))

    def __hash__(self) -> int:
        return hash(json.dumps(self.as_dict(), sort_keys=True))

    @property
    def is_generic(self) -> bool:
        """Whether the device means "this machine's" rather than one named device."""
        return self.device in GENERIC_DEVICES

    def as_dict(self) -> dict[str, object]:
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(self.engine_options.items())}
        return {
            "name": self.name,
            "device": self.device,
            "engine": self.engine,
            "precision": self.precision,
            "batch": self.batch,
            "host": self.host,
            "engine_options": options,
        }


_KEYS: Mapping[str, type] = {
    "device": str,
    "engine": str,
    "precision": str,
    "batch": int,
    "host": str,
    "engine_options": dict,
}
_REQUIRED = ("device", "engine", "precision")


def target_from_dict(name: str, fields: Mapping[str, object], where: str) -> Target:
    """Build a target from the keys of a TOML file (or of a table's header).

    Raises:
        UnknownNameError: a key nobody knows; the message lists the known ones.
        UsageError: a key that is missing or of the wrong type.
    """
    for key in fields:
        if key not in _KEYS:
            raise UnknownNameError("key", key, _KEYS, where=where)
    for key in _REQUIRED:
        if key not in fields:
            raise UsageError(asked=f"key {key!r} in {where}", found="no such key", next=f'Add {key} = "…".')
    for key, value in fields.items():
        if not isinstance(value, _KEYS[key]) or (_KEYS[key] is int and isinstance(value, bool)):
            raise UsageError(
                asked=f"key {key!r} in {where} as {_KEYS[key].__name__}",
                found=f"{value!r}",
                next=f"Write it as {_KEYS[key].__name__}.",
            )
    options: dict[str, OptionValue] = {}
    raw_options = fields.get("engine_options", {})
    assert isinstance(raw_options, dict)
    for key, value in raw_options.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            options[key] = tuple(value)
        elif isinstance(value, str | int | float | bool):
            options[key] = value
        else:
            raise UsageError(
                asked=f"engine_options.{key} in {where}",
                found=f"{value!r}",
                next="Write a number, a text, true/false or a list of texts.",
            )
    plain = {key: value for key, value in fields.items() if key != "engine_options"}
    return Target(name=name, engine_options=options, **plain)  # type: ignore[arg-type]


def read_target(path: Path) -> Target:
    """Read one `targets/*.toml`; the name is the file's stem."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            asked=f"a target in {path}", found=f"no valid TOML ({error})", next="Correct the file."
        ) from error
    return target_from_dict(path.stem, fields, where=str(path))


def user_data_dir() -> Path:
    """The user's data directory of this program (`AKD_DEPLOY_HOME` overrides it)."""
    override = os.environ.get("AKD_DEPLOY_HOME")
    if override:
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_data_dir("akd-deploy", appauthor=False))


def places(kind: str) -> list[Path]:
    """Where `targets` or `latency_tables` are looked for, first come first served.

    The working directory, the user's data directory, what the package carries (in a checkout: the
    folder beside the package).
    """
    package = Path(__file__).parent
    carried = package / "_carried" / kind
    return [Path.cwd() / kind, user_data_dir() / kind, carried if carried.is_dir() else package.parent / kind]


def _target_files() -> Iterator[Path]:
    seen: set[str] = set()
    for place in places("targets"):
        for path in sorted(place.glob("*.toml")) if place.is_dir() else []:
            if path.stem not in seen:
                seen.add(path.stem)
                yield path


def known_targets() -> dict[str, Path]:
    """Name → file of every target that can be found, the nearest place winning."""
    return {path.stem: path for path in sorted(_target_files(), key=lambda p: p.stem)}


def load_target(name: str) -> Target:
    """Find a target by name, or read the TOML file whose path is given.

    Raises:
        UnknownNameError: no such target; the message lists the known ones.
    """
    if name.endswith(".toml") and Path(name).is_file():
        return read_target(Path(name))
    known = known_targets()
    if name not in known:
        raise UnknownNameError("target", name, known)
    return read_target(known[name])
