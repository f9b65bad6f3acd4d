"""Teachers' logits for a bank of views, computed once and kept: a distillation step then costs no teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from akd_deploy.data import ViewBank
from akd_deploy.errors import CorruptFileError, MismatchError, TrainingError, UsageError
from akd_deploy.models.teacher import Teacher
from akd_deploy.storage import write_atomically

FORMAT = 1
DTYPES = ("float32", "float16")
_CHECKED = 8
"""Views recomputed when a file is read: the teacher's code may have changed though its weights have not."""


@dataclass(frozen=True, eq=False)
class TeacherBank:
    """`logits` is (teachers, views, n, classes), float32 or float16; `views_digest` that of the view bank."""

    logits: np.ndarray
    views_digest: str

    @property
    def teachers(self) -> int:
        """Number of teachers."""
        return len(self.logits)

    def require_views(self, views: ViewBank) -> None:
        """Raise MismatchError unless the logits were computed on these very views."""
        if views.digest != self.views_digest:
            raise MismatchError(
                asked="teacher logits of the views that the student sees",
                found="logits of another bank of views",
                next="Compute the teacher's bank on the student's own views (same images, settings and seed).",
            )


def _key(teachers: Sequence[Teacher], views: ViewBank, dtype: str) -> str:
    fields = {
        "format": FORMAT,
        "teachers": [teacher.provenance.as_dict() for teacher in teachers],
        "views": views.digest,
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _computed(teachers: Sequence[Teacher], views: ViewBank, dtype: str, chunk: int = 1024) -> np.ndarray:
    """(teachers, views, n, classes), chunk by chunk so that the views need not fit into memory together."""
    n, total = len(views), len(views) * views.views
    logits = np.empty((len(teachers), total, teachers[0].classes), dtype)
    for start in range(0, total, chunk):
        flat = np.arange(start, min(start + chunk, total))
        images = torch.from_numpy(views.batch(flat // n, flat % n))
        for j, teacher in enumerate(teachers):
            with np.errstate(over="ignore"):  # what float16 cannot hold is reported below
                logits[j, flat] = teacher.logits(images).cpu().numpy()
            finite = np.isfinite(logits[j, flat]).all(axis=1)
            if not finite.all():
                bad = int(flat[np.argmin(finite)])
                raise TrainingError(
                    asked=f"logits of {teacher.provenance.source} as {dtype}",
                    found=f"a value that is not finite, for view {bad // n} of image {bad % n}",
                    next="Check the teacher's weights and the images' scale" + (", or use float32."
                    if dtype == "float16" else "."),
                )  # fmt: skip
    return logits.reshape(len(teachers), views.views, n, -1)


def teacher_bank(
    teachers: Sequence[Teacher], views: ViewBank, *, dtype: str = "float32", cache_dir: Path | None = None
) -> TeacherBank:
    """Every teacher's logits for every view of the bank.

    With `cache_dir` they are read from there if the same teachers (by their weights' hash), views and dtype were
    computed before and a few recomputed views agree; else computed and written, atomically.

    Raises:
        UsageError: no teacher, or a dtype other than float32 and float16.
        MismatchError: the teachers differ in classes.
        TrainingError: a teacher gives a logit that is not finite.
        CorruptFileError: a cached file is damaged.
        StorageError: `cache_dir` cannot be written.
    """
    if not teachers or dtype not in DTYPES:
        raise UsageError(
            asked=f"the logits of {len(teachers)} teachers as {dtype}",
            found="nothing to compute" if not teachers else "no such dtype here",
            next=f"Give at least one teacher, and one of {', '.join(DTYPES)}.",
        )
    classes = [teacher.classes for teacher in teachers]
    if len(set(classes)) > 1:
        raise MismatchError(
            asked="teachers of the same classes", found=f"{classes} classes", next="Leave out those that differ."
        )
    if cache_dir is None:
        return TeacherBank(_computed(teachers, views, dtype), views.digest)
    path = cache_dir / f"teacher_logits_{_key(teachers, views, dtype)[:24]}.safetensors"
    if path.is_file():
        logits = _read(path, (len(teachers), views.views, len(views), classes[0]))
        if _agrees(logits, teachers, views):
            return TeacherBank(logits, views.digest)
    logits = _computed(teachers, views, dtype)
    from safetensors.numpy import save

    write_atomically(path, save({"logits": logits}, metadata={"format": str(FORMAT)}))
    return TeacherBank(logits, views.digest)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        logits: np.ndarray = load_file(path)["logits"]
    except (SafetensorError, KeyError) as error:
        raise CorruptFileError(
            asked=f"teacher logits in {path}",
            found=f"no whole file of them ({error})",
            next="Delete it; the logits will be computed again.",
        ) from error
    if logits.shape != shape:
        raise CorruptFileError(
            asked=f"teacher logits {shape} in {path}",
            found=f"{logits.shape}",
            next="Delete it; the logits will be computed again.",
        )
    return logits


def _agrees(logits: np.ndarray, teachers: Sequence[Teacher], views: ViewBank) -> bool:
    image_ids = np.arange(min(_CHECKED, len(views)))
    images = torch.from_numpy(views.batch(np.zeros_like(image_ids), image_ids))
    return all(
        # Loose enough for float16 and for another thread count; a changed network is far outside.
        np.allclose(teacher.logits(images).cpu().numpy(), logits[j, 0, image_ids], rtol=1e-2, atol=1e-2)
        for j, teacher in enumerate(teachers)
    )
