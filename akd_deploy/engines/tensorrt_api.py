"""What of TensorRT's module this project uses, as types: `trt` is handed around as a `TensorRt`.

The types are those of TensorRT-RTX (`typings/`), which has the API of TensorRT 11. What other versions have or lack is
asked of them at run time: enumerations through `__members__`, and the sizes in `device_memory_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorrt_rtx as api


class TensorRt(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    __name__: str
    __version__: str
    Builder: type[api.Builder]
    BuilderFlag: type[api.BuilderFlag]
    ComputeCapability: type[api.ComputeCapability]
    Dims: type[api.Dims]
    ILogger: type[api.ILogger]
    IProfiler: type[api.IProfiler]
    IProgressMonitor: type[api.IProgressMonitor]
    LayerInformationFormat: type[api.LayerInformationFormat]
    LayerType: type[api.LayerType]
    MemoryPoolType: type[api.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[api.NetworkDefinitionCreationFlag]
    OnnxParser: type[api.OnnxParser]
    ProfilingVerbosity: type[api.ProfilingVerbosity]
    Runtime: type[api.Runtime]
    TensorIOMode: type[api.TensorIOMode]

    def __hash__(self) -> int: ...


class _SizedBefore11(Protocol):
    """What an engine of 10.x calls the size that 11 calls `device_memory_size_v2`."""

    @property
    def device_memory_size(self) -> int: ...


def device_memory_bytes(engine: api.ICudaEngine | _SizedBefore11) -> int:
    """The scratch memory that one execution context of an engine takes on the device."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)
