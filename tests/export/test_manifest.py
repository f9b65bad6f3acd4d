import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import facts
from hypothesis import given, settings
from hypothesis import strategies as st

from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.export.engine_facts import EngineFacts
from akd_deploy.export.manifest import (
    _PICKLES,
    MAX_DEPTH,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    FileEntry,
    Manifest,
    allowed_name,
    canonical_json,
    manifest_from_bytes,
    name_problem,
)
from akd_deploy.target import Target

GOLDEN = Path(__file__).parent.parent / "golden"

ENGINES = {
    "e/x.engine": EngineFacts(
        target=Target("orin", "orin", "tensorrt", "fp16", 4, engine_options={"compute_capabilities": ("sm87",)}),
        engine_version="10.13.0",
        network="student.onnx",
        parts=(),
        device={"kind": "gpu", "model": "Orin"},
        compute_capabilities=("sm87",),
        precision={"float16": 30, "float32": 2},
        memory={"activation_bytes": 1048576, "weights_bytes": 65536},
    )
}


def manifest(**changes) -> Manifest:
    files = {"student.onnx": FileEntry("a" * 64, 123, "onnx"), "e/x.engine": FileEntry("b" * 64, 0, "engine")}
    return Manifest(files, facts(**changes))


def rewritten(change) -> bytes:
    """The manifest's JSON after `change`, with a checksum that fits again: what a forger would write."""
    import hashlib

    body = json.loads(manifest(engines=ENGINES).to_bytes())
    del body["manifest_sha256"]
    change(body)
    return canonical_json({**body, "manifest_sha256": hashlib.sha256(canonical_json(body)).hexdigest()})


def test_what_is_written_is_read_back_equal():
    written = manifest(created="2026-01-31").with_signer("c" * 64)
    again = manifest_from_bytes(written.to_bytes())
    assert again == written
    assert again.to_bytes() == written.to_bytes()
    assert again.digest == written.digest
    assert again.with_role("onnx") == ["student.onnx"]


def test_the_golden_manifest_of_version_1_is_written_and_read_as_ever():
    """It has no facts about its engines; signing it anew makes no second version of it."""
    old = replace(manifest(), format_version=1)
    assert manifest_from_bytes((GOLDEN / "manifest_v1.json").read_bytes()) == old
    assert old.to_bytes() == (GOLDEN / "manifest_v1.json").read_bytes()
    assert old.with_signer("c" * 64).format_version == 1


def test_the_golden_manifest_of_version_2_is_written_and_read_as_ever():
    assert manifest_from_bytes((GOLDEN / "manifest_v2.json").read_bytes()) == manifest(engines=ENGINES)
    assert manifest(engines=ENGINES).to_bytes() == (GOLDEN / "manifest_v2.json").read_bytes()


def test_facts_about_engines_are_of_files_in_the_bundle():
    facts = ENGINES["e/x.engine"]
    for engines, message in (
        ({"e/y.engine": facts}, "'e/y.engine' is no file of role 'engine'"),
        ({"student.onnx": facts}, "'student.onnx' is no file of role 'engine'"),
        ({"e/x.engine": replace(facts, parts=("e/x.bin",))}, "'e/x.bin' is no file of role 'engine_part'"),
        ({"e/x.engine": replace(facts, network="other.onnx")}, "built from 'other.onnx'"),
    ):
        with pytest.raises(UsageError, match=message):
            manifest(engines=engines).to_bytes()
    with pytest.raises(UsageError, match="unknown: engines"):  # version 1 has no place for them
        replace(manifest(engines=ENGINES), format_version=1).to_bytes()


