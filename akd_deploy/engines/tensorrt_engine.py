"""TensorRT 10.12 to 11.x, and TensorRT-RTX: one engine, two modules with the same API."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.base import BuiltEngine, Engine, Progress, Session
from akd_deploy.engines.nvidia import gpu_fingerprint, why_no_gpu
from akd_deploy.engines.tensorrt_api import TensorRt
from akd_deploy.engines.tensorrt_build import Plan, build_plan, node_settings
from akd_deploy.engines.tensorrt_config import TIMING_ITERATIONS, Recipe
from akd_deploy.engines.tensorrt_inspect import (
    executed_kernels_from_layers,
    layers_from_inspector,
    layers_from_log,
    memory_from_log,
)
from akd_deploy.engines.tensorrt_profiles import Profile, parse_profiles
from akd_deploy.engines.tensorrt_session import TensorRtSession, loaded_facts
from akd_deploy.engines.tensorrt_timing import TimingCache, timing_cache_path
from akd_deploy.errors import BuildError, MissingFileError, UsageError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.storage import write_atomically
from akd_deploy.target import OptionValue, Target

_OPTIMIZATION_LEVELS = range(6)
# Options that decide which kernels are timed, and how.
_TIMED_OPTIONS = (
    "builder_optimization_level", "workspace_mib", "version_compatible", "tf32", "sparse_weights", "refit",
)  # fmt: skip
# What both flavours understand; see docstring of `TensorRtEngine`.
_COMMON_OPTIONS: Mapping[str, OptionValue] = {
    "builder_optimization_level": 3,
    "workspace_mib": 0,
    "version_compatible": False,
    "tf32": False,
    "sparse_weights": False,
    "refit": False,
    "shapes": (),
    "timing_cache": "",
    "pin_timing_cache": False,
}


def _capability(gpu: DeviceFingerprint) -> str:
    """Like "sm89"."""
    return "sm" + gpu.facts["compute_capability"].replace(".", "")


class TensorRtEngine(Engine):
    """TensorRT on data-centre and Jetson GPUs; it builds on the GPU it builds for.

    Options: `builder_optimization_level` 0 to 5; `workspace_mib` of scratch memory (0: all there is);
    `version_compatible` plans also load in later versions; `tf32` lets layers left in fp32 by a
    half-precision model multiply in TF32 (precision "tf32" does so for a whole fp32 model);
    `sparse_weights` uses 2:4 sparsity where it is faster; `refit` keeps weights replaceable;
    `compute_capabilities` like ["sm87"] refuses to build on another GPU; `shapes` are profiles of dynamic inputs, see
    `parse_profiles` (without any, only the batch may be dynamic and becomes the target's); `timing_cache` is a
    folder of kernel timings, one file for each GPU, driver, version and set of flags, which builds read and add to;
    `pin_timing_cache` refuses any kernel that is not timed there, and leaves the file alone.
    """

    name = "tensorrt"
    options: Mapping[str, OptionValue] = {**_COMMON_OPTIONS, "compute_capabilities": ()}
    extra = "tensorrt"
    suffix = ".plan"
    loads_models = False
    module = "tensorrt"
    oldest = (10, 12)

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        level, mib = self.option("builder_optimization_level"), self.option("workspace_mib")
        capabilities = self._compute_capabilities()
        if level not in _OPTIMIZATION_LEVELS:
            raise self._wrong("builder_optimization_level", repr(level), "Write 0 to 5.")
        if not isinstance(mib, int) or mib < 0:
            raise self._wrong("workspace_mib", repr(mib), "Write MiB, or 0 for all memory there is.")
        if len(set(capabilities)) < len(capabilities):
            raise self._wrong("compute_capabilities", ", ".join(capabilities), "Name each capability once.")
        if self.option("tf32") and target.precision == "fp32":
            raise self._wrong("tf32", "precision fp32", 'Write precision = "tf32", or leave the option out.')
        if self.option("pin_timing_cache") and not self.option("timing_cache"):
            raise self._wrong("pin_timing_cache", "no timing_cache", 'Name its folder: timing_cache = "…".')
        self._profiles()

    def _wrong(self, option: str, found: str, next: str) -> UsageError:
        return UsageError(asked=f"engine_options.{option} of target {self.target.name}", found=found, next=next)

    def _compute_capabilities(self) -> tuple[str, ...]:
        names = self.option("compute_capabilities")
        assert isinstance(names, tuple)
        return tuple(name.lower() for name in names)

    def _profiles(self) -> tuple[Profile, ...]:
        texts = self.option("shapes")
        assert isinstance(texts, tuple)
        return parse_profiles(texts, f"engine_options.shapes of target {self.target.name}")

    def _module(self) -> TensorRt:
        self.require(self._why_no_module())
        return cast(TensorRt, importlib.import_module(self.module))

    def _why_no_module(self) -> str | None:
        try:
            trt = importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # stub wheels install without their libraries
            return f"the Python package {self.module} cannot be imported ({error})"
        found = tuple(int(n) for n in re.findall(r"\d+", trt.__version__)[:2])
        if found < self.oldest:
            return f"{self.module} {trt.__version__}, older than {'.'.join(map(str, self.oldest))}"
        return None

    def why_not(self) -> str | None:
        reason = self._why_no_module() or why_no_gpu()
        if reason is None:
            import torch

            if not torch.cuda.is_available():
                reason = f"torch {torch.__version__} sees no CUDA GPU, and it holds the engine's buffers"
        return reason

    def why_not_build(self) -> str | None:
        return self._why_no_module() or why_no_gpu()

    def version(self) -> str:
        return str(self._module().__version__)

    def fingerprint(self) -> DeviceFingerprint:
        return gpu_fingerprint()

    def _recipe(self, model_path: Path) -> Recipe:
        options = {name: self.option(name) for name in self.options}
        return Recipe(
            what=f"{model_path.name} on target {self.target.name}",
            precision=self.target.precision,
            batch=self.target.batch,
            optimization_level=int(options["builder_optimization_level"]),  # type: ignore[arg-type]
            workspace_mib=int(options["workspace_mib"]),  # type: ignore[arg-type]
            version_compatible=bool(options["version_compatible"]),
            tf32=bool(options["tf32"]),
            sparse_weights=bool(options["sparse_weights"]),
            refit=bool(options["refit"]),
            profiles=self._profiles(),
            timing_cache=self._timing_cache(),
        )

    def _timing_cache(self) -> TimingCache | None:
        """The cache file of this GPU, driver, version and flags in the target's folder, where it names one."""
        folder = str(self.option("timing_cache"))
        if not folder:
            return None
        gpu = gpu_fingerprint().facts
        facts = {
            **{name: gpu[name] for name in ("model", "compute_capability", "driver")},
            self.module: self.version(),
            "timing_iterations": TIMING_ITERATIONS,
            "precision": self.target.precision,
            **{name: self.option(name) for name in _TIMED_OPTIONS},
        }
        return TimingCache(timing_cache_path(Path(folder), facts), bool(self.option("pin_timing_cache")))

    def _built_for(self) -> tuple[str, ...]:
        """The compute capability of this machine's GPU, which must be one of those asked for.

        Raises:
            BuildError: this GPU is none of the target's.
        """
        here = _capability(gpu_fingerprint())
        asked = self._compute_capabilities()
        if asked and here not in asked:
            raise BuildError(
                asked=f"a plan for {', '.join(asked)} (target {self.target.name})",
                found=f"a GPU of {here}, and TensorRT builds for the GPU it runs on",
                next="Build on the target's device.",
            )
        return (here,)

    def _plan(self, model_path: Path, on_progress: Progress | None = None) -> Plan:
        self.require(self.why_not_build())
        self._built_for()
        return build_plan(self._module(), model_path, self._recipe(model_path), on_progress)

    def build(self, model_path: Path, out_dir: Path, on_progress: Progress | None = None) -> BuiltEngine:
        """Turn an ONNX file into `<stem>.plan`; `on_progress` hears of phases and fractions from another thread."""
        plan = self._plan(model_path, on_progress)
        precision, notes, memory = plan.precision, plan.notes, memory_from_log(plan.messages)
        layers = layers_from_log(plan.messages)
        if self._runs_here():
            facts = loaded_facts(self._module(), plan.data, model_path.name)
            memory |= {"device_bytes": facts.device_memory_bytes}
            if not layers:
                layers = layers_from_inspector(facts.layers_json)
                precision, notes = plan.audited.judged_by(layers)
        if not layers or any(layer.is_opaque for layer in layers):
            notes = (*notes, "the build log does not show the fused kernels")
        path = out_dir / f"{model_path.stem}{self.suffix}"
        write_atomically(path, plan.data)
        return BuiltEngine(
            path=path,
            files=(path,),
            seconds=plan.seconds,
            size_bytes=len(plan.data),
            precision=precision,
            engine_version=self.version(),
            notes=(*notes, *plan.remarks, *self._notes()),
            details={
                "compute_capabilities": list(self._built_for()),
                "batch": self.target.batch,
                "profiles": [{name: str(shapes) for name, shapes in profile.items()} for profile in plan.profiles],
                "kernels": [{"name": x.name, "op": x.op, "nodes": list(x.nodes)} for x in layers],
                "memory": memory,
                **self._timing_cache_details(plan),
            },
        )

    def _runs_here(self) -> bool:
        """Whether what was built can be loaded on this machine."""
        return self.why_not() is None and _capability(self.fingerprint()) in self._built_for()

    def _notes(self) -> tuple[str, ...]:
        """What else to say of a build."""
        return ()

    def _timing_cache_details(self, plan: Plan) -> dict[str, object]:
        cache = self._timing_cache()
        if cache is None:
            return {}
        told = {"path": str(cache.path), "sha256": plan.timing_cache_sha256, "pinned": cache.pinned}
        return {"timing_cache": told}

    def load(self, engine_path: Path) -> Session:
        """Load a plan. It is native code: check it against its manifest's hash before.

        Raises:
            MissingRuntimeError: TensorRT or a GPU is not here.
            MissingFileError, CorruptFileError, MismatchError: no file, no plan, or one for another GPU or version.
        """
        self.require(self.why_not())
        if not engine_path.is_file():
            raise MissingFileError(asked=f"engine {engine_path}", found="no such file", next="Build it first.")
        if engine_path.suffix != self.suffix:
            raise UsageError(
                asked=f"a {self.suffix} file", found=str(engine_path), next="Build the model, then load what was built."
            )
        import torch

        plan, stream = engine_path.read_bytes(), torch.cuda.Stream()
        return TensorRtSession(self._module(), plan, str(engine_path), self.target.batch, device="cuda", stream=stream)

    def executed_kernels(self, model_path: Path) -> tuple[ExecutedKernel, ...]:
        """The kernels of a build made for this: from its log, else from the engine's inspector where a GPU is here.

        Raises:
            UsageError: a built plan instead of the network it was built from.
            BuildError: the build hides its kernels.
        """
        if model_path.suffix == self.suffix:
            raise UsageError(
                asked=f"the kernels of {model_path}",
                found="a built plan, which tells them on its GPU alone, and not the settings of the nodes they run",
                next="Give the ONNX file it was built from: it is built again, and the build tells its kernels.",
            )
        plan = self._plan(model_path)
        layers = layers_from_log(plan.messages)
        if not layers and self._runs_here():
            layers = layers_from_inspector(loaded_facts(self._module(), plan.data, model_path.name).layers_json)
        return executed_kernels_from_layers(layers, node_settings(model_path, self.target.batch))


class TensorRtRtxEngine(TensorRtEngine):
    """TensorRT for RTX GPUs: builds without one, a plan for several compute capabilities at a time.

    Options as `TensorRtEngine`; `timing_cache` changes nothing (this flavour times nothing at build time), which a
    note says; `refit` builds on the card alone, for its one capability; `compute_capabilities` are those the plan is
    built for, by default Ampere, Ada and Blackwell cards.
    The kernel table in the log is the fusion common to them; the kernels' tactics are chosen on the device.
    """

    name = "tensorrt-rtx"
    options: Mapping[str, OptionValue] = {**_COMMON_OPTIONS, "compute_capabilities": ("sm86", "sm89", "sm120")}
    extra = "tensorrt-rtx"
    module = "tensorrt_rtx"
    oldest = (1, 4)

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if not self._compute_capabilities():
            raise self._wrong("compute_capabilities", "none", "Name at least one, like sm89.")
        if self.option("refit") and len(self._compute_capabilities()) > 1:
            found = (
                f"{len(self._compute_capabilities())} compute capabilities ({', '.join(self._compute_capabilities())})"
            )
            raise self._wrong("refit", found, "TensorRT-RTX keeps weights replaceable for one alone: name one.")

    def why_not_build(self) -> str | None:
        return self._why_no_module()

    def _recipe(self, model_path: Path) -> Recipe:
        return replace(
            super()._recipe(model_path), compute_capabilities=self._compute_capabilities(), absorbs_failures=True
        )

    def _built_for(self) -> tuple[str, ...]:
        return self._compute_capabilities()

    def _timing_cache(self) -> TimingCache | None:
        return None

    def _notes(self) -> tuple[str, ...]:
        told = "timing_cache does nothing: TensorRT-RTX times no kernel when it builds, but on the card that runs it"
        return (told,) if self.option("timing_cache") else ()
