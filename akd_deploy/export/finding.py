"""What lint finds: one thing to mend, at one node or of the whole file."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SEVERITIES = ("error", "warning", "info")
"""Will not run, or is not what it says; slower or less exact than it could be; worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing to mend. `node` is "" where it concerns the whole file."""

    rule: str
    severity: str
    node: str
    message: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)
