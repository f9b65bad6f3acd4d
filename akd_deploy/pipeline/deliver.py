"""From the trained winner to a bundle: export, build, measure, certify, pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from akd_deploy.engines import load_engine
from akd_deploy.export.bundle import BundleFile, GeneratedFile, write_bundle
from akd_deploy.export.engine_facts import EngineFacts, engine_facts_from_dict, facts_of_built
from akd_deploy.export.manifest import BundleFacts
from akd_deploy.export.package_engine import SAMPLES_NAME, samples_document
from akd_deploy.export.runner import RUNNER_NAME, has_runner, runner_source
from akd_deploy.export.verify import verify_bundle
from akd_deploy.models.export_archive import archive_from_module
from akd_deploy.pipeline import shipping
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.parity import checked_build
from akd_deploy.pipeline.typed import is_archive, mode_for
from akd_deploy.storage import write_text_atomically
from akd_deploy.target import Target


def export(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """ONNX, typed variants, engines of every target asked for, each that runs here compared with torch."""
    student = run.student(run.directory / "students" / results["distill"]["chosen"]["student"])
    folder = run.directory / "engines"
    tables = run.configuration.export
    targets = list(run.targets.values())
    run.on_progress("exporting", 0, len(targets))
    onnx_path = shipping.export_student(student, run.target, folder)
    images = run.bed.dataset.tuning_val.images[: shipping.PARITY_SAMPLES]
    modes = sorted({m for m in (*tables.quantize, *map(mode_for, targets)) if m != "fp32" and not is_archive(m)})
    calibration = run.bed.calibration_images(shipping.CALIBRATION_SAMPLES)
    models = shipping.typed_variants(onnx_path, modes, calibration, run.target, folder)
    for target in targets:
        mode = mode_for(target)
        if is_archive(mode) and mode not in models:
            shape = (run.target.batch, *student.input_shape)
            models[mode] = archive_from_module(student, shape, folder / f"student.{mode}.pt2", target.precision)
    builds, parities = {}, {}
    for i, target in enumerate(targets):
        run.on_progress(f"building {target.name}", i, len(targets))
        build = shipping.build_for(target, models, folder / target.name)
        build, parities[target.name] = checked_build(student, build, models, images, required=target == run.target)
        builds[target.name] = {**_build_row(run, build), "parity": parities[target.name]}
    return {
        "onnx": str(onnx_path.relative_to(run.directory)),
        "models": {mode: str(path.relative_to(run.directory)) for mode, path in models.items()},
        "parity": parities[run.target.name],
        "builds": builds,
    }


def _build_row(run: Run, build: shipping.TargetBuild) -> dict[str, Any]:
    """What the journal keeps of a build."""
    built = build.built
    row: dict[str, Any] = {"why_not": build.why_not, "why_not_measured": build.why_not_measured}
    if built is None:
        return row | {"path": None, "files": [], "precision": None, "size_bytes": None, "seconds": None}
    return row | {
        "path": str(built.path.relative_to(run.directory)),
        "files": [str(path.relative_to(run.directory)) for path in built.files],
        "precision": dict(built.precision),
        "size_bytes": built.size_bytes,
        "seconds": built.seconds,
        "facts": facts_of_built(load_engine(build.target), built).as_dict(),
    }


def measure(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The shipped engine and every other one that runs here, block by block in turn; the certificate."""
    export, table = results["export"], run.configuration.certificate
    subjects: dict[str, tuple[Target, Path]] = {}
    for name, build in export["builds"].items():
        if build["path"] is not None and build["why_not_measured"] is None:
            subjects[name] = (run.targets[name], run.directory / build["path"])
    # The run's own mode is what its target ships; ONNX Runtime on a CPU runs float16 by casting, which says nothing.
    own = mode_for(run.target)
    variants = {}
    if run.target.engine == "onnxruntime":
        variants = {mode: run.directory / path for mode, path in export["models"].items() if mode in ("fp32", "int8")}
    subjects |= {f"variant {mode}": (run.target, path) for mode, path in variants.items() if mode != own}
    measured = shipping.measure_together(
        subjects,
        shipping.certificate_protocol(table),
        run.rng("measure"),
        lambda done, total: run.on_progress("measuring engines", done, total),
    )
    main = measured[run.target.name].measurement
    certificate = shipping.certificate_of(main, results["budget"]["budget_s"], table)
    rows = {}
    for name, value in measured.items():
        ratio = shipping.paired_ratio(main, value.measurement) if name != run.target.name else None
        rows[name] = {
            "latency_stats_s": value.measurement.statistics_s(),
            "full_speed_s": value.measurement.label_s,
            "ratio": ratio,
            "sigma": value.measurement.sigma,
            "remeasured": value.remeasured,
            "disturbed": value.disturbed,
            "blocks": {str(i): list(map(float, s)) for i, s in value.measurement.blocks.items()},
        }
    engine, test = load_engine(run.target), run.bed.dataset.test
    accuracy = {mode: shipping.accuracy_of(engine, path, test) for mode, path in variants.items()}
    measured_again = {
        "remeasured": rows[run.target.name]["remeasured"],
        "disturbed": rows[run.target.name]["disturbed"],
    }
    return {
        "measured": rows,
        "certificate": {**certificate.as_dict(), **measured_again},
        "own_mode": own,
        "variant_accuracy": accuracy,
    }


