"""What decides what TensorRT builds, and how its builder is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from akd_deploy.engines.tensorrt_api import TensorRt
from akd_deploy.engines.tensorrt_callbacks import message_log
from akd_deploy.engines.tensorrt_profiles import Profile
from akd_deploy.engines.tensorrt_timing import TimingCache, read_timing_cache
from akd_deploy.errors import BuildError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import tensorrt_rtx as api

TIMING_ITERATIONS = 8
"""TensorRT's own default of 1 picks kernels by one noisy timing each."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is built; `compute_capabilities` () means this machine's GPU.

    `profiles` () means fixed shapes at `batch`. `absorbs_failures`: see `build_plan`.
    """

    what: str
    precision: str
    batch: int
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace_mib: int = 0
    version_compatible: bool = False
    tf32: bool = False
    sparse_weights: bool = False
    refit: bool = False
    profiles: tuple[Profile, ...] = ()
    timing_cache: TimingCache | None = None
    absorbs_failures: bool = False


def configure(trt: TensorRt, builder: api.Builder, config: api.IBuilderConfig, recipe: Recipe) -> str | None:
    """Tell a builder's configuration what to build. Returns the SHA-256 of the timing cache that was read, if any.

    Raises:
        UsageError: this version lacks a flag.
        UnknownNameError, BuildError: a compute capability that it does not know, or refuses.
        MissingFileError, StorageError, CorruptFileError: see `read_timing_cache`.
    """
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = recipe.optimization_level
    config.avg_timing_iterations = TIMING_ITERATIONS
    if recipe.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib * _MIB)
    pinned = recipe.timing_cache is not None and recipe.timing_cache.pinned
    flags: dict[str, tuple[bool, Callable[[], api.BuilderFlag]]] = {
        # On by default, so fp32 has to switch it off.
        "TF32": (recipe.precision == "tf32" or recipe.tf32, lambda: trt.BuilderFlag.TF32),
        "SPARSE_WEIGHTS": (recipe.sparse_weights, lambda: trt.BuilderFlag.SPARSE_WEIGHTS),
        "VERSION_COMPATIBLE": (recipe.version_compatible, lambda: trt.BuilderFlag.VERSION_COMPATIBLE),
        "REFIT": (recipe.refit, lambda: trt.BuilderFlag.REFIT),
        "ERROR_ON_TIMING_CACHE_MISS": (pinned, lambda: trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS),
    }
    for name, (on, flag) in flags.items():
        if name in trt.BuilderFlag.__members__:
            (config.set_flag if on else config.clear_flag)(flag())
        elif on:
            raise UsageError(
                asked=f"builder flag {name} for {recipe.what}",
                found=f"{trt.__name__} {trt.__version__} without it",
                next="Leave the option out.",
            )
    if recipe.compute_capabilities:
        _set_compute_capabilities(trt, config, recipe)
    for profile in recipe.profiles:
        _add_profile(trt, builder, config, profile, recipe)
    return None if recipe.timing_cache is None else read_timing_cache(config, recipe.timing_cache)


def _set_compute_capabilities(trt: TensorRt, config: api.IBuilderConfig, recipe: Recipe) -> None:
    known = {n.lower(): c for n, c in trt.ComputeCapability.__members__.items() if re.fullmatch(r"SM\d+", n)}
    for name in recipe.compute_capabilities:
        if name not in known:
            raise UnknownNameError("compute capability", name, known, where=f"{trt.__name__} {trt.__version__}")
    # A slot counted and left empty ends the build with an unexplained C++ exception: fill every one.
    config.num_compute_capabilities = len(recipe.compute_capabilities)
    for slot, name in enumerate(recipe.compute_capabilities):
        if not config.set_compute_capability(known[name], slot):
            raise BuildError(
                asked=f"a plan for {', '.join(recipe.compute_capabilities)}",
                found=f"{name} refused: {'; '.join(message_log(trt).errors())}",
                next=f"{trt.__name__} {trt.__version__} knows {', '.join(known)}.",
            )


def _add_profile(
    trt: TensorRt, builder: api.Builder, config: api.IBuilderConfig, profile: Profile, recipe: Recipe
) -> None:
    made = builder.create_optimization_profile()
    for name, shapes in profile.items():
        made.set_shape(name, trt.Dims(shapes.min), trt.Dims(shapes.opt), trt.Dims(shapes.max))
    if config.add_optimization_profile(made) < 0:
        raise BuildError(
            asked=f"shapes {' '.join(f'{name}:{shapes}' for name, shapes in profile.items())} for {recipe.what}",
            found="; ".join(message_log(trt).errors()) or "a profile that was refused without a reason",
            next="Change the profile as the message says.",
        )
