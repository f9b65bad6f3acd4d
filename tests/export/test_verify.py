import hashlib
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import bytes_of, write_keys, write_small_bundle
from mutations import in_order, mutated_in_place, packed

from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.export import verify as verify_module
from akd_deploy.export.manifest import MAX_DEPTH, MAX_FILES, MAX_NAME_BYTES, FileEntry, Manifest
from akd_deploy.export.package import package_bundle
from akd_deploy.export.signature import read_private_key, sign_manifest
from akd_deploy.export.stored_zip import read_stored_zip, write_stored_zip
from akd_deploy.export.verify import verify_bundle

MUTATIONS = int(os.environ.get("AKD_FUZZ_MUTATIONS", "10000"))
"""Over all four kinds of bundle."""


@pytest.fixture
def bundle(tmp_path):
    write_small_bundle(tmp_path)
    return tmp_path / "bundle"


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path)


def problems(path, **kwargs):
    verification = verify_bundle(path, **kwargs)
    assert verification.ok == (not verification.problems)
    return " | ".join(verification.problems)


# --- what must be accepted -------------------------------------------------------------------------------------


def test_an_untouched_bundle_is_accepted_and_authentic_only_with_key_or_digest(tmp_path, keys):
    manifest = write_small_bundle(tmp_path, key=keys[0])
    bundle = tmp_path / "bundle"
    assert problems(bundle) == ""
    assert not verify_bundle(bundle).authentic
    assert verify_bundle(bundle, key=keys[1]).authentic
    assert verify_bundle(bundle, digest=f"sha256:{manifest.digest.upper()}").authentic
    assert verify_bundle(bundle).as_dict()["digest"] == manifest.digest


# --- changed, missing and extra files --------------------------------------------------------------------------


def test_a_changed_a_missing_and_an_extra_file_are_named(bundle):
    (bundle / "student.onnx").write_bytes((bundle / "student.onnx").read_bytes()[:-1] + b"\x00")
    (bundle / "labels.txt").unlink()
    (bundle / "engines" / "extra.bin").write_bytes(b"")
    found = problems(bundle)
    assert "student.onnx: its contents changed" in found
    assert "labels.txt: missing" in found
    assert "engines/extra.bin: not in the manifest" in found


def test_a_file_of_another_length_is_not_even_read(bundle, monkeypatch):
    with (bundle / "student.onnx").open("ab") as file:
        file.truncate(1 << 34)  # sparse: takes no space, and minutes to hash
    assert "17179869184 bytes, the manifest says" in problems(bundle)


def test_links_pipes_and_strange_names_are_refused(bundle):
    shutil.copy(bundle / "labels.txt", bundle.parent / "copy.txt")
    (bundle / "labels.txt").unlink()
    (bundle / "labels.txt").symlink_to(bundle.parent / "copy.txt")
    (bundle / "folder").symlink_to("/")
    os.mkfifo(bundle / "pipe")
    (bundle / " name").write_text("x", encoding="utf-8")
    Path(os.fsdecode(os.fsencode(bundle) + b"/\xff\xfe")).write_bytes(b"x")
    found = problems(bundle)
    assert "labels.txt: a symbolic link" in found
    assert "folder: a symbolic link" in found
    assert "pipe: neither a file nor a folder" in found
    assert "' name' is not a relative path" in found
    assert "\\udcff" in found


def test_deep_folders_and_many_files_are_not_walked_to_the_end(bundle):
    deep = bundle.joinpath(*["d"] * (MAX_DEPTH + 3))
    deep.mkdir(parents=True)
    assert "folders deep" in problems(bundle)
    for i in range(MAX_FILES + 5):
        (bundle / f"f{i}").touch()
    assert "stopped at" in problems(bundle)


def test_no_manifest_or_a_huge_one_is_refused(bundle):
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(1 << 30)
    assert "manifest.json: 1073741824 bytes" in problems(bundle)
    (bundle / "manifest.json").unlink()
    assert "manifest.json: missing" in problems(bundle)


@pytest.mark.parametrize("folder", ["extra", "engines/extra", "extra/inside"])
def test_a_folder_that_holds_nothing_is_a_problem(tmp_path, folder):
    write_small_bundle(tmp_path)
    (tmp_path / "bundle" / folder).mkdir(parents=True)
    assert f"{folder}/: an empty folder" in problems(tmp_path / "bundle")


def test_an_empty_file_or_folder_is_not_a_bundle(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "missing" in problems(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    assert "ZIP" in problems(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert "neither" in problems(tmp_path / "pipe")


# --- keys and forgery ------------------------------------------------------------------------------------------


def test_another_key_no_signature_and_a_wrong_digest_are_refused(tmp_path, keys, bundle):
    _, other = write_keys(tmp_path, "other", seed=2)
    assert "signed by nobody" in problems(bundle, key=keys[1])
    assert "not the expected" in problems(bundle, digest="0" * 64)
    package_bundle(bundle, "dir", tmp_path / "signed", key=keys[0])
    assert "not by the given key" in problems(tmp_path / "signed", key=other)
    (tmp_path / "signed" / "manifest.sig").unlink()
    assert "manifest.sig: missing" in problems(tmp_path / "signed")


def forged(bundle: Path, key: Path | None) -> None:
    """Change the student, and write a manifest that fits it, signed with the forger's key."""
    (bundle / "student.onnx").write_bytes(b"evil")
    manifest = verify_bundle(bundle).manifest
    entry = FileEntry(hashlib.sha256(b"evil").hexdigest(), 4, "onnx")
    new = Manifest({**manifest.files, "student.onnx": entry}, manifest.facts)
    (bundle / "manifest.sig").unlink(missing_ok=True)
    if key is not None:
        private = read_private_key(key)
        new = new.with_signer(private.public_key().public_bytes_raw().hex())
        (bundle / "manifest.sig").write_bytes(sign_manifest(new.to_bytes(), private))
    (bundle / "manifest.json").write_bytes(new.to_bytes())


def test_a_forged_bundle_passes_without_key_and_is_refused_with_key_or_digest(tmp_path, keys):
    digest = write_small_bundle(tmp_path, key=keys[0]).digest
    bundle = tmp_path / "bundle"
    for forger in (None, write_keys(tmp_path, "forger", seed=9)[0]):
        forged(bundle, forger)
        assert verify_bundle(bundle).ok
        assert not verify_bundle(bundle).authentic
        assert "not by the given key" in problems(bundle, key=keys[1])
        assert "not the expected" in problems(bundle, digest=digest)


def test_a_forger_who_names_the_right_key_without_having_it_is_refused(tmp_path, keys):
    write_small_bundle(tmp_path, key=keys[0])
    bundle = tmp_path / "bundle"
    signature = (bundle / "manifest.sig").read_bytes()
    signer = verify_bundle(bundle).signed_by
    forged(bundle, None)
    manifest = verify_bundle(bundle).manifest.with_signer(signer)
    (bundle / "manifest.json").write_bytes(manifest.to_bytes())
    (bundle / "manifest.sig").write_bytes(signature)
    assert "signature does not fit" in problems(bundle, key=keys[1])


def test_an_unsigned_manifest_beside_a_signature_is_refused(bundle, tmp_path, keys):
    package_bundle(bundle, "dir", tmp_path / "signed", key=keys[0])
    shutil.copy(tmp_path / "signed" / "manifest.sig", bundle / "manifest.sig")
    assert "says it is not signed" in problems(bundle)


def test_arguments_that_cannot_be_are_errors(bundle, tmp_path, keys):
    with pytest.raises(MissingFileError):
        verify_bundle(tmp_path / "nothing")
    with pytest.raises(MissingFileError):
        verify_bundle(bundle, key=tmp_path / "nothing")
    with pytest.raises(CorruptFileError, match="public key"):
        verify_bundle(bundle, key=keys[0])
    with pytest.raises(UsageError, match="64 hexadecimal"):
        verify_bundle(bundle, digest="abc")


# --- ZIP files made by others ----------------------------------------------------------------------------------


def other_zip(path: Path, bundle: Path, compression=zipfile.ZIP_STORED, extra=()) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in bytes_of(bundle).items():
            archive.writestr(name, data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_zip_of_the_same_files_that_was_packed_otherwise_is_refused(tmp_path, bundle, compression):
    found = problems(other_zip(tmp_path / "b.zip", bundle, compression))
    assert "not a bundle's ZIP file: a header at byte 0 with flags, a date, compression or sizes of its own" in found


def test_a_compression_bomb_is_refused_without_unpacking_it(tmp_path, bundle):
    path = other_zip(tmp_path / "b.zip", bundle, zipfile.ZIP_DEFLATED, [("bomb.bin", bytes(1 << 26))])
    assert path.stat().st_size < 1 << 18
    assert "compression" in problems(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "'../evil' is not a relative path"),
        ("/etc/evil", "'/etc/evil' is not a relative path"),
        ("a/../../evil", "'a/../../evil' is not a relative path"),
        ("C:\\evil", "is not a relative path"),
        ("a//evil", "'a//evil' is not a relative path"),
        ("evil\0", "is not a relative path"),
        ("evil.pkl", "'evil.pkl' may be a pickle"),
        ("x" * (MAX_NAME_BYTES + 1), f"a file's name at byte .* of at most {MAX_NAME_BYTES} bytes"),
        ("evil", "evil: not in the manifest"),
        ("student.onnx", "student.onnx: there twice"),
        ("manifest.json", "manifest.json: there twice"),
    ],
)
def test_our_own_zip_layout_with_names_that_lead_elsewhere_or_are_there_twice_is_refused(
    tmp_path, bundle, name, message
):
    files = [(n, bundle / n) for n in verify_module.bundle_order(list(bytes_of(bundle)))]
    with (tmp_path / "b.zip").open("wb") as archive:
        write_stored_zip(archive, [*files, (name, bundle / "labels.txt")])
    assert re.search(message, problems(tmp_path / "b.zip"))


def test_a_zip_with_its_files_in_another_order_or_bytes_around_them_is_refused(tmp_path, bundle):
    files = [(n, bundle / n) for n in verify_module.bundle_order(list(bytes_of(bundle)))]
    with (tmp_path / "b.zip").open("wb") as archive:
        write_stored_zip(archive, files[::-1])
    assert "order" in problems(tmp_path / "b.zip")
    package_bundle(bundle, "zip", tmp_path / "good.zip")
    good = (tmp_path / "good.zip").read_bytes()
    assert problems(tmp_path / "good.zip") == ""
    for data, message in (
        (b"\0" + good, "a directory at byte 0 that does not list exactly the files before it"),
        (good + b"\0", "does not list exactly the files before it"),
        (good[:-1], "does not list exactly the files before it"),
        (good[:-22] + b"comment" + good[-22:], "does not list exactly the files before it"),
    ):
        (tmp_path / "b.zip").write_bytes(data)
        assert message in problems(tmp_path / "b.zip")


def test_a_zip_file_reads_back_what_was_written(tmp_path, bundle):
    package_bundle(bundle, "zip", tmp_path / "b.zip")
    with (tmp_path / "b.zip").open("rb") as archive:
        members = read_stored_zip(archive, (tmp_path / "b.zip").stat().st_size)
    contents = bytes_of(bundle)
    assert {member.name: member.size_bytes for member in members} == {n: len(d) for n, d in contents.items()}


# --- every bit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_one_flipped_bit_in_every_byte_of_a_zip_bundle_is_found(tmp_path, keys, bundle, signed):
    package_bundle(bundle, "zip", tmp_path / "b.zip", key=keys[0] if signed else None)
    original = (tmp_path / "b.zip").read_bytes()
    bits = np.random.default_rng(4 + signed).integers(0, 8, len(original))
    with (tmp_path / "b.zip").open("r+b", buffering=0) as file:
        for place, bit in enumerate(bits):
            file.seek(place)
            file.write(bytes([original[place] ^ (1 << int(bit))]))
            assert not verify_bundle(tmp_path / "b.zip").ok, f"bit {bit} of byte {place}"
            file.seek(place)
            file.write(original[place : place + 1])
    assert verify_bundle(tmp_path / "b.zip").ok


def test_one_flipped_bit_in_every_byte_of_a_bundle_folder_is_found_and_its_file_is_named(tmp_path, keys):
    write_small_bundle(tmp_path, key=keys[0])
    rng = np.random.default_rng(6)
    for name, original in bytes_of(tmp_path / "bundle").items():
        with (tmp_path / "bundle" / name).open("r+b", buffering=0) as file:
            for place, bit in enumerate(rng.integers(0, 8, len(original))):
                file.seek(place)
                file.write(bytes([original[place] ^ (1 << int(bit))]))
                assert problems(tmp_path / "bundle").startswith(f"{name}: "), f"bit {bit} of byte {place} of {name}"
                file.seek(place)
                file.write(original[place : place + 1])
    assert problems(tmp_path / "bundle") == ""


def test_hexadecimal_digits_in_capitals_are_a_changed_signature(tmp_path, keys):
    write_small_bundle(tmp_path, key=keys[0])
    path = tmp_path / "bundle" / "manifest.sig"
    original = path.read_bytes()
    for place in range(len(original)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 0x20]) + original[place + 1 :])
        assert not verify_bundle(tmp_path / "bundle").ok, f"byte {place}"


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("form", ["dir", "zip"])
def test_no_mutation_is_accepted_or_crashes_the_verifier(tmp_path, keys, bundle, form, signed):
    """`MUTATIONS` over all four kinds of bundle. Key or digest are given only where nothing else can tell."""
    rng = np.random.default_rng(10 + 2 * signed + (form == "zip"))
    path = tmp_path / f"packaged.{form}"
    digest = package_bundle(bundle, form, path, key=keys[0] if signed else None).digest
    package_bundle(bundle, "dir", tmp_path / "plain", key=keys[0] if signed else None)
    files = bytes_of(tmp_path / "plain")
    assert form == "dir" or path.read_bytes() == packed(in_order(files))
    for i, kind in enumerate(mutated_in_place(path, files, MUTATIONS // 4, rng)):
        proof = ({"key": keys[1]} if signed else {"digest": digest}) if kind == "forged fact" else {}
        verification = verify_bundle(path, **proof)
        assert not verification.ok, f"mutation {i}, {kind}, was accepted"
        assert not verification.authentic
        assert all(isinstance(problem, str) for problem in verification.problems)
    assert verify_bundle(path).ok


def test_random_bytes_never_crash_the_verifier(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "b.zip"
    for i in range(200):
        head = (b"", b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02")[i % 4]
        path.write_bytes(head + rng.integers(0, 256, int(rng.integers(0, 300)), dtype=np.uint8).tobytes())
        assert not verify_bundle(path).ok