def network_files(models: Mapping[str, Path], target: Target, others: Sequence[Target] = ()) -> list[BundleFile]:
    """The networks that a bundle holds: what the target's engine was built from, and what that was made from.

    Args:
        models: mode → file, as the export wrote them; "fp32" is there.
        others: further targets that have an engine in the bundle.

    A server, and a rebuild elsewhere, take the one file of role "onnx": it is in the precision of the certificate.
    torch's engine is its archive, so that its ONNX is but the source.
    """
    own = mode_for(target)
    roles = {"fp32": "source"} | {mode_for(other): "variant" for other in others if mode_for(other) != "fp32"}
    roles[own] = "onnx"
    return [BundleFile(models[mode].name, models[mode], role) for mode, role in roles.items() if not is_archive(mode)]


def bundle(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The shippable bundle, verified after it was written."""
    build = results["export"]["builds"][run.target.name]
    measured, winner = results["measure"], results["confirm"]["winner"]
    main = measured["measured"][run.target.name]
    engine = load_engine(run.target)
    models = {mode: run.directory / path for mode, path in results["export"]["models"].items()}
    built = [run.targets[name] for name, row in results["export"]["builds"].items() if row["path"] is not None]
    files = network_files(models, run.target, built)
    files.append(BundleFile("run.toml", run.directory / "run.toml", "config"))
    engines: dict[str, EngineFacts] = {}
    for target in built:
        row = results["export"]["builds"][target.name]
        inside = {f"engines/{target.name}/{Path(path).name}": run.directory / path for path in row["files"]}
        for name, path in inside.items():
            files.append(BundleFile(name, path, "engine_part" if name in list(inside)[1:] else "engine"))
        name, *parts = inside
        mode = mode_for(target)
        engines[name] = replace(
            engine_facts_from_dict(row["facts"], f"the build for {target.name}"),
            network=None if is_archive(mode) else models[mode].name,
            parts=tuple(parts),
        )
    samples = run.directory / "engines" / SAMPLES_NAME
    write_text_atomically(samples, samples_document(run.target, main["blocks"]))
    files.append(BundleFile(SAMPLES_NAME, samples, "document"))
    prediction = run.prediction(results)
    facts = BundleFacts(
        target=run.target,
        device=engine.fingerprint(),
        versions=shipping.versions([load_engine(target) for target in run.targets.values()]),
        latency={
            "measured_s": main["latency_stats_s"],
            "predicted_s": prediction.latency_s,
            "interval_s": list(prediction.interval_s),
            "budget_s": results["budget"]["budget_s"],
        },
        certificate=measured["certificate"],
        accuracy={"test": results["distill"]["chosen"]["accuracy"], "images": len(run.bed.dataset.test)},
        parity=results["export"]["parity"],
        engines=engines,
        provenance={
            "architecture": winner["arch"],
            "teacher": {key: results["teacher"][key] for key in ("source", "sha256", "parameters")},
            "data": dict(run.bed.dataset.provenance),
            "seed": results["distill"]["chosen"]["seed"],
        },
    )
    out = run.directory / "bundle"
    runner = [GeneratedFile(RUNNER_NAME, "runner", runner_source)] if has_runner(run.target) else []
    manifest = write_bundle(out, files, facts, generated=runner, force=True)
    verification = verify_bundle(out)
    return {
        "path": str(out.name),
        "files": len(manifest.files) + 1,
        "sha256": manifest.digest,
        "ok": verification.ok,
        "engine": build["path"],
    }
