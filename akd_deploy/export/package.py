"""Package a bundle for shipping: a signed directory, one ZIP file, or a Triton model repository."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from akd_deploy.errors import UnknownNameError, UsageError, VerificationError
from akd_deploy.export.bundle import BundleFile, check_staged, finish_bundle, is_bundle, replaced_whole, write_bundle
from akd_deploy.export.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from akd_deploy.export.stored_zip import write_stored_zip
from akd_deploy.export.triton import triton_config, triton_platform
from akd_deploy.export.verify import Verification, bundle_order, verify_bundle

FORMATS = ("dir", "zip", "triton")


def package_bundle(
    bundle: Path, format: str, out: Path, *, key: Path | None = None, force: bool = False, model_name: str | None = None
) -> Manifest:
    """Write a bundle in another form, verified before and after.

    Args:
        bundle: a directory that `write_bundle` made, or a ZIP file of one.
        format: one of `FORMATS`.
        out: the directory, the ZIP file, or the Triton model repository (made where it is not there).
        key: PEM file of the Ed25519 private key to sign with; without one a signature there is kept.
        force: replace a bundle that is there already.
        model_name: what Triton calls the model; the bundle's name by default.

    Returns:
        The manifest of what was written; its `digest` is what `verify --digest` expects.

    Raises:
        UnknownNameError: another format.
        VerificationError: the bundle is not whole.
        UsageError: the format cannot hold this bundle, or would lose its signature.
        StorageError: the place is full or read-only.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    if bundle.is_file() and is_bundle(bundle):
        with tempfile.TemporaryDirectory(prefix="akd-unpacked-") as temporary:
            folder = Path(temporary) / (model_name or bundle.stem)
            folder.mkdir()
            _require_whole(bundle, verify_bundle(bundle, copy_to=folder, whole=True))
            return package_bundle(folder, format, out, key=key, force=force)
    manifest = _require_whole(bundle, verify_bundle(bundle))
    if format == "dir":
        return _as_directory(bundle, manifest, out, key, force)
    if format == "zip":
        return _as_zip(bundle, manifest, out, key, force)
    return _as_triton(bundle, manifest, out, key, force, model_name or bundle.resolve().name)


def _require_whole(bundle: Path, verification: Verification) -> Manifest:
    if not verification.ok or verification.manifest is None:
        raise VerificationError(
            asked=f"the bundle {bundle} to package",
            found="; ".join(verification.problems),
            next="Write the bundle again.",
            problems=list(verification.problems),
        )
    return verification.manifest


def _as_directory(bundle: Path, manifest: Manifest, out: Path, key: Path | None, force: bool) -> Manifest:
    with replaced_whole(out, force) as staging:
        return _copied(bundle, manifest, staging, key)


def _as_zip(bundle: Path, manifest: Manifest, out: Path, key: Path | None, force: bool) -> Manifest:
    with replaced_whole(out, force) as staging, tempfile.TemporaryDirectory(dir=staging.parent) as folder:
        source = Path(folder) / "bundle"
        manifest = _copied(bundle, manifest, source, key)
        names = [str(path.relative_to(source).as_posix()) for path in source.rglob("*") if path.is_file()]
        with staging.open("wb") as archive:
            write_stored_zip(archive, [(name, source / name) for name in bundle_order(names)])
        check_staged(staging)
        return manifest


def _as_triton(bundle: Path, manifest: Manifest, out: Path, key: Path | None, force: bool, model_name: str) -> Manifest:
    """`<out>/<model_name>` becomes a bundle of its own, so that what Triton serves can be verified where it lies."""
    if manifest.signed_by is not None and key is None:
        raise UsageError(
            asked="a signed bundle as a Triton model",
            found="no key: the files get other names, so the old signature does not fit",
            next="Sign the new one with --sign KEY.",
        )
    platform = triton_platform(manifest)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.pbtxt"
        onnx_file = bundle / manifest.with_role("onnx")[0]
        config.write_text(triton_config(model_name, platform, onnx_file, manifest.facts.target), encoding="utf-8")

        def name_of(name: str) -> str:
            # Triton looks at numbered folders only, so the rest can lie beside them.
            return f"1/{platform.files[name]}" if name in platform.files else f"bundle/{name}"

        files = [
            BundleFile(name_of(name), bundle / name, entry.role)
            for name, entry in manifest.files.items()
            if entry.role != "runner"  # the server runs it, and the runner would not find its files
        ]
        files.append(BundleFile("config.pbtxt", config, "config"))
        engines = {name_of(name): engine.renamed(name_of) for name, engine in manifest.facts.engines.items()}
        facts = replace(manifest.facts, engines=engines)
        return write_bundle(out / model_name, files, facts, key=key, force=force)


def _copied(bundle: Path, manifest: Manifest, staging: Path, key: Path | None) -> Manifest:
    """The same files in a new directory, signed anew where there is a key."""
    kept = [*manifest.files]
    if key is None:
        kept += [MANIFEST_NAME] + ([SIGNATURE_NAME] if manifest.signed_by is not None else [])
    for name in kept:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, staging / name)
    if key is not None:
        return finish_bundle(staging, manifest, key)
    check_staged(staging)
    return manifest
