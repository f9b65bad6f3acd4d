"""Commands about bundles and gates: package, verify, load, gate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, TrustEngine
from akd_deploy.cli.output import Outcome, emit, stderr
from akd_deploy.errors import GateError, UsageError, VerificationError
from akd_deploy.units import format_seconds, parse_fraction

if TYPE_CHECKING:
    from akd_deploy.export.manifest import Manifest

Digest = Annotated[str | None, typer.Option("--digest", help="The digest `package` printed.")]
Key = Annotated[Path | None, typer.Option("--key", help="PEM file of the Ed25519 public key.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (package, verify, load, gate):
        app.command()(command)


def _certificate(manifest: Manifest) -> dict[str, Any] | None:
    """What a bundle's certificate says, in short; None where it has none."""
    held = manifest.facts.certificate
    if held is None:
        return None
    budget_s = held.get("budget_s", manifest.facts.latency.get("budget_s"))
    return {"ok": held["ok"], "budget_s": budget_s, "percentile": held["percentile"], "confidence": held["confidence"]}


def _show_certificate(manifest: Manifest, console: Console) -> None:
    """Whether its budget is certified: a bundle may be sound, and its student too slow."""
    found = _certificate(manifest)
    if found is None:
        console.print("no certificate: nothing is promised of its latency")
        return
    told, level = format_seconds(found["budget_s"]), f" at p{found['percentile']:g}"
    latency = manifest.facts.latency
    boundary, idle_s = latency.get("boundary", "host"), latency.get("idle_s", 0.0)
    if boundary != "host":
        level += f" by the boundary {boundary}"
    if idle_s > 0:
        level += f" after pauses of {format_seconds(idle_s)}"
    held = "holds" if found["ok"] is True else "does NOT hold: it is not shown to meet its budget"
    console.print(f"certificate of {told}{level}: {held}", markup=False, highlight=False)


