"""Commands about bundles and gates: package, verify, load, gate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, TrustEngine
from akd_deploy.cli.output import Outcome, emit
from akd_deploy.errors import GateError, UsageError, VerificationError
from akd_deploy.units import parse_fraction

Digest = Annotated[str | None, typer.Option("--digest", help="The digest `package` printed.")]
Key = Annotated[Path | None, typer.Option("--key", help="PEM file of the Ed25519 public key.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (package, verify, load, gate):
        app.command()(command)


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
    data = {"output": str(output), "format": format, "digest": manifest.digest, "signed_by": manifest.signed_by}

    def show(console: Console) -> None:
        console.print(f"{output}: {len(manifest.files)} files, digest {manifest.digest}")

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

    emit(Outcome(verification.as_dict(), show, 0 if verification.ok else VerificationError.exit_code), as_json)


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
        if differences:
            console.print("measured elsewhere, so that its certificate says nothing about this machine:")
            for line in differences:
                console.print(f"  {line}", markup=False, highlight=False)

    emit(Outcome(data, show), as_json)


def gate(
    baseline: Annotated[Path, typer.Option(help="What `bench --json` wrote before.")],
    candidate: Annotated[Path, typer.Option(help="What it wrote now.")],
    max_regression: Annotated[str, typer.Option(help="Like 3%.")] = "3%",
    max_accuracy_loss: Annotated[str | None, typer.Option(help="Like 0.5%.")] = None,
    as_json: Json = False,
) -> None:
    """Tell whether the candidate is slower than the baseline, with confidence. Exit code 3 where it is."""
    from akd_deploy.export.gate import gate_benches, read_bench

    loss = parse_fraction(max_accuracy_loss) if max_accuracy_loss else None
    result = gate_benches(
        read_bench(baseline), read_bench(candidate), parse_fraction(max_regression), max_accuracy_loss=loss
    )

    def show(console: Console) -> None:
        i = result.interval
        console.print(f"ratio {i.ratio:.3f} [{i.low:.3f}, {i.high:.3f}] at {i.confidence:.0%}", markup=False)
        console.print("regressed" if result.regressed else "no regression proven")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in result.annotations():
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    emit(Outcome(result.as_dict(), show, GateError.exit_code if result.regressed else 0), as_json)
