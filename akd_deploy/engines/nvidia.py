"""What NVIDIA GPU this machine has, asked of the driver's own `nvidia-smi`."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import MissingRuntimeError

_FIELDS = ("name", "driver_version", "compute_cap")
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "pstate", "temperature.gpu", "power.draw")
# A driver that is being loaded answers within seconds; one that hangs never does.
_TIMEOUT_S = 20.0


def _query(fields: Sequence[str] = _FIELDS) -> tuple[list[dict[str, str]], str | None]:
    """The GPUs that `nvidia-smi` lists, or none of them and the reason."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "no NVIDIA driver here (nvidia-smi is not on the PATH)"
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi could not be asked ({error})"
    if answer.returncode != 0:
        message = " ".join((answer.stderr or answer.stdout).split())
        return [], f"nvidia-smi ended with status {answer.returncode} ({message or 'no message'})"
    rows = [[cell.strip() for cell in row] for row in csv.reader(answer.stdout.splitlines()) if row]
    if not rows or any(len(row) != len(fields) for row in rows):
        return [], f"nvidia-smi listed no GPU ({answer.stdout.strip()[:120]!r})"
    return [dict(zip(fields, row, strict=True)) for row in rows], None


def why_no_gpu() -> str | None:
    """None where the driver lists a GPU, else the reason."""
    return _query()[1]


def gpu_fingerprint() -> DeviceFingerprint:
    """The first GPU that the driver lists: model, compute capability and driver version.

    Raises:
        MissingRuntimeError: there is no GPU here, or its driver does not answer.
    """
    gpus, reason = _query()
    if reason is not None:
        raise MissingRuntimeError(
            asked="an NVIDIA GPU", found=reason, next="Install the NVIDIA driver, or choose a target of this machine."
        )
    gpu = gpus[0]
    return DeviceFingerprint(
        {
            "kind": "gpu",
            "vendor": "nvidia",
            "model": gpu["name"],
            "compute_capability": gpu["compute_cap"],
            "driver": gpu["driver_version"],
        }
    )


def gpu_clocks() -> dict[str, str] | None:
    """Clocks, performance state, temperature and power of the first GPU just now, with their units; None if unknown."""
    gpus, _ = _query(_CLOCKS)
    return gpus[0] if gpus else None
