"""A bundle is verified before anything of it is loaded, and what was verified is what is loaded."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import bytes_of, facts, write_keys, write_small_bundle
from mutations import ARCHIVES, FILES, mutated_archive
from recording_engine import RecordingEngine

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import BuiltEngine
from akd_deploy.errors import (
    CorruptFileError,
    MismatchError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
    VerificationError,
)
from akd_deploy.export.engine_facts import EngineFacts
from akd_deploy.export.load import PATH_OPTIONS, LoadedBundle, fit_here, load_bundle
from akd_deploy.export.manifest import manifest_from_bytes
from akd_deploy.export.package import package_bundle
from akd_deploy.export.trusted import record_built
from akd_deploy.export.verify import verify_bundle
from akd_deploy.target import Target

NAME = "engines/cpu_test.engine"
ENGINE_BYTES = bytes(range(200))
ORIN = {"kind": "gpu", "model": "Orin", "compute_capability": "8.7", "driver": "550"}
CPU = {"kind": "cpu", "model": "Test CPU"}


def engine_facts(engine: str, **changes) -> EngineFacts:
    native = engine.startswith("tensorrt")
    return EngineFacts(
        **{
            "target": Target("cpu_test", "orin" if native else "cpu", engine, "fp32"),
            "engine_version": "10.13.0",
            "network": "student.onnx",
            "parts": (),
            "device": ORIN if native else CPU,
            "compute_capabilities": ("sm87",) if native else None,
            "precision": {"float32": 4},
            "memory": None,
        }
        | changes
    )


def write_bundle_of(folder: Path, engine: str = "onnxruntime", key: Path | None = None, **changes) -> Path:
    made = engine_facts(engine, **changes)
    write_small_bundle(folder, key=key, engine=engine, engines={NAME: made}, target=made.target)
    return folder / "bundle"


class Machine:
    """Loads bundles into one recording engine."""

    def __init__(self, device=CPU, version="10.13.0"):
        self.engine: RecordingEngine | None = None
        self.device, self.version = device, version

    def load(self, path: Path, before_load=lambda: None, why_not: str | None = None, **arguments) -> LoadedBundle:
        def engine_of(target: Target) -> RecordingEngine:
            assert self.engine is None
            self.engine = RecordingEngine(target, self.device, self.version)
            self.engine.before_load, self.engine.reason = before_load, why_not
            return self.engine

        return load_bundle(path, engine_of=engine_of, **arguments)

    @property
    def reached_the_runtime(self) -> list[bytes]:
        return [] if self.engine is None else self.engine.loaded + self.engine.built


@pytest.fixture
def bundle(tmp_path):
    return write_bundle_of(tmp_path)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("form", ["dir", "zip"])
def test_the_engine_is_loaded_from_a_private_copy_that_goes_with_the_session(tmp_path, bundle, form):
    package_bundle(bundle, form, tmp_path / "packaged")
    machine = Machine()
    with machine.load(tmp_path / "packaged") as loaded:
        (place,) = machine.engine.places
        assert machine.reached_the_runtime == [ENGINE_BYTES]
        assert tmp_path not in place.parents
        private = place.parents[1]
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert bytes_of(private) == {n: d for n, d in bytes_of(bundle).items() if n != "manifest.json"}
        assert (loaded.name, loaded.rebuilt, loaded.authentic) == (NAME, False, False)
        assert loaded.fit.blocks == loaded.fit.differs == ()
    assert loaded.session.closed
    assert not private.exists()


@pytest.mark.parametrize("form", ["dir", "zip"])
def test_one_flipped_bit_anywhere_is_found_before_any_byte_reaches_the_runtime(tmp_path, bundle, form):
    package_bundle(bundle, form, tmp_path / "packaged")
    rng = np.random.default_rng(3)
    for name, data in bytes_of(tmp_path / "packaged").items():
        path = tmp_path / "packaged" / name
        for place in rng.choice(len(data), 60, replace=False) if len(data) > 60 else range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :])
            machine = Machine()
            with pytest.raises(VerificationError):
                machine.load(tmp_path / "packaged", trust=True, rebuild=True)
            assert machine.reached_the_runtime == [], f"byte {place} of {name}"
        path.write_bytes(data)
    with Machine().load(tmp_path / "packaged") as loaded:
        assert loaded.name == NAME


def test_no_mutation_of_a_bundle_reaches_the_runtime(tmp_path, bundle):
    digest = verify_bundle(bundle).digest
    files, rng, path = bytes_of(bundle), np.random.default_rng(8), tmp_path / "b.zip"
    kinds = [*FILES, *ARCHIVES]
    for i in range(20 * len(kinds)):
        path.write_bytes(mutated_archive(files, kinds[i % len(kinds)], rng))
        machine = Machine()
        with pytest.raises(VerificationError):
            machine.load(path, digest=digest, trust=True, rebuild=True)
        assert machine.reached_the_runtime == [], f"mutation {i}, {kinds[i % len(kinds)]}"


def test_what_is_changed_after_it_was_verified_is_not_what_is_loaded(bundle):
    """Between the check and the load there is nothing to change: the copy is what was hashed."""

    def meddle():
        (bundle / NAME).write_bytes(b"evil")

    machine = Machine()
    machine.load(bundle, before_load=meddle).close()
    assert (bundle / NAME).read_bytes() == b"evil"
    assert machine.reached_the_runtime == [ENGINE_BYTES]


def test_a_file_that_grows_while_it_is_copied_is_no_endless_copy(bundle, tmp_path, monkeypatch):
    from akd_deploy.export import verify

    monkeypatch.setattr(verify, "CHUNK_BYTES", 64)
    read = verify._file_member

    def growing(path, size):
        def chunks():
            yield from read(path, size).chunks()
            while path.name == "cpu_test.engine":
                yield b"more"

        return verify._Member(size, chunks)

    monkeypatch.setattr(verify, "_file_member", growing)
    (tmp_path / "copy").mkdir()
    assert "grew while it was read" in " ".join(verify_bundle(bundle, copy_to=tmp_path / "copy").problems)


def test_a_bundle_of_another_key_or_digest_is_not_loaded_and_not_even_copied(tmp_path):
    keys, other = write_keys(tmp_path), write_keys(tmp_path, "other", seed=2)
    bundle = write_bundle_of(tmp_path, key=keys[0])
    for wrong in ({"key": other[1]}, {"digest": "0" * 64}):
        machine = Machine()
        with pytest.raises(VerificationError, match=r"not (by the given key|the expected)"):
            machine.load(bundle, **wrong)
        assert machine.reached_the_runtime == []
    (tmp_path / "copy").mkdir()
    verify_bundle(bundle, key=other[1], copy_to=tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
    with Machine().load(bundle, key=keys[1]) as loaded:
        assert loaded.authentic


# --- what fits this machine ------------------------------------------------------------------------------------


def test_every_difference_is_named_before_an_engine_that_does_not_fit_is_loaded(tmp_path):
    bundle = write_bundle_of(tmp_path, "tensorrt")
    machine = Machine({**ORIN, "model": "Thor", "compute_capability": "11.0", "driver": "580"}, "11.1.0")
    with pytest.raises(MismatchError) as caught:
        machine.load(bundle, trust=True)
    for difference in ("tensorrt 10.13.0 ≠ 11.1.0", "sm87 ≠ sm110", "model: Orin ≠ Thor", "driver: 550 ≠ 580"):
        assert difference in caught.value.found
    assert "--rebuild" in caught.value.next
    assert machine.reached_the_runtime == []


def test_an_engine_that_does_not_fit_is_built_again_from_the_bundles_network(tmp_path):
    bundle = write_bundle_of(tmp_path, "tensorrt")
    machine = Machine(ORIN, "11.1.0")
    with machine.load(bundle, rebuild=True) as loaded:
        assert loaded.rebuilt
        assert loaded.fit.blocks == ("tensorrt 10.13.0 ≠ 11.1.0",)
    network = (bundle / "student.onnx").read_bytes()
    assert machine.engine.built == [network]
    assert machine.engine.loaded == [b"built here from " + network[:8]]


@pytest.mark.parametrize("rebuild", [False, True])
def test_more_threads_than_cpus_are_refused_before_they_wait_for_each_other(tmp_path, monkeypatch, rebuild):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for threads, refused in ((2, False), (3, True), (100_000, True)):
        folder = tmp_path / str(threads)
        folder.mkdir()
        target = Target("cpu_test", "cpu", "onnxruntime", "fp32", engine_options={"threads": threads})
        machine = Machine()
        if not refused:
            with machine.load(write_bundle_of(folder, target=target), rebuild=rebuild) as loaded:
                assert not loaded.rebuilt
            continue
        with pytest.raises(MismatchError, match=f"{threads} threads, and 2 CPUs here"):
            machine.load(write_bundle_of(folder, target=target), rebuild=rebuild)
        assert machine.reached_the_runtime == []


def test_an_engine_that_fits_is_not_built_again(bundle):
    machine = Machine()
    with machine.load(bundle, rebuild=True) as loaded:
        assert not loaded.rebuilt
    assert machine.engine.built == []


def test_an_engine_that_the_runtime_refuses_is_built_again_if_that_is_allowed(bundle):
    """A file of a later version may be none to this one, though nothing said so before."""
    refusals = [CorruptFileError("the engine", "a later format", "Build it again."), None, None]

    def refuse_once():
        refusal = refusals.pop(0)
        if refusal is not None:
            raise refusal

    machine = Machine()
    with machine.load(bundle, before_load=refuse_once, rebuild=True) as loaded:
        assert loaded.rebuilt
    assert machine.engine.built == [(bundle / "student.onnx").read_bytes()]
    refusals.insert(0, CorruptFileError("the engine", "a later format", "Build it again."))
    with pytest.raises(CorruptFileError, match="a later format"):
        Machine().load(bundle, before_load=refuse_once)


def test_a_bundle_names_no_file_of_this_machine(tmp_path):
    """A build would write its timing cache wherever the bundle's author wanted."""
    precious = tmp_path / "precious"
    precious.write_text("mine", encoding="utf-8")
    options = {"timing_cache": str(precious), "version_compatible": True}
    target = Target("cpu_test", "orin", "tensorrt", engine_options=options)
    bundle = write_bundle_of(tmp_path, "tensorrt", target=target)
    machine = Machine(ORIN, "11.1.0")
    with machine.load(bundle, rebuild=True) as loaded:
        assert loaded.rebuilt
    assert dict(machine.engine.target.engine_options) == {"version_compatible": True}


