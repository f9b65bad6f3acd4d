"""Subjects: what a profile measures, in the order in which it tells most, and how each becomes a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx

from akd_deploy.errors import UsageError
from akd_deploy.latency_table import NETWORK
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.profiling.preparing import Subject, WriteSubject
from akd_deploy.profiling.probes import Probe, as_written, probe_writer, space_networks, space_probes
from akd_deploy.profiling.windows import Window, file_windows
from akd_deploy.search_space import SearchSpace
from akd_deploy.storage import file_sha256
from akd_deploy.target import Target

if TYPE_CHECKING:
    from akd_deploy.profiling.archive_windows import ArchiveWindow


@dataclass(frozen=True)
class WholeNetwork:
    """A given network as it is, named after its content."""

    path: Path
    kind: str = NETWORK

    @property
    def family(self) -> str:
        return self.path.stem

    @cached_property
    def name(self) -> str:
        """Equal for equal files only."""
        return f"network-{file_sha256(self.path)[:12]}"

    def write(self, _: Path) -> Path:
        """The file itself; nothing is written."""
        return self.path


@dataclass(frozen=True, eq=False)
class WholeSkeleton:
    """A network known by its skeleton (`onnx_skeleton`), as a whole with weights drawn anew."""

    family: str
    model: onnx.ModelProto
    kind: str = NETWORK

    @cached_property
    def name(self) -> str:
        """Equal for equal skeletons only."""
        return f"network-{hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()[:12]}"

    def write(self, folder: Path) -> Path:
        """Write it as ONNX, the same weights for the same skeleton."""
        path = folder / f"{self.name}.onnx"
        onnx.save_model(filled(self.model, np.random.default_rng(int(self.name.rpartition("-")[2], 16))), path)
        return path


@dataclass(frozen=True)
class Subjects:
    """What a profile measures, the most telling first, and how each becomes a file that the target's engine reads."""

    subjects: Sequence[Subject]
    write: WriteSubject


def space_subjects(
    target: Target,
    space: SearchSpace,
    probes: int,
    networks: int,
    seed: int,
    typed: Callable[[Path], Path] = as_written,
) -> Subjects:
    """Probes of a space, and whole networks to calibrate and score on; a small space may have fewer.

    Args:
        typed: a float32 model file → the file in the precision the target ships. A `ForTarget` can be sent to other
            processes, a closure cannot: all is then prepared in this one.
    """
    rng = np.random.default_rng(seed)
    chosen = evenly(space_probes(space, probes, rng), space_networks(space, networks, rng))
    return Subjects(chosen, probe_writer(target, rng, typed))


def model_subjects(
    target: Target, paths: Sequence[Path], count: int, seed: int, whole: Sequence[Path] = ()
) -> Subjects:
    """Windows of given networks, `count` of them shared out among the networks, and `whole` networks as they are.

    The networks are ONNX files; for the torch engine `torch.export` archives of the target's batch and precision.

    Raises:
        UsageError: a file the target's engine does not read, or nothing in the networks can be measured on its own.
        MissingFileError, CorruptFileError: a file is not there, or no network.
    """
    rng = np.random.default_rng(seed)
    share = -(-count // len(paths))
    windows: list[Sequence[Window | ArchiveWindow]] = []
    for path in paths:
        if target.engine == "torch":
            from akd_deploy.profiling.archive_windows import archive_windows

            windows.append(archive_windows(path, share, rng))
        else:
            windows.append(file_windows(path, target.batch, share, rng))
    if paths and not any(windows):
        raise UsageError(
            asked=f"windows of {', '.join(path.name for path in paths)}",
            found="none whose inputs are float tensors of known shape",
            next="Give static shapes to the network's inputs.",
        )
    networks: list[Any] = [WholeNetwork(path) for path in whole]
    return Subjects(evenly(evenly(*windows), networks), written_by_itself)


def written_by_itself(subject: Window | ArchiveWindow | WholeNetwork | WholeSkeleton, folder: Path) -> Path:
    """The model file of a stretch, or a whole, of a given network."""
    return subject.write(folder)


Item = TypeVar("Item")


def evenly(*groups: Sequence[Item]) -> list[Item]:
    """The groups merged, each in its own order and spread over the whole: any beginning holds its share of each."""
    places = chain.from_iterable(
        (((i + 0.5) / len(group), number, item) for i, item in enumerate(group)) for number, group in enumerate(groups)
    )
    return [item for _, _, item in sorted(places, key=lambda place: place[:2])]


def is_plain_data(subject: object) -> bool:
    """Whether another process can be sent it: an archive's window holds a traced module, which is not sent."""
    return isinstance(subject, Probe | Window | WholeNetwork | WholeSkeleton)
