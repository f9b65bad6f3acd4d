import subprocess
import sys
import zipfile

import pytest
from bundles import bytes_of, write_keys, write_small_bundle

from akd_deploy.errors import UnknownNameError, UsageError, VerificationError
from akd_deploy.export.package import package_bundle
from akd_deploy.export.verify import verify_bundle


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("form", ["dir", "zip"])
def test_a_packaged_bundle_has_the_same_digest_and_verifies(tmp_path, keys, form, signed):
    manifest = write_small_bundle(tmp_path, key=keys[0] if signed else None)
    packaged = package_bundle(tmp_path / "bundle", form, tmp_path / "out")
    assert packaged.digest == manifest.digest
    verification = verify_bundle(tmp_path / "out", key=keys[1] if signed else None, digest=manifest.digest)
    assert verification.problems == ()
    assert verification.authentic


@pytest.mark.parametrize("form", ["dir", "zip"])
def test_a_zip_is_packaged_as_the_directory_it_holds(tmp_path, keys, form):
    manifest = write_small_bundle(tmp_path, key=keys[0])
    package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    again = package_bundle(tmp_path / "b.zip", form, tmp_path / "out")
    assert (again.digest, again.signed_by) == (manifest.digest, manifest.signed_by)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / ("bundle" if form == "dir" else "b.zip"))
    other, public = write_keys(tmp_path, "other", seed=2)
    package_bundle(tmp_path / "b.zip", form, tmp_path / "signed", key=other)
    assert verify_bundle(tmp_path / "signed", key=public).authentic


def test_a_broken_zip_is_not_packaged(tmp_path):
    write_small_bundle(tmp_path)
    package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(VerificationError):
        package_bundle(tmp_path / "b.zip", "dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packages_have_the_same_bytes_each_time(tmp_path, keys):
    write_small_bundle(tmp_path)
    for form in ("dir", "zip", "triton"):
        for name in ("a", "b"):
            package_bundle(tmp_path / "bundle", form, tmp_path / form / name, key=keys[0])
        assert bytes_of(tmp_path / form / "a") == bytes_of(tmp_path / form / "b")


def test_any_unzip_program_reads_the_zip(tmp_path):
    write_small_bundle(tmp_path)
    package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
        archive.extractall(tmp_path / "unzipped")
    assert bytes_of(tmp_path / "unzipped") == bytes_of(tmp_path / "bundle")
    assert verify_bundle(tmp_path / "unzipped").ok


def test_a_key_signs_a_bundle_that_was_not_and_another_key_replaces_the_first(tmp_path, keys):
    write_small_bundle(tmp_path)
    other_private, other_public = write_keys(tmp_path, "other", seed=2)
    package_bundle(tmp_path / "bundle", "dir", tmp_path / "signed", key=keys[0])
    assert verify_bundle(tmp_path / "signed", key=keys[1]).authentic
    package_bundle(tmp_path / "signed", "zip", tmp_path / "again.zip", key=other_private)
    assert verify_bundle(tmp_path / "again.zip", key=other_public).authentic
    assert not verify_bundle(tmp_path / "again.zip", key=keys[1]).ok


def test_a_broken_bundle_is_not_packaged(tmp_path):
    write_small_bundle(tmp_path)
    (tmp_path / "bundle" / "labels.txt").write_text("cat\n", encoding="utf-8")
    with pytest.raises(VerificationError, match=r"labels\.txt"):
        package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_nothing_is_overwritten_without_force_and_other_files_never(tmp_path):
    write_small_bundle(tmp_path)
    package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    with pytest.raises(UsageError, match="--force"):
        package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip")
    package_bundle(tmp_path / "bundle", "zip", tmp_path / "b.zip", force=True)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not a bundle"):
        package_bundle(tmp_path / "bundle", "zip", tmp_path / "notes.txt", force=True)
    with pytest.raises(UnknownNameError, match="zip"):
        package_bundle(tmp_path / "bundle", "zipp", tmp_path / "x")


def test_a_triton_model_is_laid_out_as_triton_wants_it_and_verifies_where_it_lies(tmp_path, keys):
    write_small_bundle(tmp_path)
    package_bundle(tmp_path / "bundle", "triton", tmp_path / "repository", key=keys[0], model_name="student")
    model = tmp_path / "repository" / "student"
    assert set(bytes_of(model)) == {
        "config.pbtxt",
        "1/model.onnx",
        "bundle/engines/cpu_test.engine",
        "bundle/labels.txt",
        "manifest.json",
        "manifest.sig",
    }
    assert (model / "1" / "model.onnx").read_bytes() == (tmp_path / "bundle" / "student.onnx").read_bytes()
    assert verify_bundle(model, key=keys[1]).authentic
    assert (model / "config.pbtxt").read_text(encoding="utf-8") == (
        'name: "student"\n'
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 0\n"
        "input [\n"
        '  { name: "x" data_type: TYPE_FP32 dims: [ 1, 3, 8, 8 ] }\n'
        "]\n"
        "output [\n"
        '  { name: "logits" data_type: TYPE_FP32 dims: [ 1, 3 ] }\n'
        "]\n"
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "2" } }\n'
    )


def test_a_tensorrt_plan_is_served_as_one(tmp_path):
    write_small_bundle(tmp_path, engine="tensorrt")
    package_bundle(tmp_path / "bundle", "triton", tmp_path / "repository", model_name="net")
    model = tmp_path / "repository" / "net"
    assert (model / "1" / "model.plan").read_bytes() == bytes(range(200))
    assert 'platform: "tensorrt_plan"' in (model / "config.pbtxt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("engine", "why"),
    [("tensorrt-rtx", "plans of TensorRT itself, and none of TensorRT-RTX"), ("torch", "TorchScript, and no archive")],
)
def test_what_triton_cannot_serve_is_refused_with_the_reason_and_what_is(tmp_path, engine, why):
    from bundles import facts
    from export_graphs import convnet, saved

    from akd_deploy.export.bundle import BundleFile, write_bundle
    from akd_deploy.target import Target

    source = saved(convnet(), tmp_path / "m.onnx")
    plain = facts(target=Target("t", "cpu", engine))
    write_bundle(tmp_path / "bundle", [BundleFile("m.onnx", source, "onnx")], plain)
    with pytest.raises(UsageError, match=f"{engine}.*{why}.*onnxruntime, tensorrt, openvino"):
        package_bundle(tmp_path / "bundle", "triton", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_signature_is_not_lost_by_turning_a_bundle_into_a_triton_model(tmp_path, keys):
    write_small_bundle(tmp_path, key=keys[0])
    with pytest.raises(UsageError, match="--sign"):
        package_bundle(tmp_path / "bundle", "triton", tmp_path / "repository")


def test_a_name_that_is_none_in_triton_is_refused(tmp_path):
    write_small_bundle(tmp_path)
    with pytest.raises(UsageError, match="other signs"):
        package_bundle(tmp_path / "bundle", "triton", tmp_path / "repository", model_name='a" b')


def test_packaging_and_verifying_load_no_runtime_and_verifying_no_onnx(tmp_path):
    write_small_bundle(tmp_path)
    code = (
        "import sys; from pathlib import Path; from akd_deploy.export.verify import verify_bundle;"
        f"root = Path({str(tmp_path)!r}); assert verify_bundle(root / 'bundle').ok;"
        "assert not {'onnx', 'torch', 'numpy'} & set(sys.modules), 'too much to verify';"
        "from akd_deploy.export.package import package_bundle;"
        "package_bundle(root / 'bundle', 'triton', root / 'repository');"
        "print(*[m for m in ('torch', 'onnxruntime', 'openvino', 'tensorrt') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