def package(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder, or an engine that `build` wrote here.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="What to write.")],
    format: Annotated[str, typer.Option(help="dir, zip or triton.")] = "zip",
    sign: Annotated[Path | None, typer.Option(help="PEM file of the Ed25519 private key.")] = None,
    bench: Annotated[
        Path | None, typer.Option(help="Of an engine: what `bench --engine … -o` wrote, for latency and certificate.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Of an engine: its network before it was cast or quantised.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a bundle in another form, or an engine as a bundle, verified before and after."""
    from akd_deploy.export.bundle import is_bundle
    from akd_deploy.export.package import package_bundle

    if dry_run:
        emit(Outcome({"output": str(output)}, lambda console: console.print(f"would write {output}")), as_json)
        return
    if bundle.is_file() and not is_bundle(bundle):
        from akd_deploy.export.package_engine import package_engine

        manifest = package_engine(bundle, format, output, bench=bench, source=source, key=sign, force=force)
    elif bench or source:
        raise UsageError(
            asked="--bench and --source", found=f"no engine in {bundle}", next="Give them with an engine's file."
        )
    else:
        manifest = package_bundle(bundle, format, output, key=sign, force=force)
    data = {
        "output": str(output),
        "format": format,
        "digest": manifest.digest,
        "signed_by": manifest.signed_by,
        "certificate": _certificate(manifest),
    }

    def show(console: Console) -> None:
        console.print(f"{output}: {len(manifest.files)} files, digest {manifest.digest}")
        if format == "triton":
            console.print("each folder in it is a bundle of its own, which `verify` takes", markup=False)
        _show_certificate(manifest, console)

    emit(Outcome(data, show), as_json)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder or ZIP file.")],
    key: Key = None,
    digest: Digest = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle; needs neither GPU nor runtime. Exit code 3 where something is wrong."""
    from akd_deploy.export.verify import verify_bundle

    verification = verify_bundle(bundle, key, digest)

    def show(console: Console) -> None:
        for problem in verification.problems:
            console.print(problem, markup=False, highlight=False)
        if verification.ok:
            known = "authentic" if verification.authentic else "unchanged; give --key or --digest to know it is ours"
            console.print(f"ok: {known}", markup=False)
            assert verification.manifest is not None
            _show_certificate(verification.manifest, console)

    # What a bundle says of itself is worth nothing where it is not what it was written as.
    certificate = _certificate(verification.manifest) if verification.ok and verification.manifest else None
    data = {**verification.as_dict(), "certificate": certificate}
    emit(Outcome(data, show, 0 if verification.ok else VerificationError.exit_code), as_json)


def load(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder or ZIP file.")],
    key: Key = None,
    digest: Digest = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build its network again where its engine does not fit this machine.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Which target's engine, where it has several; its own by default.")
    ] = None,
    trust_engine: TrustEngine = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle, load its engine here and run it once on zeros: the last check before it serves."""
    import numpy as np

    from akd_deploy.export.load import load_bundle

    with load_bundle(bundle, key=key, digest=digest, rebuild=rebuild, target=target, trust=trust_engine) as loaded:
        zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in loaded.session.inputs}
        arrays = loaded.session.run(zeros)
        inputs = [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in loaded.session.inputs]
        outputs = [{"name": n, "shape": list(a.shape), "dtype": a.dtype.name} for n, a in arrays.items()]
        differences = [*loaded.fit.blocks, *loaded.fit.differs]
        data = {
            "bundle": str(bundle),
            "digest": loaded.manifest.digest,
            "authentic": loaded.authentic,
            "target": loaded.facts.target.name,
            "engine": loaded.facts.target.engine,
            "engine_version": loaded.engine.version(),
            "file": loaded.name,
            "rebuilt": loaded.rebuilt,
            "differences": differences,
            "inputs": inputs,
            "outputs": outputs,
            "certificate": None if loaded.rebuilt else _certificate(loaded.manifest),
            "finite": all(bool(np.isfinite(array).all()) for array in arrays.values()),
        }

    def show(console: Console) -> None:
        how = "built again from the bundle's network" if data["rebuilt"] else data["file"]
        console.print(f"{data['target']} on {data['engine']} {data['engine_version']}: {how}", markup=False)
        for kind, specs in (("in", inputs), ("out", outputs)):
            for spec in specs:
                shape = "×".join(map(str, spec["shape"]))
                console.print(f"  {kind:4}{spec['name']}  {spec['dtype']}  {shape}", markup=False, highlight=False)
        console.print(
            "one inference on zeros: " + ("done" if data["finite"] else "done, with values that are not finite")
        )
        if loaded.rebuilt:
            console.print("no certificate: the bundle's is of its own engine, not of what was built now")
        else:
            _show_certificate(loaded.manifest, console)
        if differences:
            console.print("measured elsewhere, so that its certificate says nothing about this machine:")
            for line in differences:
                console.print(f"  {line}", markup=False, highlight=False)

    emit(Outcome(data, show), as_json)


def gate(
    candidate: Annotated[Path, typer.Option(help="What `bench --json` wrote now.")],
    baseline: Annotated[
        Path | None, typer.Option(help="What it wrote before; without, what --compare-with measured beside.")
    ] = None,
    max_regression: Annotated[
        str, typer.Option(help="Like 3%: a slow-down is a regression where its whole interval is above this.")
    ] = "3%",
    max_accuracy_loss: Annotated[
        str | None, typer.Option(help="Like 0.5%, of benches with --samples; likewise.")
    ] = None,
    fail_inconclusive: Annotated[
        bool,
        typer.Option("--fail-inconclusive", help="Exit code 3 too where a limit is neither kept nor broken for sure."),
    ] = False,
    across_versions: Annotated[
        bool, typer.Option("--across-versions", help="Compare benches of different versions of the engine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell whether the candidate is slower than the baseline, with confidence. Exit code 3 where it is."""
    from akd_deploy.export.gate import gate_benches, gate_compared, points, read_bench

    loss = parse_fraction(max_accuracy_loss) if max_accuracy_loss else None
    limit = parse_fraction(max_regression)
    measured = read_bench(candidate)
    if baseline is None:
        if loss is not None or across_versions:
            raise UsageError(
                asked="a gate on accuracy, or across versions",
                found="no --baseline",
                next="Give one: a record's own comparison is of latency alone.",
            )
        result = gate_compared(measured, limit)
    else:
        result = gate_benches(
            read_bench(baseline),
            measured,
            limit,
            max_accuracy_loss=loss,
            across_versions=across_versions,
        )
    failed = result.regressed or (fail_inconclusive and not result.conclusive)
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"

    def annotate(console: Console) -> None:
        for line in result.annotations() if on_github else ():
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(console: Console) -> None:
        i, limited = result.interval, 1 + limit
        span = f"[{i.low:.3f}×, {i.high:.3f}×] at {i.confidence:.0%}, {limited:.3f}× allowed"
        console.print(f"{i.ratio:.3f}× the baseline's latency {span}", markup=False)
        if result.accuracy is not None:
            paired = result.accuracy.paired
            span = f" [{points(paired.low)}, {points(paired.high)}] at {paired.confidence:.0%}" if paired else ""
            console.print(f"accuracy lower by {points(result.accuracy.loss)} percentage points{span}", markup=False)
        open_end = "" if result.conclusive else "; inconclusive: bench more"
        console.print("regressed" if result.regressed else f"no regression proven{open_end}")
        for told in result.restlessness():
            console.print(told, markup=False)
        annotate(console)

    if as_json:  # workflow commands are read from either stream, and stdout is one JSON object
        annotate(stderr)
    _add_summary(os.environ.get("GITHUB_STEP_SUMMARY"), result.markdown())
    emit(Outcome(result.as_dict(), show, GateError.exit_code if failed else 0), as_json)


def _add_summary(path: str | None, text: str) -> None:
    """Append to the file that GitHub shows as a step's summary; the verdict does not hang on it."""
    try:
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        stderr.print(f"no summary in {path}: {error}", markup=False, highlight=False)
