"""Load an engine of a bundle: verified first, fitting this machine or built again for it, from bytes nobody changes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine, Session
from akd_deploy.errors import AkdError, MismatchError, UnknownNameError, UsageError, VerificationError
from akd_deploy.export.engine_facts import EngineFacts
from akd_deploy.export.manifest import Manifest
from akd_deploy.export.trusted import CODE_ENGINES, why_not_built_here
from akd_deploy.export.verify import Verification, verify_bundle
from akd_deploy.target import Target

PATH_OPTIONS = ("timing_cache",)
"""Engine options that name a file, which a build reads and writes."""


@dataclass(frozen=True)
class Fit:
    """How an engine's facts differ from the machine it is to run on: what keeps it from running, and the rest.

    What only `differs` leaves the engine running; what was measured and certified elsewhere then says nothing
    about this machine.
    """

    blocks: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True)
class LoadedBundle:
    """A loaded engine and where it came from. Close it, or use it as a context manager.

    `name` is the file in the bundle that was loaded, or that the network was built again instead of (`rebuilt`).
    """

    session: Session
    engine: Engine
    name: str
    facts: EngineFacts
    manifest: Manifest
    authentic: bool
    rebuilt: bool
    fit: Fit
    _folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def close(self) -> None:
        """Free what the runtime holds, and the private copy."""
        self.session.close()
        self._folder.cleanup()

    def __enter__(self) -> LoadedBundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_bundle(
    path: Path,
    *,
    key: Path | None = None,
    digest: str | None = None,
    rebuild: bool = False,
    target: str | None = None,
    trust: bool = False,
    engine_of: Callable[[Target], Engine] = load_engine,
) -> LoadedBundle:
    """Verify a bundle, and load the engine of its target.

    The files are copied into a private folder while they are hashed, and loaded from there: what reaches the
    runtime is what was verified.

    Args:
        key: PEM file with the Ed25519 public key that must have signed the bundle.
        digest: the manifest's expected checksum.
        rebuild: build the engine again from the bundle's network where it does not fit this machine, or is refused.
        target: name of the target whose engine to load; the bundle's own by default.
        trust: load an engine that can run code though neither `key` nor `digest` tells whose it is.

    Raises:
        VerificationError: the bundle is not whole or not the expected one, or brings code of unknown origin.
        MismatchError: the engine does not fit this machine; every difference is named.
        MissingRuntimeError: its runtime or device is not here.
        UnknownNameError, UsageError: no such target, or no engine for it, in the bundle.
        BuildError: it was to be built again and could not be.
    """
    # Made for this user alone; it lives as long as the session, since runtimes map weights from files.
    folder = tempfile.TemporaryDirectory(prefix="akd-bundle-", ignore_cleanup_errors=True)
    try:
        return _load(
            path, folder, verify_bundle(path, key, digest, copy_to=Path(folder.name)), rebuild, target, trust, engine_of
        )
    except BaseException:
        folder.cleanup()
        raise


def _load(
    path: Path,
    folder: tempfile.TemporaryDirectory[str],
    verification: Verification,
    rebuild: bool,
    target: str | None,
    trust: bool,
    engine_of: Callable[[Target], Engine],
) -> LoadedBundle:
    manifest = verification.manifest
    if not verification.ok or manifest is None:
        raise VerificationError(
            asked=f"the bundle {path}",
            found="; ".join(verification.problems),
            next="Get it again from where it was packaged.",
            problems=list(verification.problems),
        )
    name, facts = chosen_engine(manifest, target)
    root = Path(folder.name)
    engine = engine_of(_without_paths(facts.target))
    engine.require(engine.why_not())
    _check_threads(path, facts.target)
    fit = fit_here(facts, engine.version(), engine.fingerprint())
    if fit.blocks and not rebuild:
        raise MismatchError(
            asked=f"the engine {name} of {path} on this machine",
            found="; ".join(fit.blocks + fit.differs),
            next="Build it again from the bundle's network with --rebuild, or load it where it was built for.",
            differences=list(fit.blocks + fit.differs),
        )
    source = root / name
    code = facts.target.engine in CODE_ENGINES and (not fit.blocks or facts.network is None)
    if code and not trust and not verification.authentic and why_not_built_here(source) is not None:
        raise VerificationError(
            asked=f"the engine {name} of {path} to be loaded",
            found="a bundle that is whole, but nothing says whose it is, and the engine can run code of its own",
            next="Give --key or --digest, or say --trust-engine if you know where it comes from.",
        )
    rebuilt = bool(fit.blocks)
    try:
        session = engine.load(_rebuilt(engine, root, name, facts) if rebuilt else source)
    except AkdError:
        if rebuilt or not rebuild or facts.network is None:
            raise
        # A file of a later version may be no file to this one.
        rebuilt, session = True, engine.load(_rebuilt(engine, root, name, facts))
    return LoadedBundle(session, engine, name, facts, manifest, verification.authentic, rebuilt, fit, folder)


def _check_threads(path: Path, target: Target) -> None:
    """More threads than CPUs wait for each other, thousands of them for ever."""
    threads, cpus = target.engine_options.get("threads", 1), os.cpu_count() or 1
    if not isinstance(threads, int) or threads > cpus:
        raise MismatchError(
            asked=f"the engine of {path} on this machine",
            found=f"{threads} threads, and {cpus} CPUs here",
            next="Load it on a machine with as many CPUs, or build its network for a target of fewer threads.",
        )


def _rebuilt(engine: Engine, root: Path, name: str, facts: EngineFacts) -> Path:
    """Build the network that an engine was built from, in the private folder; torch's engine is its own network."""
    (root / "rebuilt").mkdir()
    return engine.build(root / (name if facts.network is None else facts.network), root / "rebuilt").path


