"""What OpenVINO executes for networks that its fusion rules are tested on."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from fusion.fusion_networks import GOLDEN, skeleton

from akd_deploy.kernel import ExecutedKernel
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.target import Target

PRECISIONS = ("fp32", "bf16")
FLAGS = {
    "AVX2": ("avx2",),
    "AVX512_CORE": ("avx2", "avx512f"),
    "AVX512_CORE_BF16": ("avx2", "avx512f", "avx512_bf16"),
    "AVX512_CORE_AMX": ("avx2", "avx512f", "avx512_bf16", "amx_int8", "amx_bf16"),
}
"""CPUs as the runtime's library of kernels calls them → their instruction sets as a fingerprint has them."""
ISAS = {"fp32": tuple(FLAGS), "bf16": ("AVX512_CORE_BF16", "AVX512_CORE_AMX")}
"""Precision → the CPUs that there are rules for."""


def with_values(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The model with numbers where values are missing: zeros would be left out of what is executed."""
    return filled(model, np.random.default_rng(seed))


def of_openvino(model: onnx.ModelProto, precision: str, folder: Path, threads: int = 1) -> tuple[ExecutedKernel, ...]:
    """What OpenVINO executes for the model on this machine's CPU."""
    from akd_deploy.engines.openvino_engine import OpenVinoEngine

    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    options = {"threads": threads, "pinning": False}
    target = Target("t", device="cpu", engine="openvino", precision=precision, batch=1, engine_options=options)
    return OpenVinoEngine(target).executed_kernels(path)


def golden_path(name: str) -> Path:
    return GOLDEN / "fusion" / f"openvino_{name}.jsonl.gz"


def golden_names() -> list[str]:
    paths = (GOLDEN / "fusion").glob("openvino_*.jsonl.gz")
    return sorted(path.name.removeprefix("openvino_").removesuffix(".jsonl.gz") for path in paths)


def read_golden(name: str) -> dict[tuple[str, str], list[str]]:
    """(precision, a name in `ISAS`) → the signatures of the kernels executed, in order."""
    _, *lines = gzip.decompress(golden_path(name).read_bytes()).decode().splitlines()
    return {(entry["precision"], isa): entry["kernels"] for entry in map(json.loads, lines) for isa in entry["isas"]}


def write_golden(names: Iterable[str], folder: Path) -> None:
    """Note what the runtime makes of networks on the CPUs in `ISAS`; this one must have AVX-512, bfloat16 and AMX.

    A CPU with less is emulated: a process of its own is told to use no more than such a one has. From the repository's
    root: `PYTHONPATH=tests:. python -c "from fusion.openvino_networks import *; write_golden(['resnet50'],
    Path('/tmp'))"`.
    """
    import openvino

    for name in names:
        model = with_values(skeleton(name))
        lines = [json.dumps({"runtime": openvino.__version__.partition("-")[0]})]
        for precision in PRECISIONS:
            by_kernels: dict[tuple[str, ...], list[str]] = {}
            for isa in ISAS[precision]:
                by_kernels.setdefault(emulated(model, precision, isa, folder), []).append(isa)
            for kernels, isas in by_kernels.items():
                lines.append(json.dumps({"precision": precision, "isas": isas, "kernels": kernels}))
        golden_path(name).write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def emulated(model: onnx.ModelProto, precision: str, isa: str, folder: Path) -> tuple[str, ...]:
    """Signatures of what OpenVINO executes where it is told to use no more instructions than a CPU of this kind has."""
    path = folder / "to_emulate.onnx"
    path.write_bytes(model.SerializeToString())
    program = (
        "import json, sys, onnx; from pathlib import Path; from fusion.openvino_networks import of_openvino; "
        "kernels = of_openvino(onnx.load(sys.argv[1]), sys.argv[2], Path(sys.argv[1]).parent); "
        "print(json.dumps([kernel.kernel.signature for kernel in kernels]))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    command = [sys.executable, "-c", program, str(path), precision]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return tuple(json.loads(told.splitlines()[-1]))
