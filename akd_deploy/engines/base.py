"""The contract between us and a runtime: build, load, run, measure, executed kernels."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.nvidia import why_no_gpu
from akd_deploy.errors import MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel, Shape
from akd_deploy.target import OptionValue, Target

Progress = Callable[[str, float], None]
"""Called with the name of the phase under way and the fraction of it that is done, 0 to 1."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network: its name, shape (batch resolved) and numpy dtype name."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class BuiltEngine:
    """What `Engine.build` wrote.

    `precision` counts the layers computing in each dtype as audited in what was built ({"float16": 30,
    "float32": 2}), never what was asked for. `files` are all files needed to load it, `path` first.
    """

    path: Path
    files: tuple[Path, ...]
    seconds: float
    size_bytes: int
    precision: Mapping[str, int]
    engine_version: str
    notes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Timings:
    """Seconds of the parts of one inference on a device that is not the host, from host arrays to host arrays.

    `h2d_s`, `compute_s` and `d2h_s` are the device's own clock: copying the inputs there, computing (which, launch by
    launch, includes waiting for the host where that is slower), copying the outputs back. `enqueue_s` is the host's:
    what handing over the computation took. `end_to_end_s` is the host's too, from the first copy until the outputs are
    there; the device's parts lie within it.
    """

    enqueue_s: float
    h2d_s: float
    compute_s: float
    d2h_s: float
    end_to_end_s: float


BOUNDARIES = ("host", "gpu", "end-to-end")
"""What a latency is of. "host": a call on bound buffers, as its caller sees it, copies to the device not among it;
"gpu": the computation alone, by the device's clock; "end-to-end": from host arrays to host arrays."""