def _without_paths(target: Target) -> Target:
    """The target without options that name files: those of whoever wrote the bundle are none of this machine's."""
    options = {key: value for key, value in target.engine_options.items() if key not in PATH_OPTIONS}
    return replace(target, engine_options=options)


def chosen_engine(manifest: Manifest, target: str | None) -> tuple[str, EngineFacts]:
    """The file, and the facts, of a target's engine; of the bundle's own target by default.

    Raises:
        UnknownNameError: no engine in the bundle is for such a target.
        UsageError: the bundle has no engine for its own target.
    """
    engines = dict(manifest.facts.engines) or _facts_of_version_1(manifest)
    by_target = {facts.target.name: (name, facts) for name, facts in engines.items()}
    wanted = manifest.facts.target.name if target is None else target
    if wanted in by_target:
        return by_target[wanted]
    if target is not None:
        raise UnknownNameError("target", target, by_target, where="the bundle")
    raise UsageError(
        asked=f"an engine for target {wanted} in the bundle",
        found=f"engines for {', '.join(by_target)}" if by_target else "no engine",
        next="Build one from its ONNX with `akd-deploy build`"
        + (", or name one of these with --target." if by_target else "."),
    )


def _facts_of_version_1(manifest: Manifest) -> dict[str, EngineFacts]:
    """What a manifest without facts about engines tells of its own target's one: where it was measured, and on what."""
    facts = manifest.facts
    names = manifest.with_role("engine")
    own = [name for name in names if f"/{facts.target.name}/" in f"/{name}"] or names
    networks = manifest.with_role("onnx")
    if len(own) != 1 or facts.target.engine not in facts.versions:
        return {}
    folder = own[0].rpartition("/")[0]
    found = EngineFacts(
        target=facts.target,
        engine_version=facts.versions[facts.target.engine],
        network=networks[0] if len(networks) == 1 else None,
        parts=tuple(name for name in manifest.with_role("engine_part") if name.rpartition("/")[0] == folder),
        device=dict(facts.device.facts),
        compute_capabilities=None,
        precision={},
        memory=None,
    )
    return {own[0]: found}


def fit_here(facts: EngineFacts, version: str, device: DeviceFingerprint) -> Fit:
    """Compare an engine's facts with the runtime's version and the device that are here."""
    blocks: list[str] = []
    differs: list[str] = []
    if version != facts.engine_version:
        line = f"{facts.target.engine} {facts.engine_version} ≠ {version}"
        (blocks if facts.is_native and not _loads_in(facts, version) else differs).append(line)
    capability = "sm" + device.facts.get("compute_capability", "").replace(".", "")
    if facts.compute_capabilities is not None and capability not in facts.compute_capabilities:
        blocks.append(f"a GPU of {', '.join(facts.compute_capabilities)} ≠ {capability}")
    if facts.device is not None:
        for line in DeviceFingerprint(facts.device).differences(device):
            # A plan is for one model of GPU, whose driver may be another.
            (blocks if facts.is_native and line.startswith("model:") else differs).append(line)
    return Fit(tuple(blocks), tuple(differs))


def _loads_in(facts: EngineFacts, version: str) -> bool:
    """Whether a version-compatible plan loads in another version: a later one of the same major number."""
    if not facts.target.engine_options.get("version_compatible", False):
        return False
    built, here = ([int(n) for n in text.split(".") if n.isdigit()] for text in (facts.engine_version, version))
    return built[:1] == here[:1] and built <= here