def test_every_option_that_names_a_file_is_known_as_one():
    """Where an engine gets a new text option, somebody decides whether it is a path."""
    from akd_deploy.engines import ENGINES

    texts = set()
    for name in ENGINES:
        options = load_engine(Target("t", "x", name, engine_options={})).options
        texts |= {key for key, value in options.items() if isinstance(value, str)}
    assert texts == {"provider", "graph_optimization", "mode", "device", *PATH_OPTIONS}


def test_portable_engines_run_anywhere_and_say_where_they_were_measured(bundle):
    machine = Machine({**CPU, "model": "Other CPU"}, "10.14.0")
    with machine.load(bundle) as loaded:
        assert loaded.fit.blocks == ()
        assert loaded.fit.differs == ("onnxruntime 10.13.0 ≠ 10.14.0", "model: Test CPU ≠ Other CPU")
    assert machine.reached_the_runtime == [ENGINE_BYTES]


@pytest.mark.parametrize(
    ("changes", "version", "device", "blocks"),
    [
        ({}, "10.13.0", ORIN, 0),
        ({}, "10.13.1", ORIN, 1),
        ({"options": True}, "10.14.0", ORIN, 0),  # a version-compatible plan loads in later versions
        ({"options": True}, "10.12.0", ORIN, 1),
        ({"options": True}, "11.0.0", ORIN, 1),
        ({"options": False}, "10.14.0", ORIN, 1),
        ({}, "10.13.0", {**ORIN, "driver": "1"}, 0),
        ({}, "10.13.0", {**ORIN, "model": "Orin NX"}, 1),
        ({"device": None}, "10.13.0", {**ORIN, "model": "Orin NX"}, 0),  # built for capabilities, not for a device
        ({"device": None, "compute_capabilities": ("sm86", "sm89")}, "10.13.0", ORIN, 1),
        ({"device": None, "compute_capabilities": ("sm86", "sm87")}, "10.13.0", ORIN, 0),
    ],
)
def test_a_plan_fits_the_version_and_the_gpu_it_was_built_for(changes, version, device, blocks):
    changes = dict(changes)
    options = {"version_compatible": changes.pop("options")} if "options" in changes else {}
    made = engine_facts("tensorrt", target=Target("t", "orin", "tensorrt", engine_options=options), **changes)
    assert len(fit_here(made, version, DeviceFingerprint(device)).blocks) == blocks


