import os
from pathlib import Path

import pytest
from bundles import bytes_of, facts, write_keys, write_small_bundle

from akd_deploy.errors import CorruptFileError, MissingFileError, StorageError, UsageError, VerificationError
from akd_deploy.export import bundle as bundle_module
from akd_deploy.export.bundle import BundleFile, is_bundle, write_bundle
from akd_deploy.export.manifest import manifest_from_bytes
from akd_deploy.export.verify import verify_bundle


def test_a_bundle_holds_the_files_and_a_manifest_that_verifies(tmp_path):
    manifest = write_small_bundle(tmp_path)
    contents = bytes_of(tmp_path / "bundle")
    assert set(contents) == {"manifest.json", "student.onnx", "engines/cpu_test.engine", "labels.txt"}
    assert contents["student.onnx"] == (tmp_path / "sources" / "m.onnx").read_bytes()
    assert manifest_from_bytes(contents["manifest.json"]) == manifest
    assert verify_bundle(tmp_path / "bundle").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "sources"]


def test_the_same_inputs_give_the_same_bytes_signature_included(tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_small_bundle(tmp_path / name, key=write_keys(tmp_path)[0])
        written.append(bytes_of(tmp_path / name / "bundle"))
    assert written[0] == written[1]
    assert "manifest.sig" in written[0]


def test_a_bundle_is_replaced_only_with_force_and_nothing_else_ever(tmp_path):
    write_small_bundle(tmp_path)
    with pytest.raises(UsageError, match="--force"):
        write_small_bundle(tmp_path)
    assert write_small_bundle(tmp_path, force=True)
    (tmp_path / "bundle" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="not a bundle"):
        write_small_bundle(tmp_path, force=True)
    assert (tmp_path / "bundle" / "student.onnx").exists()


def test_a_link_is_never_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_small_bundle(tmp_path / "elsewhere")
    (tmp_path / "bundle").symlink_to(tmp_path / "elsewhere" / "bundle")
    with pytest.raises(UsageError):
        write_small_bundle(tmp_path, force=True)


@pytest.mark.parametrize("step", ["_copy", "_sync", "check_staged"])
def test_a_full_disk_leaves_the_old_bundle_and_no_litter(tmp_path, monkeypatch, step):
    write_small_bundle(tmp_path)
    before = bytes_of(tmp_path / "bundle")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, step, full)
    with pytest.raises(StorageError, match="No space left"):
        write_small_bundle(tmp_path, force=True)
    assert bytes_of(tmp_path / "bundle") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "sources"]


def test_a_failing_rename_puts_the_old_bundle_back(tmp_path, monkeypatch):
    write_small_bundle(tmp_path)
    before = bytes_of(tmp_path / "bundle")
    rename = Path.rename

    def fails_for_the_new(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(StorageError):
        write_small_bundle(tmp_path, force=True)
    assert bytes_of(tmp_path / "bundle") == before


def test_a_file_that_changes_while_it_is_copied_is_noticed(tmp_path, monkeypatch):
    finish = bundle_module.finish_bundle

    def meddling(staging, *rest):
        (staging / "labels.txt").write_text("frog\n", encoding="utf-8")
        return finish(staging, *rest)

    monkeypatch.setattr(bundle_module, "finish_bundle", meddling)
    with pytest.raises(VerificationError, match=r"labels\.txt"):
        write_small_bundle(tmp_path)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_a_storage_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    source = tmp_path / "m.onnx"
    source.write_bytes(b"x")
    with pytest.raises(StorageError):
        write_bundle(tmp_path / "closed" / "b", [BundleFile("m.onnx", source, "onnx")], facts())


def test_files_that_cannot_be_bundled_are_refused_before_anything_is_written(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(b"x")
    for files, message in (
        ([], "neither"),
        ([BundleFile("labels.txt", source, "document")], "neither"),
        ([BundleFile("../m.onnx", source, "onnx")], "relative path"),
        ([BundleFile("m.pkl", source, "onnx")], "pickle"),
        ([BundleFile("m.onnx", source, "network")], "role"),
        ([BundleFile("MANIFEST.json", source, "onnx")], "taken"),
        ([BundleFile("m.onnx", source, "onnx"), BundleFile("M.onnx", source, "source")], "taken"),
    ):
        with pytest.raises(UsageError, match=message):
            write_bundle(tmp_path / "b", files, facts())
    with pytest.raises(MissingFileError):
        write_bundle(tmp_path / "b", [BundleFile("m.onnx", tmp_path / "no", "onnx")], facts())
    with pytest.raises(UsageError, match="JSON"):
        write_bundle(tmp_path / "b", [BundleFile("m.onnx", source, "onnx")], facts(accuracy={"mean": float("nan")}))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_keys_that_are_none_are_refused(tmp_path):
    private, public = write_keys(tmp_path)
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n", encoding="utf-8")
    for key in (public, bad):
        with pytest.raises(CorruptFileError, match="private key"):
            write_small_bundle(tmp_path, key=key)
    with pytest.raises(MissingFileError):
        write_small_bundle(tmp_path, key=tmp_path / "none.pem")
    assert not (tmp_path / "bundle").exists()
    assert write_small_bundle(tmp_path, key=private).signed_by is not None


def test_only_bundles_claim_to_be_one(tmp_path):
    write_small_bundle(tmp_path)
    assert is_bundle(tmp_path / "bundle")
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"PK\x03\x04")
    assert not is_bundle(tmp_path / "file")
