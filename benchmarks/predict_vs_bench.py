"""Predictions against measurements, on networks drawn at random from a search space.

    python benchmarks/predict_vs_bench.py --target cpu_onnxruntime_fp32 --networks 48 --space run.toml

Each network is written as ONNX, predicted as `akd-deploy predict --onnx` does, and measured as `akd-deploy bench` does;
scored against its latency while nothing else slowed the machine, which is what is predicted, and against its median.
The target must have a latency table of that space (`akd-deploy profile`); none of the networks is in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

import akd_deploy.pipeline
from akd_deploy.pipeline.latency import target_latency, write_model
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.predictor.scores import scores_of
from akd_deploy.profiling.blocks import Protocol, measure_blocks
from akd_deploy.target import load_target
from akd_deploy.units import format_seconds

DEMO = Path(akd_deploy.pipeline.__file__).with_name("demo.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu_onnxruntime_fp32")
    parser.add_argument(
        "--space", default=str(DEMO), help="a space's name, or a run.toml that has one; as given, the demo's"
    )
    parser.add_argument("--networks", type=int, default=48)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    latency = target_latency(load_target(given.target))
    space, rng = named_space(given.space), np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        models = {}
        for _ in range(given.networks):
            architecture = space.sample(rng)
            models[architecture.digest] = write_model(latency.target, architecture, Path(scratch))
        predictions = {name: latency.predict_model(path) for name, path in models.items()}
        protocol = Protocol(blocks=given.blocks, warmup_s=0.02, seconds=0.05, min_samples=100, max_samples=2_000)
        measured = measure_blocks(
            latency.target,
            models,
            protocol,
            rng,
            lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr),
        )
    print(file=sys.stderr)
    rows = [
        {
            "network": name,
            "predicted_s": predictions[name].latency_s,
            "interval_s": list(predictions[name].interval_s),
            "measured_s": value.measurement.label_s,
            "median_s": value.measurement.median_s,
            "sigma": value.measurement.sigma,
            "label_sigma": value.measurement.label_sigma,
        }
        for name, value in measured.items()
    ]
    predicted = np.array([row["predicted_s"] for row in rows])
    actual = np.array([row["measured_s"] for row in rows])
    covered = np.array([row["interval_s"][0] <= row["measured_s"] <= row["interval_s"][1] for row in rows])
    sigmas = [row["label_sigma"] for row in rows if row["label_sigma"] is not None]
    scores = asdict(scores_of(predicted, actual, covered, float(np.median(sigmas)) if sigmas else None))
    medians = np.array([row["median_s"] for row in rows])
    scatter = float(np.median([row["sigma"] for row in rows])) if given.blocks > 1 else None
    to_medians = asdict(scores_of(predicted, medians, None, scatter))
    if given.json:
        print(json.dumps({"target": given.target, "scores": scores, "to_medians": to_medians, "networks": rows}))
        return
    for row in sorted(rows, key=lambda row: row["measured_s"]):
        print(
            f"{row['network']}  predicted {format_seconds(row['predicted_s']):>8}  measured "
            f"{format_seconds(row['measured_s']):>8}  {row['predicted_s'] / row['measured_s'] - 1:+.1%}"
        )
    for heading, one in (("at full speed", scores), ("to medians of all blocks", to_medians)):
        print(heading)
        for name, value in one.items():
            print(f"  {name:12} {value:.4g}" if isinstance(value, float) else f"  {name:12} {value}")


if __name__ == "__main__":
    main()