class Session(ABC):
    """A loaded engine. Close it, or use it as a context manager."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    why_no_timings = "this engine's sessions cannot tell it"
    """Why `timings` gives None, where it does."""

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Output name → array, for one batch of every input."""

    @abstractmethod
    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """A call that runs one inference on `feeds`, buffers bound beforehand, returning when it has finished."""

    def timings(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Timings] | None:
        """A call that runs one inference from `feeds` to host arrays and times its parts; None where it has none.

        The host's own CPU has no parts: there is nothing to copy to, and no clock but the host's.
        """
        del feeds
        return None

    def close(self) -> None:  # noqa: B027 - most runtimes free themselves
        """Free what the runtime holds."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Engine(ABC):
    """One runtime with one target's settings. Constructing it checks the options and imports nothing heavy.

    Subclasses set `name` (as targets write it), `options` (option name → default, whose type is the
    option's type), `extra` (what to install) and `suffix` (of the engine file).
    """

    name: str
    options: Mapping[str, OptionValue]
    extra: str
    suffix: str
    loads_models = True
    """Whether `load` takes a model file as well as what `build` wrote."""

    def __init__(self, target: Target) -> None:
        for key, value in target.engine_options.items():
            if key not in self.options:
                raise UnknownNameError(f"option of the {self.name} engine", key, self.options, f"target {target.name}")
            kind = type(self.options[key])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UsageError(
                    asked=f"engine_options.{key} of target {target.name} as {kind.__name__}",
                    found=repr(value),
                    next=f"Write it as {kind.__name__}.",
                )
        self.target = target

    def option(self, name: str) -> OptionValue:
        """The target's value of an option, or the engine's default."""
        return self.target.engine_options.get(name, self.options[name])

    @abstractmethod
    def why_not(self) -> str | None:
        """None where `load` and `run` can work on this machine, else the reason and what to install."""

    def why_not_build(self) -> str | None:
        """None where `build` can work on this machine; differs from `why_not` where building needs no device."""
        return self.why_not()

    @abstractmethod
    def version(self) -> str:
        """The runtime's version, like "1.31.1"."""

    @abstractmethod
    def fingerprint(self) -> DeviceFingerprint:
        """The device it would run on."""

    @abstractmethod
    def build(self, model_path: Path, out_dir: Path, on_progress: Progress | None = None) -> BuiltEngine:
        """Turn a model file (ONNX; for torch a `torch.export` archive) into an engine file in `out_dir`.

        Engines whose builds take long tell `on_progress` about it, from whatever thread.

        Raises:
            MissingRuntimeError: the runtime is not here.
            BuildError: it could not be built, or not in the precision asked for.
        """

    def loadable(self, path: Path, folder: Path) -> Path:
        """The file that `load` takes: `path` itself, or what is built from it in `folder` where no model file is taken.

        Raises:
            MissingRuntimeError, BuildError: as `build`.
        """
        if self.loads_models or path.suffix == self.suffix:
            return path
        return self.build(path, folder).path

    @abstractmethod
    def load(self, engine_path: Path) -> Session:
        """Load what `build` wrote (or a model file the runtime reads directly).

        Raises:
            MissingRuntimeError: the runtime or its device is not here, or it fell back to another one.
        """

    @abstractmethod
    def executed_kernels(self, model_path: Path) -> tuple[ExecutedKernel, ...]:
        """The fused kernels the runtime really runs for this model at the target's batch, in order."""

    def reference_call(self) -> Callable[[], float] | None:
        """A fixed piece of work on the device, returning its seconds; None where the CPU is the device."""
        return None

    def require(self, reason: str | None) -> None:
        """Raise MissingRuntimeError with `reason` unless it is None."""
        if reason is not None:
            raise MissingRuntimeError(
                asked=f"the {self.name} engine of target {self.target.name}",
                found=reason,
                next=f"{self.remedy(reason)}, or choose another target; `akd-deploy doctor` lists what works here.",
            )

    def remedy(self, reason: str) -> str:
        """What to do about a reason of `why_not` or `why_not_build`: the device is missing, or the package is."""
        if self.why_not_build() is None or reason == why_no_gpu():
            return "Install the NVIDIA driver and a torch that sees the GPU, or run this on a machine with one"
        return f"Install it with pip install 'akd-deploy[{self.extra}]' where it is supported"


def random_feeds(session: Session, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal noise for floating inputs, zeros for whole-number ones (indices must stay in range)."""
    return {
        spec.name: rng.standard_normal(spec.shape).astype(spec.dtype)
        if np.dtype(spec.dtype).kind == "f"
        else np.zeros(spec.shape, spec.dtype)
        for spec in session.inputs
    }


def warm_up(call: Callable[[], None], seconds: float, max_seconds: float | None = None) -> int:
    """Call for at least `seconds` and until two successive tenths agree within 5 %; returns the number of calls.

    Gives up waiting for stability at `max_seconds` (default 4 × `seconds`).
    """
    start = time.perf_counter()
    limit = start + (4 * seconds if max_seconds is None else max_seconds)
    window, previous, calls = max(seconds / 10, 1e-3), None, 0
    while True:
        begin, count, now = time.perf_counter(), 0, float("-inf")
        while now - begin < window:  # one call at least: the process may have been away for longer than the window
            call()
            count += 1
            now = time.perf_counter()
        calls += count
        rate = (now - begin) / count
        stable = previous is not None and abs(rate / previous - 1) < 0.05
        if now >= limit or (now - start >= seconds and stable):
            return calls
        previous = rate


def time_calls(
    call: Callable[[], None],
    *,
    seconds: float,
    min_samples: int,
    max_samples: int = 1_000_000,
    idle_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    between: Callable[[], None] | None = None,
) -> list[float]:
    """Time single calls until both `seconds` have passed and `min_samples` were taken; seconds each.

    Args:
        idle_s: sleep for so long before every call: a device that is asked now and then sleeps in between, lowers its
            clock and forgets its caches. The sleep is in no sample, but it counts towards `seconds`.
        sleep: does it.
        between: is called before every call; in no sample either.
    """
    samples: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while len(samples) < max_samples:
        if idle_s > 0:
            sleep(idle_s)
        if between is not None:
            between()
        begin = clock()
        call()
        done = clock()
        samples.append(done - begin)
        if done >= end and len(samples) >= min_samples:
            break
    return samples