def test_a_runtime_that_is_not_here_is_told_before_anything_is_loaded(bundle):
    machine = Machine()
    with pytest.raises(MissingRuntimeError, match="not installed"):
        machine.load(bundle, why_not="the package is not installed")
    assert machine.reached_the_runtime == []


# --- engines that can run code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx", "torch"])
def test_code_of_unknown_origin_is_loaded_on_request_alone(tmp_path, engine):
    bundle = write_bundle_of(tmp_path, engine, device=ORIN)
    machine = Machine(ORIN)
    with pytest.raises(VerificationError, match="nothing says whose it is") as caught:
        machine.load(bundle)
    assert "--trust-engine" in caught.value.next
    assert machine.reached_the_runtime == []
    machine = Machine(ORIN)
    machine.load(bundle, trust=True).close()
    assert machine.reached_the_runtime == [ENGINE_BYTES]


def test_code_is_loaded_from_a_signed_bundle_an_expected_one_and_one_built_here(tmp_path):
    keys = write_keys(tmp_path)
    bundle = write_bundle_of(tmp_path, "tensorrt", key=keys[0])
    digest = verify_bundle(bundle).digest
    for proof in ({"key": keys[1]}, {"digest": digest}):
        machine = Machine(ORIN)
        machine.load(bundle, **proof).close()
        assert machine.reached_the_runtime == [ENGINE_BYTES]
    source = tmp_path / "sources" / "engine.bin"
    made = RecordingEngine(engine_facts("tensorrt").target, ORIN, "10.13.0")
    record_built(made, BuiltEngine(source, (source,), 0.0, 200, {}, "10.13.0"), tmp_path / "sources" / "m.onnx")
    machine = Machine(ORIN)
    machine.load(bundle).close()
    assert machine.reached_the_runtime == [ENGINE_BYTES]