def test_the_digest_covers_every_fact():
    digests = {
        m.digest
        for m in (
            manifest(),
            manifest(created="today"),
            manifest(accuracy={"mean": 0.92}),
            manifest(certificate=None),
            manifest().with_signer("c" * 64),
            Manifest({"student.onnx": FileEntry("a" * 64, 124, "onnx")}, facts()),
        )
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("parity"), "keys"),
        (lambda b: b.update(extra=1), "keys"),
        (lambda b: b.update(format="other"), "format 'other'"),
        (lambda b: b.update(format_version=3), "version 3"),
        (lambda b: b.update(format_version=True), "keys missing or unknown: engines"),
        (lambda b: b.update(format_version=1), "keys missing or unknown: engines"),
        (lambda b: b.pop("engines"), "keys missing or unknown: engines"),
        (lambda b: b.update(engines=[]), "'engines' is of the wrong type"),
        (lambda b: b["engines"].update({"e/x.engine": {}}), "engine 'e/x.engine'.*not an object of"),
        (lambda b: b["engines"]["e/x.engine"].update(more=1), "not an object of"),
        (lambda b: b["engines"]["e/x.engine"].update(engine_version=1), "'engine_version' is of the wrong type"),
        (lambda b: b["engines"]["e/x.engine"].update(batch=True), "'batch' is of the wrong type"),
        (lambda b: b["engines"]["e/x.engine"].update(parts=[1]), "'parts' holds something other than text"),
        (lambda b: b["engines"]["e/x.engine"].update(compute_capabilities=[87]), "'compute_capabilities' holds"),
        (lambda b: b["engines"]["e/x.engine"]["device"].update(model=1), "'device' holds something other than text"),
        (lambda b: b["engines"]["e/x.engine"]["memory"].update(more=-1), "'memory' holds"),
        (lambda b: b["engines"]["e/x.engine"]["precision"].update(float16=0.5), "'precision' holds"),
        (lambda b: b["engines"]["e/x.engine"]["target"].pop("name"), "without a name"),
        (lambda b: b["engines"]["e/x.engine"]["target"].update(precision="fp12"), "fp12"),
        (lambda b: b["engines"]["e/x.engine"].update(engine="openvino"), "in full"),
        (lambda b: b.update(files=[]), "wrong type"),
        (lambda b: b.update(created=5), "wrong type"),
        (lambda b: b.update(signed_by="C" * 64), "public key"),
        (lambda b: b["device"].update(cores=4), "'device'"),
        (lambda b: b["target"].pop("name"), "without a name"),
        (lambda b: b["target"].pop("batch"), "in full"),
        (lambda b: b["target"].update(precision="fp12"), "fp12"),
        (lambda b: b["target"].update(unknown=1), "unknown"),
        (lambda b: b["files"]["student.onnx"].update(sha256="A" * 64), "sha256"),
        (lambda b: b["files"]["student.onnx"].update(bytes=-1), "size"),
        (lambda b: b["files"]["student.onnx"].update(bytes=True), "size"),
        (lambda b: b["files"]["student.onnx"].update(role="virus"), "role"),
        (lambda b: b["files"]["student.onnx"].update(more=1), "entry"),
        (lambda b: b["files"].update({"STUDENT.onnx": b["files"]["student.onnx"]}), "case"),
        (lambda b: b["files"].update({"Manifest.json": b["files"]["student.onnx"]}), "case"),
        (lambda b: b["files"].update({"E/y": b["files"]["student.onnx"]}), "'E' and 'e' are one folder|'e' and 'E'"),
        (lambda b: b["files"].update({"student.onnx/y": b["files"]["student.onnx"]}), "a file, and a folder"),
        (lambda b: b["certificate"].update(percentile=10**400), "'certificate.percentile' is a whole number of more"),
        (lambda b: b["latency"].update(budget_s=2**63), "'latency.budget_s' is a whole number of more"),
        (lambda b: b["latency"].update(budget_s=-1), "'budget_s' of its latency is no number between 0 and inf"),
        (lambda b: b["certificate"].update(budget_s="nan"), "'budget_s' of its certificate"),
        (lambda b: b["certificate"].update(percentile=100), "'percentile' of its certificate"),
        (lambda b: b["certificate"].update(confidence=True), "'confidence' of its certificate"),
        (lambda b: b["certificate"].update(ok=1), "contradicts itself: ok '1' is neither true nor false"),
        (lambda b: b["certificate"].update(exceeding=5, allowed=2), "itself: 2 of 1000 samples allowed over p90"),
        (lambda b: b["certificate"].update(samples=None), "contradicts itself: no samples"),
        (lambda b: b.update(certificate={}), "contradicts itself: no percentile, confidence, samples, exceeding, ok"),
        (lambda b: b["latency"].update(idle_s="long"), "'idle_s' of its latency is no number of seconds"),
        (lambda b: b["latency"].update(idle_s=-1), "'idle_s' of its latency"),
        (lambda b: b["latency"].update(boundary=7), "'boundary' of its latency is no text"),
        (lambda b: b["certificate"].update(blocks=None), "blocks 'None' is no whole number"),
        (lambda b: b["certificate"].update(exceeding=10_000), "exceeding 10000 of 1000 samples"),
        (
            lambda b: (b["certificate"].update(budget_s=0.0019), b["latency"].update(budget_s=0.002)),
            "a certificate of 0.0019 s, and a budget of 0.002 s in its latency",
        ),
        (lambda b: b["device"].update(model="\x1b[2J"), "'device.model' holds control characters"),
        (lambda b: b["device"].update(model="a\nok: authentic"), "'device.model' holds control characters"),
        (lambda b: b["versions"].update(python="3\u2028"), "'versions.python' holds control characters"),
        (lambda b: b["device"].update(model="\ud800"), "'device.model' holds control characters"),
        (lambda b: b["provenance"].update({"a": [{"b": "\u202egnp"}]}), "'provenance.a.b' holds control"),
        (lambda b: b["provenance"].update({"\x07": 1}), "'provenance' holds control"),
        (lambda b: b["files"].update({"../x.onnx": b["files"]["student.onnx"]}), "relative path"),
        (lambda b: b["files"].update({"x.pkl": b["files"]["student.onnx"]}), "pickle"),
        (
            lambda b: b["files"].update({f"f{i}": b["files"]["student.onnx"] for i in range(MAX_FILES)}),
            f"more than {MAX_FILES}",
        ),
    ],
)
def test_a_manifest_of_another_form_is_refused_though_its_checksum_fits(change, message):
    with pytest.raises(CorruptFileError, match=message):
        manifest_from_bytes(rewritten(change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 10_000,
        b"NaN",
        b'{"format":1e999}',
        b" " * (MAX_MANIFEST_BYTES + 1),
        manifest().to_bytes()[:-1],
        manifest().to_bytes() + b"\n",
        manifest().to_bytes().replace(b",", b", ", 1),
        manifest().to_bytes().replace(b'"created":null', b'"created":null,"created":null'),
        manifest().to_bytes().decode().encode("utf-16"),
    ],
)
def test_text_that_is_not_the_one_canonical_text_is_refused(data):
    with pytest.raises(CorruptFileError):
        manifest_from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_manifest_is_noticed(data):
    original = manifest().to_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != original[place]))
    with pytest.raises(CorruptFileError):
        manifest_from_bytes(original[:place] + bytes([byte]) + original[place + 1 :])


