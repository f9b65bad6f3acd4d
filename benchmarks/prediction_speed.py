"""Predictions per second: of a compiled search space, and of single networks.

    python benchmarks/prediction_speed.py --target cpu_onnxruntime_fp32

Scoring tokens is what a search does, and must reach 50,000 architectures a second on one core; the exit code is 3
where it does not. The target must have a latency table (`akd-deploy profile`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from akd_deploy.pipeline.latency import target_latency, write_model
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.target import load_target

REQUIRED_PER_S = 50_000
"""Architectures a second by their tokens, on one core."""
TOKENS, ARCHITECTURES, NETWORKS = 200_000, 20_000, 10
"""How many of each are scored in one go, or predicted one by one."""
REPEATS = 5


def seconds_of(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of one call, the first one left out."""
    call()
    return median(one_s(call) for _ in range(repeats))


def one_s(call: Callable[[], object]) -> float:
    """Seconds of a single call."""
    began = perf_counter()
    call()
    return perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu_onnxruntime_fp32")
    parser.add_argument("--space", default="mobile", help="a space's name, or a run.toml that has one")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    latency, space = target_latency(load_target(given.target)), named_space(given.space)
    rng = np.random.default_rng(0)
    began = perf_counter()
    compiled = latency.compile(space)
    compile_s = perf_counter() - began

    tokens = space.sample_tokens(TOKENS, rng)
    architectures = [space.from_tokens(row) for row in tokens[:ARCHITECTURES]]
    few = architectures[:NETWORKS]
    with tempfile.TemporaryDirectory() as scratch:
        models = [write_model(latency.target, architecture, Path(scratch)) for architecture in few]
        model_s = median(one_s(lambda path=path: latency.predict_model(path)) for path in models)
    result = {
        "target": given.target,
        "space": given.space,
        "tokens_per_s": len(tokens) / seconds_of(lambda: compiled.latencies_s(tokens)),
        "architectures_per_s": len(architectures) / seconds_of(lambda: compiled.predict(architectures)),
        "compile_s": compile_s,
        "predict_architecture_s": median(one_s(lambda a=a: latency.predict_architecture(a)) for a in few),
        "predict_model_s": model_s,
        "required_tokens_per_s": REQUIRED_PER_S,
        "ok": False,
    }
    result["ok"] = result["tokens_per_s"] >= REQUIRED_PER_S
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24}", f"{value:,.0f}" if name.endswith("_per_s") else f"{value:.4g}"
                  if isinstance(value, float) else value)  # fmt: skip
    return 0 if result["ok"] else 3


if __name__ == "__main__":
    sys.exit(main())