# --- which engine ----------------------------------------------------------------------------------------------


def test_a_bundle_of_version_1_is_loaded_by_the_facts_it_has(tmp_path):
    write_small_bundle(tmp_path)
    bundle = tmp_path / "bundle"
    manifest = verify_bundle(bundle).manifest
    old = replace(manifest, format_version=1)
    (bundle / "manifest.json").write_bytes(old.to_bytes())
    assert manifest_from_bytes(old.to_bytes()).format_version == 1
    machine = Machine({**CPU, "model": "Other"}, "1.1")
    with machine.load(bundle) as loaded:
        assert loaded.facts.network == "student.onnx"
        assert loaded.fit.differs == ("onnxruntime 1.0 ≠ 1.1", "model: Test CPU ≠ Other")
    assert machine.reached_the_runtime == [ENGINE_BYTES]


def test_another_targets_engine_is_loaded_by_its_name(tmp_path):
    other = engine_facts("onnxruntime", target=Target("other", "cpu", "onnxruntime"))
    write_small_bundle(tmp_path, engines={NAME: other})
    bundle = tmp_path / "bundle"
    with pytest.raises(UsageError, match=r"an engine for target cpu_test.*engines for other"):
        Machine().load(bundle)
    with pytest.raises(UnknownNameError, match="other"):
        Machine().load(bundle, target="othr")
    with Machine().load(bundle, target="other") as loaded:
        assert loaded.facts.target.name == "other"


def test_a_bundle_without_an_engine_says_how_to_make_one(tmp_path):
    from akd_deploy.export.bundle import BundleFile, write_bundle

    (tmp_path / "m.onnx").write_bytes(b"x")
    write_bundle(tmp_path / "b", [BundleFile("m.onnx", tmp_path / "m.onnx", "onnx")], facts())
    with pytest.raises(UsageError, match="akd-deploy build"):
        Machine().load(tmp_path / "b")
