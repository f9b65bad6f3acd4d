"""One architecture: a space's name, its settings, and one value for each of its choices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from akd_deploy.errors import CorruptFileError, MissingFileError


@dataclass(frozen=True, eq=False)
class Architecture:
    """The text form is `{"space": name, "settings": {…}, "choices": {…}}`, the same wherever one is named."""

    space: str
    settings: Mapping[str, Any]
    choices: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("settings", "choices"):
            frozen = json.loads(json.dumps(dict(getattr(self, name)), sort_keys=True))
            object.__setattr__(self, name, MappingProxyType(frozen))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def text(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of `text`: a short name for files and tables."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        return {"space": self.space, "settings": dict(self.settings), "choices": dict(self.choices)}


def architecture_from_dict(fields: object, where: str = "architecture") -> Architecture:
    """Read `{"space", "settings", "choices"}`.

    Raises:
        CorruptFileError: a key is missing, unknown or of the wrong type.
    """
    expected = {"space": str, "settings": dict, "choices": dict}
    if not isinstance(fields, dict) or set(fields) != set(expected):
        keys = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise CorruptFileError(
            asked=f"an architecture in {where}",
            found=f"{keys}",
            next='Write {"space": name, "settings": {…}, "choices": {…}}.',
        )
    for key, kind in expected.items():
        if not isinstance(fields[key], kind):
            raise CorruptFileError(
                asked=f"{key!r} of the architecture in {where} as {kind.__name__}",
                found=type(fields[key]).__name__,
                next='Write {"space": name, "settings": {…}, "choices": {…}}.',
            )
    return Architecture(fields["space"], fields["settings"], fields["choices"])


def read_architecture(path: Path) -> Architecture:
    """Read an architecture file written by hand, by the search or by `export`."""
    if not path.is_file():
        raise MissingFileError(asked=f"the architecture file {path}", found="no such file", next="Check the path.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            asked=f"an architecture in {path}", found=f"no JSON ({error})", next="Write the file again."
        ) from error
    return architecture_from_dict(fields, where=str(path))
