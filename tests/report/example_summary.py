"""A full summary of a run, and the least one, built from fixed seeds: every part the report knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from akd_deploy.certificate import certify
from akd_deploy.kernel import Kernel

BUDGET_S = 412e-6


def minimal_summary() -> dict[str, Any]:
    """A run that ended before it had anything but a name."""
    return {"name": "stopped early"}


def example_summary(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    layers, overhead_s = _layers(), 8.4e-6
    predicted_s = sum(layer["latency_s"] for layer in layers) + overhead_s
    blocks = {i: predicted_s * 1.02 * rng.gamma(400, 1 / 400, 100) * rng.normal(1, 0.015) for i in range(12)}
    for samples in blocks.values():
        samples[rng.random(100) < 0.05] *= rng.uniform(1.05, 1.6)
    pooled = np.concatenate(list(blocks.values()))
    certificate = certify(blocks, BUDGET_S, percentile=90, confidence=0.99)
    points = _points(rng)
    search = _search(rng)
    return {
        "name": "digits demo",
        "seed": 7,
        "version": "0.1.0",
        "created": "2025-03-14T15:09:26+00:00",
        "run_dir": "runs/demo",
        "target": {
            "name": "cpu_onnxruntime_fp32",
            "device": "cpu",
            "engine": "onnxruntime",
            "precision": "fp32",
            "batch": 1,
            "host": "local",
            "engine_options": {"threads": 1, "optimization_level": "all"},
        },
        "device": {
            "kind": "cpu",
            "machine": "x86_64",
            "model": "Example CPU @ 2.50GHz",
            "isa": "avx2 avx512f avx512_vnni fma",
            "cores": "2",
        },
        "engine_version": "1.31.0",
        "budget": {"text": "40%", "budget_s": BUDGET_S, "percentile": 90, "of": "teacher"},
        "profile": {
            "table": "cpu_onnxruntime_fp32/3f9a12bc44d0",
            "probes": 160,
            "networks": 24,
            "seconds": 143.2,
            "sigma": 0.021,
            "remeasured": 3,
        },
        "predictor": {
            "calibrated_on": "networks",
            "factor": 1.083,
            "width": 1.62,
            "coverage": 0.9,
            "tail_factor": 1.09,
            "certificate_factor": 1.12,
            "scores": {
                "items": len(points),
                "mape": 0.0314,
                "within_5": 0.7917,
                "within_10": 0.9583,
                "worst": 0.1182,
                "kendall_tau": 0.942,
                "spearman": 0.991,
                "coverage": 0.9167,
                "sigma": 0.021,
                "floor_mape": 0.0168,
            },
            "points": points,
        },
        "feasible": {
            "min_s": 9.1e-5,
            "median_s": 4.8e-4,
            "max_s": 1.43e-3,
            "fraction_within_budget": 0.376,
            "histogram": _histogram(rng),
        },
        "teacher": {
            "source": "package.module:factory",
            "accuracy": 0.9861,
            "latency_s": 1.03e-3,
            "certifiable_s": 1.11e-3,
            "parameters": 1_234_567,
        },
        "search": search,
        "winner": {
            "arch": {
                "space": "mobile",
                "settings": {"resolution": 12, "widths": [16, 24, 48], "classes": 10},
                "choices": _choices(),
            },
            "digest": search["front"][1]["arch"],
            "budget_s": BUDGET_S,
            "predicted_s": predicted_s,
            "interval_s": [predicted_s * 0.94, predicted_s * 1.06],
            "in_domain": True,
            "measured_s": {
                "median": float(np.median(pooled)),
                "p90": float(np.percentile(pooled, 90)),
                "p99": float(np.percentile(pooled, 99)),
            },
            "sigma": 0.0147,
            "certificate": certificate.as_dict(),
            "blocks": {str(i): samples.tolist() for i, samples in blocks.items()},
            "parameters": 38_412,
            "macs": 1_204_224,
            "layers": layers,
            "overhead_s": overhead_s,
        },
        "accuracy": {
            "teacher": {"mean": 0.9861, "spread": 0.0, "seeds": 1},
            "kd": {"mean": 0.9723, "spread": 0.0031, "seeds": 3},
            "ce": {"mean": 0.9648, "spread": 0.0042, "seeds": 3},
            "hand_shrunk": {
                "within_budget": False,
                "mean": 0.9667,
                "spread": 0.0027,
                "seeds": 3,
                "arch": "5d0c6f21a9be",
                "latency_s": 3.98e-4,
            },
            "per_seed": {
                "kd": [0.9694, 0.9722, 0.9756],
                "ce": [0.9611, 0.9639, 0.9694],
                "hand_shrunk": [0.9639, 0.9667, 0.9694],
            },
            "paired": [
                {"a": "kd", "b": "ce", "mean": 0.0075, "low": 0.0021, "high": 0.0129, "n": 3},
                {"a": "kd", "b": "hand_shrunk", "mean": 0.0056, "low": -0.0008, "high": 0.012, "n": 3},
            ],
            "test_images": 360,
        },
        "export": {
            "parity": {"max_abs": 3.8e-6, "cosine": 0.9999999, "top1_agreement": 1.0, "samples": 360},
            "variants": [
                {
                    "mode": "fp32",
                    "accuracy": 0.9722,
                    "latency_stats_s": {"median": 3.21e-4, "p90": 3.49e-4, "p99": 4.4e-4},
                    "recommended": True,
                    "note": "",
                },
                {
                    "mode": "int8",
                    "accuracy": 0.9694,
                    "latency_stats_s": {"median": 3.34e-4, "p90": 3.61e-4, "p99": 4.52e-4},
                    "recommended": False,
                    "note": "not faster: ratio 1.04 (1.02 to 1.06)",
                },
                {
                    "mode": "fp8",
                    "accuracy": None,
                    "latency_stats_s": None,
                    "recommended": False,
                    "note": "this engine has no fp8 kernels on a CPU",
                },
            ],
            "engines": [
                {
                    "target": "cpu_onnxruntime_fp32",
                    "precision": {"float32": 23},
                    "size_bytes": 161_224,
                    "seconds": 0.41,
                    "latency_stats_s": {"median": 3.21e-4, "p90": 3.49e-4, "p99": 4.4e-4},
                    "ratio": None,
                    "sigma": 0.012,
                    "parity": {"max_abs": 1.2e-5, "cosine": 0.99998, "top1_agreement": 1.0},
                    "why_not": None,
                },
                {
                    "target": "cpu_openvino_fp32",
                    "precision": {"float32": 19, "int64": 2},
                    "size_bytes": 1_802_240,
                    "seconds": 1.93,
                    "latency_stats_s": {"median": 2.87e-4, "p90": 3.2e-4, "p99": 4.1e-4},
                    "ratio": {"ratio": 0.894, "low": 0.871, "high": 0.918},
                    "sigma": 0.012,
                    "parity": {"max_abs": 1.2e-5, "cosine": 0.99998, "top1_agreement": 1.0},
                    "why_not": None,
                },
                {
                    "target": "rtx_tensorrt_fp16",
                    "precision": None,
                    "size_bytes": None,
                    "seconds": None,
                    "latency_stats_s": None,
                    "ratio": None,
                    "sigma": None,
                    "why_not": "no NVIDIA GPU on this machine; run the build on one that has it",
                },
            ],
        },
        "bundle": {"path": "runs/demo/bundle", "files": 9, "sha256": "ab12" * 16},
        "stages": [
            {"name": "profile", "seconds": 143.2},
            {"name": "search", "seconds": 512.8},
            {"name": "distill", "seconds": 88.6},
            {"name": "export", "seconds": 12.4},
        ],
        "seconds": 757.0,
        "limits": [
            "Three seeds resolve differences of about one percentage point, not less.",
            "Test images: 360, so one image is 0.28 points.",
        ],
    }


def _choices() -> dict[str, object]:
    blocks = [
        ("mbconv3", 3, 0.0, "identity", 1, 0.75),
        ("conv", 3, 0.0, "none", 1, 0.5),
        ("mbconv6", 5, 0.25, "identity", 2, 1.0),
    ]
    keys = ("op", "kernel", "se", "skip", "layers", "width")
    return {f"b{b}.{key}": value for b, values in enumerate(blocks) for key, value in zip(keys, values, strict=True)}


def _layers() -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = []
    channels, size = 1, 12
    for i, (out, stride) in enumerate([(8, 1), (12, 1), (24, 2), (24, 1), (48, 2), (48, 1), (48, 1)]):
        conv = Kernel(
            op="Conv",
            inputs=((1, channels, size, size), (out, channels, 3, 3), (out,)),
            outputs=((1, out, size // stride, size // stride),),
            attributes=(("groups", 1), ("kernel_size", (3, 3)), ("strides", (stride, stride))),
        )
        size //= stride
        relu = Kernel(op="Relu", inputs=((1, out, size, size),), outputs=((1, out, size, size),))
        layers.append({"name": f"/b{i}/conv/Conv", "kernel": conv.signature, "latency_s": (9 + 7 * i) * 1.1e-6})
        layers.append({"name": f"/b{i}/act/Relu", "kernel": relu.signature, "latency_s": (14 - i) * 0.45e-6})
        channels = out
    gemm = Kernel(op="Gemm", inputs=((1, 48), (10, 48), (10,)), outputs=((1, 10),))
    return [*layers, {"name": "/head/Gemm", "kernel": gemm.signature, "latency_s": 4.2e-6}]


def _points(rng: np.random.Generator) -> list[dict[str, Any]]:
    points = []
    for i, measured in enumerate(np.geomspace(1.2e-4, 1.3e-3, 24)):
        predicted = float(measured * rng.normal(1, 0.035))
        points.append(
            {
                "name": f"network {i}",
                "predicted_s": predicted,
                "low_s": predicted * 0.93,
                "high_s": predicted * 1.07,
                "measured_s": float(measured),
            }
        )
    return points


def _histogram(rng: np.random.Generator) -> dict[str, Any]:
    counts, edges = np.histogram(rng.lognormal(np.log(4.8e-4), 0.4, 5000).clip(9.1e-5, 1.43e-3), bins=40)
    return {"edges_s": edges.tolist(), "counts": counts.tolist()}


def _search(rng: np.random.Generator) -> dict[str, Any]:
    trials, strategies = [], []
    for s, name in enumerate(("akd_rl", "evolution", "random")):
        states = []
        for i in range(60):
            state = str(rng.choice(["done", "infeasible", "duplicate", "failed"], p=[0.6, 0.3, 0.08, 0.02]))
            latency_s = float(rng.uniform(1.2e-4, 3.9e-4))
            accuracy = float(0.90 + 0.06 * (latency_s / 4e-4) ** 0.5 + rng.normal(0, 0.006) + 0.0002 * i * (2 - s))
            done = state == "done"
            states.append(state)
            trials.append(
                {
                    "id": 60 * s + i,
                    "strategy": name,
                    "state": state,
                    "arch": f"{60 * s + i:012x}",
                    "latency_s": latency_s,
                    "upper_s": latency_s * 1.07,
                    "reward": accuracy * (latency_s / BUDGET_S) ** -0.07 if done else None,
                    "accuracy": accuracy if done else None,
                    "seconds": 4.1 if done else 0.0,
                }
            )
        strategies.append(
            {
                "name": name,
                "trained": states.count("done"),
                "infeasible": states.count("infeasible"),
                "duplicates": states.count("duplicate"),
                "failed": states.count("failed"),
                "best_reward": max(t["reward"] or 0 for t in trials[60 * s :]),
                "seconds": 4.1 * states.count("done"),
            }
        )
    front: list[dict[str, Any]] = []
    for trial in sorted((t for t in trials if t["state"] == "done"), key=lambda t: t["latency_s"]):
        if not front or trial["accuracy"] > front[-1]["accuracy"]:
            front.append({key: trial[key] for key in ("arch", "latency_s", "reward", "accuracy")})
    return {"trials": trials, "front": front, "strategies": strategies, "seconds": 512.8}
