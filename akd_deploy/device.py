"""What machine this is: a fingerprint for tables and bundles, and how busy it is just now."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

_ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "fma",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)


@dataclass(frozen=True)
class DeviceFingerprint:
    """The facts about a device that its latencies depend on; `digest` is their short name."""

    facts: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", MappingProxyType(dict(sorted(self.facts.items()))))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the facts."""
        text = json.dumps(dict(self.facts), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, other: DeviceFingerprint) -> list[str]:
        """One line for each fact in which the two differ."""
        keys = sorted({*self.facts, *other.facts})
        return [
            f"{key}: {self.facts.get(key, '(none)')} ≠ {other.facts.get(key, '(none)')}"
            for key in keys
            if self.facts.get(key) != other.facts.get(key)
        ]


def _proc_cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, separator, value = line.partition(":")
            if separator:
                fields.setdefault(key.strip(), value.strip())
    return fields


@cache
def cpu_fingerprint() -> DeviceFingerprint:
    """This machine's CPU: vendor, model, instruction sets, architecture and core count."""
    info = _proc_cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return DeviceFingerprint(
        {
            "kind": "cpu",
            "machine": platform.machine(),
            "system": platform.system(),
            "model": info.get("model name") or info.get("CPU part") or platform.processor() or "unknown",
            "family": "/".join(info.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping")),
            "isa": " ".join(flag for flag in _ISA_FLAGS if flag in flags),
            "cores": str(os.cpu_count() or 0),
        }
    )


@dataclass(frozen=True)
class Load:
    """Clock ticks of all CPUs since boot (`/proc/stat`); two of them tell what happened in between."""

    busy_ticks: int
    idle_ticks: int
    steal_ticks: int


def read_load() -> Load | None:
    """The counters now, or None where the system has no `/proc/stat`."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    ticks = [int(n) for n in path.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = ticks
    return Load(busy_ticks=user + nice + system + irq + softirq, idle_ticks=idle + iowait, steal_ticks=steal)


def steal_fraction(before: Load | None, after: Load | None) -> float:
    """Share of CPU time the hypervisor took away between two readings, 0 to 1; 0 where unknown."""
    if before is None or after is None:
        return 0.0
    total = (
        after.busy_ticks - before.busy_ticks
        + after.idle_ticks - before.idle_ticks
        + after.steal_ticks - before.steal_ticks
    )  # fmt: skip
    return (after.steal_ticks - before.steal_ticks) / total if total > 0 else 0.0


def cpu_clocks(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> dict[str, object] | None:
    """What the system says about the clocks of some CPUs just now; None where it says nothing.

    `governor` (of cpufreq; None where that is absent, as in most virtual machines), `mhz` by CPU, and the limits.
    """
    mhz: dict[str, float] = {}
    governors, lows, highs = set(), set(), set()
    for cpu in cpus:
        folder = root / f"cpu{cpu}" / "cpufreq"
        now = _word(folder / "scaling_cur_freq")
        if now is not None and now.isdigit():
            mhz[str(cpu)] = int(now) / 1e3
        governors.add(_word(folder / "scaling_governor"))
        lows.add(_word(folder / "scaling_min_freq"))
        highs.add(_word(folder / "scaling_max_freq"))
    if not mhz:
        mhz = {cpu: value for cpu, value in _proc_mhz().items() if cpu in {str(c) for c in cpus}}
    if not mhz:
        return None
    return {"governor": _only(governors), "mhz": mhz, "min_mhz": _mhz(_only(lows)), "max_mhz": _mhz(_only(highs))}


def _word(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _only(values: set[str | None]) -> str | None:
    """What all agree on."""
    return next(iter(values)) if len(values) == 1 else None


def _mhz(khz: str | None) -> float | None:
    return int(khz) / 1e3 if khz is not None and khz.isdigit() else None


def _proc_mhz(path: Path = Path("/proc/cpuinfo")) -> dict[str, float]:
    """CPU → MHz as `/proc/cpuinfo` has them; a virtual machine's are its host's nominal ones more often than not."""
    found: dict[str, float] = {}
    cpu = None
    for line in (_word(path) or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cpu = value
        elif key == "cpu MHz" and cpu is not None:
            found[cpu] = float(value)
    return found
