"""Which kernels a target executes for a model file: as rules or the runtime say, remembered by the file's structure."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.base import Engine
from akd_deploy.engines.onnx_structure import Structure, read_structure
from akd_deploy.errors import AkdError, BuildError, MissingRuntimeError, StorageError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel, kernel_from_signature
from akd_deploy.pipeline.fusion_rules import is_cpu_onnxruntime, is_ruled, rules_of, why_no_rules
from akd_deploy.storage import write_atomically

AUTO, RUNTIME, RULES = "auto", "runtime", "rules"
SOURCES = (AUTO, RUNTIME, RULES)
"""Who may be asked for kernels: the runtime, the rules that stand for it, or the rules first."""

FORMAT_VERSION = 2
KEPT_IN_MEMORY = 64
KEPT_ON_DISK = 256
"""So many files' kernels are remembered; the oldest make room."""

_SETTLED_NS = 2_000_000_000
"""A file written to more recently than this may be again without another time: some file systems count in seconds."""

_Stamp = tuple[int, int, int, int, int]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class FileKernels:
    """The kernels executed for a file, in order, and who says so: "runtime" or "rules"."""

    executed: tuple[ExecutedKernel, ...]
    kernels_from: str


class Recent(OrderedDict[K, V], Generic[K, V]):
    """The latest `KEPT_IN_MEMORY` entries."""

    def keep(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > KEPT_IN_MEMORY:
            self.popitem(last=False)


@dataclass(frozen=True)
class _Seen:
    """A file that was read: how it was then, the bytes it needs of its weights files, how those were if their values
    matter, and its key."""

    stamp: _Stamp
    external: Mapping[str, int]
    weights: Mapping[str, _Stamp | None]
    key: str


@dataclass
class KernelReader:
    """Reads off which kernels an engine executes on a device; `directory` is for what later processes need not repeat.

    `device` and `engine_version` are those that the kernels' costs were measured with. Rules stand for ONNX Runtime and
    OpenVINO on a CPU; every other engine's runtime is asked, each time.
    """

    engine: Engine
    device: DeviceFingerprint
    engine_version: str
    directory: Path | None = None
    _known: Recent[str, FileKernels] = field(default_factory=Recent)
    _files: Recent[tuple[Path, str], _Seen] = field(default_factory=Recent)

    def prepare(self) -> None:
        """Do now what the first file would otherwise wait for."""
        if self.why_no_rules() is None:
            rules_of(self.engine, self.device).prepare()

    def why_no_rules(self) -> str | None:
        """Why no rules stand for the runtime, whatever the network; None where they do."""
        return why_no_rules(self.engine, self.device, self.engine_version)

    def read(self, path: Path, source: str = AUTO, *, remember: bool = True) -> FileKernels:
        """The kernels of a model file.

        Args:
            source: "auto" asks the rules first and the runtime where they do not hold.
            remember: for the next time, here and in `directory`.

        Raises:
            UnknownNameError: another source.
            UsageError: "rules" where they do not hold; the message says why.
            MissingRuntimeError: the runtime must be asked and is not here.
            AkdError: what `read_onnx` and `Engine.executed_kernels` raise.
        """
        if source not in SOURCES:
            raise UnknownNameError("source of kernels", source, SOURCES)
        why = self.why_no_rules()
        if why is not None and not is_cpu_onnxruntime(self.engine):
            if source == RULES:
                raise self._no_rules(path, why)
            return FileKernels(self._of_runtime(path, why), RUNTIME)
        known = self._unchanged(path, source)
        if known is not None:
            return known
        by_values = why is None and rules_of(self.engine, self.device).by_values
        before = _stamp(path)
        structure = read_structure(path, self.engine.target.batch, by_values=by_values)
        key = self._key(structure.digest, source)
        found = self._known.get(key) or self._stored(key)
        is_new = found is None
        if found is None:
            found = self._asked(path, structure, source)
        # A runtime that looks at values may have looked at some that the structure leaves out.
        is_lasting = found.kernels_from == RULES or not by_values
        if remember and is_lasting and before is not None and before == _stamp(path):
            self._known.keep(key, found)
            if max(before[-2:]) < time.time_ns() - _SETTLED_NS:
                weights = {
                    name: _stamp(path.parent / name) if structure.has_external_values else None
                    for name in structure.external
                }
                self._files.keep((path.absolute(), source), _Seen(before, structure.external, weights, key))
            if is_new:
                self._store(key, found)
        return found

    # --- inside ---------------------------------------------------------------------------------------------

    def _no_rules(self, path: Path, why: str) -> UsageError:
        return UsageError(
            asked=f"the kernels of {path.name} on target {self.engine.target.name} by fusion rules",
            found=why,
            next="Read them off the runtime.",
        )

    def _asked(self, path: Path, structure: Structure, source: str) -> FileKernels:
        if source == RUNTIME:
            return FileKernels(self.engine.executed_kernels(path), RUNTIME)
        why = self.why_no_rules()
        refusal: AkdError
        if why is not None:
            refusal = self._no_rules(path, why)
        else:
            rules = rules_of(self.engine, self.device)
            if source == AUTO and rules.doubtful(structure.model) and self.engine.why_not() is None:
                return FileKernels(self.engine.executed_kernels(path), RUNTIME)
            try:
                return FileKernels(rules.kernels_of(structure.model), RULES)
            except (UsageError, BuildError) as error:
                refusal = error
        if source == RULES:
            raise refusal
        return FileKernels(self._of_runtime(path, refusal.found), RUNTIME)

    def _of_runtime(self, path: Path, why: str) -> tuple[ExecutedKernel, ...]:
        """What the runtime executes; `why` no rules say it."""
        missing = self.engine.why_not()
        if missing is not None and is_ruled(self.engine):
            raise MissingRuntimeError(
                asked=f"the kernels of {path.name} on target {self.engine.target.name}",
                found=f"{missing}, and fusion rules that do not hold: {why}",
                next=f"{self.engine.remedy(missing)}.",
            )
        return self.engine.executed_kernels(path)

    def _key(self, digest: str, source: str) -> str:
        """Another one whenever anything that kernels depend on is another."""
        from akd_deploy.fusion.onnxruntime_cpu import sources_digest

        engine = self.engine
        parts = {
            "format_version": FORMAT_VERSION,
            "sources": sources_digest(),
            "structure": digest,
            "source": source,
            "engine": engine.target.engine,
            "options": {name: engine.option(name) for name in engine.options},
            "precision": engine.target.precision,
            "device": dict(self.device.facts),
            "engine_version": self.engine_version,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()

    def _unchanged(self, path: Path, source: str) -> FileKernels | None:
        """What was said of this very file, if nobody wrote to it since."""
        seen = self._files.get((path.absolute(), source))
        if seen is None or seen.stamp != _stamp(path):
            return None
        for location, size in seen.external.items():
            weights, before = _stamp(path.parent / location), seen.weights[location]
            if weights is None or weights[2] < size or before not in (None, weights):
                return None
        return self._known.get(seen.key)

    def _stored(self, key: str) -> FileKernels | None:
        """None where there is no file or a torn one."""
        if self.directory is None:
            return None
        try:
            document = json.loads((self.directory / f"{key}.json").read_text(encoding="utf-8"))
            kernels = [kernel_from_signature(signature) for signature in document["kernels"]]
            executed = tuple(
                ExecutedKernel(kernels[i], str(name), tuple(map(str, nodes))) for i, name, nodes in document["executed"]
            )
            kernels_from = document["kernels_from"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return FileKernels(executed, kernels_from) if kernels_from in (RUNTIME, RULES) else None

    def _store(self, key: str, found: FileKernels) -> None:
        if self.directory is None:
            return
        position = {kernel: i for i, kernel in enumerate(dict.fromkeys(e.kernel for e in found.executed))}
        document = {
            "kernels_from": found.kernels_from,
            "kernels": [kernel.signature for kernel in position],
            "executed": [[position[e.kernel], e.name, e.nodes] for e in found.executed],
        }
        try:
            write_atomically(self.directory / f"{key}.json", json.dumps(document, separators=(",", ":")).encode())
            newest = sorted(self.directory.glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            for old in newest[KEPT_ON_DISK:]:
                old.unlink(missing_ok=True)
        except (StorageError, OSError):
            return  # a read-only home is legitimate, and another process may tidy up too; this is only a cache


def _stamp(path: Path) -> _Stamp | None:
    """Another one whenever the file was written to or replaced; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns
