import json
from pathlib import Path

import pytest
from bundles import facts
from hypothesis import given, settings
from hypothesis import strategies as st

from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.export.manifest import (
    MAX_DEPTH,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    FileEntry,
    Manifest,
    canonical_json,
    manifest_from_bytes,
    name_problem,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "manifest_v1.json"


def manifest(**changes) -> Manifest:
    files = {"student.onnx": FileEntry("a" * 64, 123, "onnx"), "e/x.engine": FileEntry("b" * 64, 0, "engine")}
    return Manifest(files, facts(**changes))


def rewritten(change) -> bytes:
    """The manifest's JSON after `change`, with a checksum that fits again: what a forger would write."""
    import hashlib

    body = json.loads(manifest().to_bytes())
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
    assert manifest_from_bytes(GOLDEN.read_bytes()) == manifest()
    assert manifest().to_bytes() == GOLDEN.read_bytes()


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
        (lambda b: b.update(format_version=2), "version 2"),
        (lambda b: b.update(format_version=True), "wrong type"),
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


@pytest.mark.parametrize("name", ["a", "student.onnx", "1/model.plan", "a_b/c-d+e.f", "x" * MAX_NAME_BYTES])
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
        "a.PKL",
        "b/weights.pt",
        "\udc80",
        "x" * (MAX_NAME_BYTES + 1),
        "/".join("a" * (MAX_DEPTH + 1)),
    ],
)
def test_names_that_could_lead_elsewhere_or_run_code_are_not(name):
    assert name_problem(name) is not None
