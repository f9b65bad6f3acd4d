"""The summary of a finished run: plain JSON, the one thing the report is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

import akd_deploy
from akd_deploy.architecture import architecture_from_dict
from akd_deploy.configuration import RunConfiguration
from akd_deploy.latency_table import NETWORK, PROBE
from akd_deploy.pipeline.choose import front
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.typed import is_archive
from akd_deploy.predictor.fitting import calibration_points
from akd_deploy.predictor.predictor import Prediction
from akd_deploy.recipes.paired_seeds import paired
from akd_deploy.report.report import write_report
from akd_deploy.search_space.operations import operations
from akd_deploy.storage import write_text_atomically

MAX_ACCURACY_LOSS = 0.01
"""A faster variant that loses more than this share of the test images is not recommended."""


PARITY_SHOWN = ("max_abs", "cosine", "top1_agreement")
"""What the summary has of each engine's comparison with torch."""


def _mean_spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and how many."""
    return {
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
    }


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Mean of a − b over paired seeds with Student's 95 % interval; one of no width where all differences are equal."""
    found = paired(a, b)
    low, high = (found.mean, found.mean) if np.isnan(found.low) else (found.low, found.high)
    return {"mean": found.mean, "low": low, "high": high, "n": found.n}


def reported(outcome: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Write a summary, and its report beside it; returned is what was written, so that a resumed run, and `report`,
    give the very same page."""
    text = json.dumps(outcome, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_text_atomically(directory / "summary.json", text)
    written: dict[str, Any] = json.loads(text)
    write_report(written, directory / "report.html")
    return written


def common_parts(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that do not depend on how the student was found."""
    configuration, latency = run.configuration, run.latency
    predictor = latency.predictor
    return {
        "name": configuration.name,
        "seed": configuration.seed,
        "version": akd_deploy.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_dir": str(run.directory),
        "target": run.target.as_dict(),
        "device": dict(predictor.device.facts),
        "engine_version": latency.table.header.engine_version,
        "budget": {
            "text": configuration.budget,
            "budget_s": results["budget"]["budget_s"],
            "percentile": configuration.certificate.percentile,
            "of": results["budget"]["of"],
        },
        "profile": {
            **results["profile"],
            "probes": len(latency.table.of_kind(PROBE)),
            "networks": len(latency.table.of_kind(NETWORK)),
            "sigma": latency.table.sigma,
            "remeasured": sum(row.remeasured for row in latency.table.rows),
        },
        "predictor": {
            "calibrated_on": predictor.calibrated_on,
            "factor": predictor.factor,
            "width": predictor.width,
            "coverage": predictor.coverage,
            "tail_factor": predictor.tail_factor(configuration.certificate.percentile),
            "certificate_factor": latency.certificate_factor(configuration.certificate),
            "left_out": predictor.left_out,
            "scores": predictor.scores.__dict__,
            "points": calibration_points(predictor, latency.table),
        },
        "teacher": {
            key: results["teacher"][key]
            for key in ("source", "accuracy", "latency_s", "certifiable_s", "parameters", "ensemble")
        },
        "process": results.get("process"),
        "oracle_beta": results.get("beta"),
        "export": {
            "parity": {k: v for k, v in results["export"]["parity"].items() if k != "per_output"},
            "variants": _variants(run, results),
            "engines": _engines(results),
        },
        "bundle": {key: results["bundle"][key] for key in ("path", "files", "sha256")},
        "stages": [{"name": name, "seconds": seconds} for name, seconds in run.stages.items()],
        "seconds": sum(run.stages.values()),
    }


def winner_parts(run: Run, results: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
    """What is known of the shipped student, but for what it looks like."""
    main = results["measure"]["measured"][run.target.name]
    return {
        "method": run.configuration.distill.method,
        "budget_s": results["budget"]["budget_s"],
        "predicted_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "in_domain": prediction.in_domain,
        "measured_s": main["latency_stats_s"],
        "full_speed_s": main.get("full_speed_s"),
        "sigma": main["sigma"],
        "certificate": results["measure"]["certificate"],
        "bundle": str(run.directory / results["bundle"]["path"]),
        "blocks": main["blocks"],
        "layers": [
            {"name": layer.name, "kernel": layer.kernel.signature, "latency_s": layer.latency_s}
            for layer in prediction.layers
        ],
        "overhead_s": prediction.overhead_s,
    }


def accuracy_parts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of every arm on the test images, mean and spread over seeds; the teacher's; latencies of networks shrunk
    by hand, which are arms of their own names."""
    scores = results["distill"]["scores"]
    accuracy = {arm: _mean_spread([row["accuracy"] for row in rows]) for arm, rows in scores.items()}
    accuracy["teacher"] = {"mean": results["teacher"]["accuracy"], "spread": None, "seeds": 1}
    for arm in scores.keys() & results["confirm"].keys():
        hand = results["confirm"][arm]
        accuracy[arm] |= {"latency_s": hand["measured_s"]["median"], "within_budget": hand["certificate"]["ok"]}
    return accuracy


def summary(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run's summary, whose student a search found."""
    configuration = run.configuration
    winner_architecture = architecture_from_dict(results["confirm"]["winner"]["arch"])
    steps = operations(run.space.layers(winner_architecture))
    method = configuration.distill.method
    per_seed = {arm: [row["accuracy"] for row in rows] for arm, rows in results["distill"]["scores"].items()}
    accuracy, hand = accuracy_parts(results), results["confirm"]["hand_shrunk"]
    accuracy["hand_shrunk"]["arch"] = architecture_from_dict(hand["arch"]).digest
    searches = {name.removeprefix("search-"): r for name, r in results.items() if name.startswith("search-")}
    main, test_images = results["measure"]["measured"][run.target.name], len(run.bed.dataset.test)
    return {
        **common_parts(run, results),
        "feasible": results["budget"]["feasible"],
        "search": {
            # A list, as tokens are in this order, which a JSON object's keys need not keep.
            "choices": [[name, list(options)] for name, options in run.space.choices.items()],
            "trials": [
                {**row, "arch": row["digest"], "tokens": run.space.tokens(architecture_from_dict(row["arch"])).tolist()}
                for r in searches.values()
                for row in r["trials"]
            ],
            "front": front(results),
            "strategies": [
                {
                    "name": name,
                    "trained": r["counts"]["done"],
                    "infeasible": r["counts"]["infeasible"],
                    "duplicates": r["counts"]["duplicate"],
                    "failed": r["counts"]["failed"],
                    "best_reward": r["best_reward"],
                    "seconds": sum(r["seconds"].values()),
                    "shared_weights": r["shared"],
                }
                for name, r in searches.items()
            ],
            "seconds": sum(run.stages[f"search-{name}"] for name in searches),
        },
        "winner": {
            **winner_parts(run, results, run.prediction(results)),
            "arch": winner_architecture.as_dict(),
            "digest": winner_architecture.digest,
            "accuracy": accuracy,
            "parameters": sum(step.parameters for step in steps),
            "macs": sum(step.macs for step in steps),
        },
        "accuracy": {
            **accuracy,
            "per_seed": per_seed,
            "paired": [
                {"a": method, "b": other, **paired_difference(per_seed[method], per_seed[other])}
                for other in per_seed
                if other != method
            ],
            "test_images": test_images,
        },
        "limits": [
            *limits_of(len(per_seed[method]), test_images, configuration, main["remeasured"]),
            f"Each of {len(searches)} strategies searched once, with one seed: that one of them found the best student "
            "says nothing about strategies.",
            _about_hand_shrunk(results["hand-shrunk"]["bound_to_fit"], hand["certificate"]["ok"]),
        ],
    }


def _variants(run: Run, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Typed variants measured on the run's own target, beside the float32 network."""
    measured, accuracy = results["measure"]["measured"], results["measure"]["variant_accuracy"]
    own = results["measure"]["own_mode"]
    rows = []
    for mode in sorted(results["export"]["models"], key=lambda mode: (mode != own, mode)):
        if is_archive(mode):
            continue
        found = measured.get(run.target.name if mode == own else f"variant {mode}")
        ratio = found["ratio"] if found else None
        faster = ratio is not None and ratio["high"] < 1
        lost = mode != own and mode in accuracy and accuracy[own] - accuracy[mode] > MAX_ACCURACY_LOSS
        rows.append(
            {
                "mode": mode,
                "own": mode == own,
                "accuracy": accuracy.get(mode),
                "latency_stats_s": found["latency_stats_s"] if found else None,
                "recommended": faster and not lost,
                "note": _variant_note(mode == own, ratio)
                + (f"; loses more than {MAX_ACCURACY_LOSS:.0%} of accuracy" if lost else ""),
            }
        )
    if not any(row["recommended"] for row in rows):
        for row in rows:
            row["recommended"] = row["mode"] == own
    return rows


def _variant_note(is_own: bool, ratio: Mapping[str, float] | None) -> str:
    """What the measured ratio to the run's own mode says."""
    if is_own:
        return "what the run's target ships"
    if ratio is None:
        return "not measured on this target"
    said = f"{ratio['ratio']:.2f}× the latency [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    if ratio["high"] < 1:
        return f"faster: {said}"
    return f"slower: {said}" if ratio["low"] > 1 else f"neither faster nor slower is proven: {said}"


def _engines(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = results["measure"]["measured"]
    rows = []
    for name, build in results["export"]["builds"].items():
        found = measured.get(name)
        why_not = build["why_not"]
        if why_not is None and found is None:
            why_not = f"built; not run here: {build['why_not_measured']}"
        rows.append(
            {
                "target": name,
                **{key: build[key] for key in ("precision", "size_bytes", "seconds")},
                "latency_stats_s": found["latency_stats_s"] if found else None,
                "ratio": found["ratio"] if found else None,
                "parity": {key: build["parity"][key] for key in PARITY_SHOWN} if build["parity"] else None,
                "sigma": found["sigma"] if found else None,
                "why_not": why_not,
            }
        )
    return rows


def limits_of(seeds: int, test_images: int, configuration: RunConfiguration, again: int) -> list[str]:
    """What these seeds can and cannot show, in sentences for the report."""
    return [
        f"{seeds} training seeds give each mean; with so few, a 95 % interval is about "
        f"{stdtrit(seeds - 1, 0.975) / np.sqrt(seeds):.1f} times the spread over seeds, and a difference whose "
        "interval holds 0 is not shown.",
        f"Accuracy is measured on {test_images} images that no training, search or choice has seen; a difference "
        f"of one image is {1 / test_images:.2%}.",
        "The winner was chosen with other seeds than those reported: its accuracy holds no luck of selection.",
        f"The certificate is about this machine and this engine, at p{configuration.certificate.percentile:g}, outside "
        f"disturbances: {again} of its blocks were disturbed and taken again.",
    ]


def _about_hand_shrunk(bound_to_fit: bool, certified: bool) -> str:
    """Which network the baseline is, and whether it is within the budget, in sentences for the report."""
    which = (
        "The hand-shrunk student is the best, after one short training, of the plain families as wide as the budget is "
        "predicted to allow."
        if bound_to_fit
        else "No plain network is bound to meet the budget: the hand-shrunk student is the best of the narrowest ones "
        "after one short training."
    )
    held = "holds" if certified else "does NOT hold, so that its accuracy is not one within the budget"
    return f"{which} Its own certificate {held}."
