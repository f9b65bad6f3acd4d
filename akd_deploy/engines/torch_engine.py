"""torch itself as an engine: eager, compiled, or CUDA graphs, on a `torch.export` archive."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines.base import BuiltEngine, Engine, Progress, Session
from akd_deploy.engines.nvidia import gpu_fingerprint, why_no_gpu
from akd_deploy.engines.precision_audit import audited_precision
from akd_deploy.errors import BuildError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel, Shape
from akd_deploy.storage import write_atomically
from akd_deploy.target import Target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from akd_deploy.engines.torch_session import TorchSession

# Products of a reference: about a millisecond on a large card.
_REFERENCE_SIZE, _REFERENCE_CALLS = 2048, 20
MODES = ("eager", "cuda_graph", "compile")
DEVICES = ("cpu", "cuda")
# The first version whose archives hold plain tensors instead of pickles.
_OLDEST = (2, 8)


class TorchEngine(Engine):
    """Reads `torch.export` archives (.pt2) and modules in memory; refuses ONNX, which torch cannot run.

    Options: `mode` "eager", "cuda_graph" (captured once, replayed) or "compile" (torch.compile);
    `device` "cpu" or "cuda"; `threads` of one operator on the CPU; `channels_last` memory layout.
    torch keeps its thread count, and whether float32 products may use TF32, once for the whole
    process: the engine sets both whenever it builds or loads, so profile targets in processes of their own.
    """

    name = "torch"
    options = {"mode": "eager", "device": "cpu", "threads": 1, "channels_last": False}  # noqa: RUF012
    extra = ""
    suffix = ".pt2"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.mode, self.device = str(self.option("mode")), str(self.option("device"))
        self.threads, self.channels_last = self.option("threads"), bool(self.option("channels_last"))
        for option, value, known in (("mode", self.mode, MODES), ("device", self.device, DEVICES)):
            if value not in known:
                raise UnknownNameError(option, value, known, where=f"target {target.name}")
        if not isinstance(self.threads, int) or self.threads < 1:
            raise self._wrong("threads", repr(self.threads), "Write a whole number ≥ 1.")
        if self.mode == "cuda_graph" and self.device != "cuda":
            raise self._wrong("mode", f"cuda_graph on device {self.device}", 'Write device = "cuda".')
        if target.precision == "tf32" and self.device != "cuda":
            raise self._wrong("device", f"precision tf32 on device {self.device}", 'Write device = "cuda", or fp32.')

    def _wrong(self, option: str, found: str, next: str) -> UsageError:
        return UsageError(asked=f"engine_options.{option} of target {self.target.name}", found=found, next=next)

    def why_not(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        if tuple(int(n) for n in re.findall(r"\d+", self.version())[:2]) < _OLDEST:
            return f"torch {self.version()}, older than {'.'.join(map(str, _OLDEST))}"
        if self.mode == "compile" and self.device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
            return "no C++ compiler, which torch.compile needs on a CPU"
        if self.device == "cuda":
            reason = why_no_gpu()
            if reason is not None:
                return reason
            import torch

            if not torch.cuda.is_available():
                return f"torch {self.version()} sees no CUDA GPU: it is a build for CPUs, or does not fit the driver"
        return None

    def require(self, reason: str | None) -> None:
        """Raise MissingRuntimeError with `reason` unless it is None."""
        if reason is not None:
            raise MissingRuntimeError(
                asked=f"the torch engine of target {self.target.name} on {self.device}",
                found=reason,
                next="Install the build of torch for this machine (pytorch.org lists them), or choose another target; "
                "`akd-deploy doctor` lists what works here.",
            )

    def version(self) -> str:
        if importlib.util.find_spec("torch") is None:
            self.require("torch is not installed")
        return importlib.metadata.version("torch")

    def fingerprint(self) -> DeviceFingerprint:
        return gpu_fingerprint() if self.device == "cuda" else cpu_fingerprint()

    def reference_call(self) -> Callable[[], float] | None:
        """On a GPU, a product of matrices there: it slows down when the card's clocks do."""
        if self.device != "cuda":
            return None
        import torch

        matrix = torch.ones(_REFERENCE_SIZE, _REFERENCE_SIZE, dtype=torch.float16, device="cuda")

        def call() -> float:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(_REFERENCE_CALLS):
                matrix @ matrix
            torch.cuda.synchronize()
            return (time.perf_counter() - begin) / _REFERENCE_CALLS

        return call

    def _session(self, program: ExportedProgram, where: str) -> TorchSession:
        import torch

        from akd_deploy.engines.torch_session import TorchSession

        assert isinstance(self.threads, int)
        torch.set_num_threads(self.threads)
        if self.device == "cuda":
            # cuDNN's convolutions use TF32 unless told not to; an fp32 target means fp32.
            allowed = self.target.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = allowed
            torch.backends.cuda.matmul.allow_tf32 = allowed
        return TorchSession(
            program,
            self.target.batch,
            mode=self.mode,
            device=self.device,
            channels_last=self.channels_last,
            where=where,
        )

    def build(
        self,
        model_path: Path,
        out_dir: Path,
        on_progress: Progress | None = None,  # noqa: ARG002 - done in a moment
    ) -> BuiltEngine:
        """Prove that an archive runs here, audit its precision and keep a copy without sample inputs.

        Raises:
            MissingRuntimeError: the device is not here.
            MissingFileError, CorruptFileError, UsageError: no file, no archive, ONNX, or another batch.
            BuildError: it does not run, or computes in another precision than the target's.
        """
        self.require(self.why_not())
        from akd_deploy.engines.torch_archive import read_archive
        from akd_deploy.engines.torch_graph import layers, recorded_kernels

        start = time.perf_counter()
        program, content = read_archive(model_path)
        with self._session(program, model_path.name) as session:
            kernels = recorded_kernels(session.module, session.example_leaves(), keep_views=True)
        asked = f"precision {self.target.precision} for {model_path.name} on target {self.target.name}"
        # An archive declares nothing: what its author left in float32 is meant, and noted.
        precision, notes = audited_precision(self.target.precision, layers(kernels), asked, allowed=None)
        path = out_dir / f"{model_path.stem}{self.suffix}"
        write_atomically(path, content)
        return BuiltEngine(
            path=path,
            files=(path,),
            seconds=time.perf_counter() - start,
            size_bytes=len(content),
            precision=precision,
            engine_version=self.version(),
            notes=notes,
            details={
                "mode": self.mode,
                "device": self.device,
                "threads": self.threads,
                "channels_last": self.channels_last,
                "batch": self.target.batch,
                "operators": len(kernels),
            },
        )

    def load(self, engine_path: Path) -> TorchSession:
        """Load an archive. It is code as well as weights: check it against its manifest's hash before."""
        self.require(self.why_not())
        from akd_deploy.engines.torch_archive import read_archive

        program, _ = read_archive(engine_path)
        return self._session(program, engine_path.name)

    def load_module(self, module: nn.Module, input_shape: Shape) -> Session:
        """Load a module in memory, exported for one input of `input_shape` (batch first); the module is copied."""
        self.require(self.why_not())
        from akd_deploy.engines.torch_archive import exported

        return self._session(exported(module, input_shape), type(module).__name__)

    def executed_kernels(self, model_path: Path) -> tuple[ExecutedKernel, ...]:
        """The aten operators of the exported graph in order: eager and CUDA-graph modes run exactly these.

        No device is needed: shapes tell them.

        Raises:
            BuildError: torch.compile fuses operators into kernels that it does not list.
        """
        if importlib.util.find_spec("torch") is None:
            self.require("torch is not installed")
        if self.mode == "compile":
            raise BuildError(
                asked=f"the kernels of {model_path.name} on target {self.target.name}",
                found="mode compile, which fuses operators and does not list the result",
                next="Measure the network as a whole, or use a target of mode eager or cuda_graph.",
            )
        import torch

        from akd_deploy.engines.torch_archive import read_archive
        from akd_deploy.engines.torch_graph import recorded_kernels
        from akd_deploy.engines.torch_session import graph_module, input_specs

        program, _ = read_archive(model_path)
        specs = input_specs(program, self.target.batch, model_path.name)
        examples = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs]
        return recorded_kernels(graph_module(program), examples, keep_views=self.mode != "cuda_graph")
