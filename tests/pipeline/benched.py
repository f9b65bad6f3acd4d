"""Benches of a real file on a made-up clock: what its processes would have taken is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from akd_deploy.profiling import blocks
from akd_deploy.profiling.blocks import Protocol, Taken, TakenDetail
from akd_deploy.target import Target

HERE = Target("here", device="cpu", engine="onnxruntime", engine_options={"threads": 1})

Clock = Callable[[str, int], tuple[float, ...]]
"""(model, how many-eth time) → the samples of that process."""


def install(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, steal: Callable[[str, int], float] = lambda name, nth: 0.0
) -> list[Protocol]:
    """Stand in for worker processes; returns the protocols that they are told.

    Args:
        steal: (model, how many-eth time) → the share of its time that the hypervisor took.
    """
    told: list[Protocol] = []
    times: Counter[str] = Counter()

    def run_block(
        target: Target, models: Mapping[str, Path], order: list[str], protocol: Protocol, *rest: object
    ) -> Generator[tuple[str, Taken], None, None]:
        told.append(protocol)
        for place, name in enumerate(order):
            nth = times[name]
            times[name] += 1
            cold = place == 0
            parts = {"enqueue_s": [1e-4] * 3, "compute_s": [1e-3] * 3} if protocol.boundary != "host" else {}
            detail = TakenDetail(2e-3, 0.5 + nth if cold else None, 0.25 if cold else None, (1,), parts)
            yield name, Taken(clock(name, nth), 1.0, steal(name, nth), detail=detail)

    monkeypatch.setattr(blocks, "_run_block", run_block)
    return told


def steady(factor: float = 1.0, scatter: float = 0.01, seed: int = 0) -> Clock:
    """Processes that differ by `scatter`, 100 samples each."""
    rng = np.random.default_rng(seed)

    def clock(name: str, nth: int) -> tuple[float, ...]:
        return tuple(factor * 1e-3 * np.exp(rng.normal(0, scatter) + rng.normal(0, 0.005, 100)))

    return clock


def classifier(path: Path, batch: int = 1, bias: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Path:
    """Three classes: the largest of three inputs, each with a bias."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["scores"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor("bias", TensorProto.FLOAT, [3], bias)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
    return path