def test_a_changed_fact_is_said_to_be_a_wrong_checksum():
    with pytest.raises(CorruptFileError, match="checksum"):
        manifest_from_bytes(manifest().to_bytes().replace(b"0.91", b"0.99"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_facts_that_are_no_json_are_not_written(value):
    with pytest.raises(UsageError, match="JSON"):
        manifest(accuracy={"mean": value}).to_bytes()


@pytest.mark.parametrize(
    "name", ["a", "student.onnx", "1/model.plan", "a_b/c-d+e.f", "console", "com10", "a..b", "x+", "x" * MAX_NAME_BYTES]
)
def test_plain_names_are_allowed(name):
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "/a",
        "a//b",
        "a/",
        "./a",
        ".hidden",
        "-rf",
        "a\\b",
        "C:a",
        "a\0b",
        "a b",
        "a\nb",
        "ä",
        "CON",
        "x/aux.txt",
        "Lpt1.bin",
        "labels.",
        "a./b",
        "a.PKL",
        "b/weights.pt",
        "\udc80",
        "x" * (MAX_NAME_BYTES + 1),
        "/".join("a" * (MAX_DEPTH + 1)),
    ],
)
def test_names_that_could_lead_elsewhere_or_run_code_are_not(name):
    assert name_problem(name) is not None


@given(st.text(min_size=1, max_size=300).filter(lambda name: not name.lower().endswith(_PICKLES)))
def test_a_name_that_is_allowed_stays_and_any_other_becomes_one(name):
    allowed = allowed_name(name)
    assert name_problem(f"engines/target/{allowed}") is None or allowed.lower().endswith(_PICKLES)
    if "/" not in name and len(name) < 90 and name_problem(name) is None:
        assert allowed == name


def test_a_name_that_is_cut_short_does_not_end_in_a_dot():
    assert name_problem(allowed_name("a" * 99 + "." + "b" * 120)) is None


def test_what_may_be_a_pickle_stays_refused():
    assert "pickle" in str(name_problem(allowed_name("my net.pkl")))
