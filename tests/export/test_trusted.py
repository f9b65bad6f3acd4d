"""An engine file passes that was built here, that a bundle vouches for, or that somebody asked for."""

import shutil
from pathlib import Path

import pytest
from bundles import write_keys, write_small_bundle

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import BuiltEngine
from akd_deploy.errors import MissingFileError, VerificationError
from akd_deploy.export import trusted
from akd_deploy.export.trusted import check_engine_file, checked_models, record_built, why_not_built_here
from akd_deploy.target import Target


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))


@pytest.fixture
def built(tmp_path):
    (tmp_path / "built").mkdir()
    files = (tmp_path / "built" / "m.xml", tmp_path / "built" / "m.bin")
    for file in files:
        file.write_bytes(file.name.encode())
    engine = BuiltEngine(files[0], files, 0.0, 10, {}, "1.0")
    (tmp_path / "m.onnx").write_bytes(b"network")
    record_built(load_engine(Target("t", "cpu", "openvino")), engine, tmp_path / "m.onnx")
    return files[0]


def refused(path, engine="openvino", **arguments) -> str:
    with pytest.raises(VerificationError) as caught:
        check_engine_file(path, engine, **arguments)
    assert caught.value.asked == f"the engine {path} to be loaded"
    assert "--trust-engine" in caught.value.next
    return caught.value.found


def test_what_was_built_here_passes_wherever_it_was_moved(built, tmp_path):
    check_engine_file(built, "tensorrt")
    shutil.copytree(built.parent, tmp_path / "moved")
    check_engine_file(tmp_path / "moved" / "m.xml", "tensorrt")
    assert why_not_built_here(tmp_path / "moved" / "m.xml") is None


def test_one_flipped_bit_or_a_changed_part_makes_it_unknown(built):
    built.write_bytes(b"m.xmm")
    assert "no record that it was built here" in refused(built)
    built.write_bytes(b"m.xml")
    (built.parent / "m.bin").write_bytes(b"evil!")
    assert "m.bin beside it missing or changed" in refused(built)
    (built.parent / "m.bin").unlink()
    assert "m.bin beside it missing or changed" in refused(built)


def test_a_damaged_record_is_none(built, tmp_path):
    (record,) = (tmp_path / "home" / "built_engines").iterdir()
    for text in ("", "[]", "{}", '{"parts": 5}', '{"parts": null}'):
        record.write_text(text, encoding="utf-8")
        assert "no record" in refused(built)


def test_what_is_asked_for_passes_unread_and_what_is_not_there_is_missing(tmp_path):
    check_engine_file(tmp_path / "gone", "tensorrt", trust=True)
    with pytest.raises(MissingFileError):
        check_engine_file(tmp_path / "gone", "tensorrt")


def test_an_engine_in_a_whole_bundle_passes_if_it_can_run_no_code_or_the_bundle_is_signed(tmp_path):
    keys, other = write_keys(tmp_path), write_keys(tmp_path, "other", seed=2)
    write_small_bundle(tmp_path, key=keys[0])
    engine = tmp_path / "bundle" / "engines" / "cpu_test.engine"
    check_engine_file(engine, "onnxruntime")
    for code in ("tensorrt", "tensorrt-rtx", "torch"):
        assert "nothing says whose it is" in refused(engine, code)
        check_engine_file(engine, code, key=keys[1])
        assert "not by the given key" in refused(engine, code, key=other[1])
    (tmp_path / "link").symlink_to(engine)
    check_engine_file(tmp_path / "link", "onnxruntime")
    (tmp_path / "bundle" / "labels.txt").write_text("other", encoding="utf-8")
    assert "labels.txt" in refused(engine, "onnxruntime")


def test_native_code_is_checked_whichever_option_names_it(tmp_path):
    plan, network = tmp_path / "a.plan", tmp_path / "a.onnx"
    plan.write_bytes(b"plan")
    network.write_bytes(b"network")
    with checked_models("onnxruntime", [], [network]) as instead:
        assert instead == {}
    for built, others in (([network], []), ([], [plan]), ([], [network, plan])):
        with pytest.raises(VerificationError), checked_models("tensorrt", built, others):
            pass
    with checked_models("tensorrt", [network], [plan], trust=True) as instead:
        assert instead == {network: network, plan: plan}


# --- what is changed after the check, or in the middle of it ---------------------------------------------------


def swap(path: Path) -> None:
    path.write_bytes(b"evil")


def test_what_was_checked_is_loaded_whatever_becomes_of_the_file(built):
    with checked_models("openvino", [built]) as instead:
        for file in (built, built.with_suffix(".bin")):
            swap(file)
        copy = instead[built]
        assert copy.read_bytes() == b"m.xml"
        assert copy.with_suffix(".bin").read_bytes() == b"m.bin"
        assert copy.parent.parent.parent.stat().st_mode & 0o077 == 0, "nobody else may write there"
    assert not copy.exists()
    assert "no record" in refused(built)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("file", ["m.xml", "m.bin"])
def test_a_file_that_is_swapped_while_it_is_checked_is_refused_or_was_copied_before(built, monkeypatch, moment, file):
    """No moment at which what was hashed is one thing, and what is loaded another."""
    copied = trusted.copied_sha256

    def racing(path: Path, copy: Path) -> str:
        if path.name == file and moment == "before":
            swap(path)
        sha256 = copied(path, copy)
        if path.name == file and moment == "after":
            swap(path)
        return sha256

    monkeypatch.setattr(trusted, "copied_sha256", racing)
    if moment == "before":
        assert ("no record" if file == "m.xml" else "m.bin beside it") in refused(built)
    else:
        with checked_models("openvino", [built]) as instead:
            assert instead[built].with_name(file).read_bytes() == file.encode()
            assert built.with_name(file).read_bytes() == b"evil"


def test_an_engine_of_a_bundle_is_loaded_as_it_was_verified(tmp_path):
    write_small_bundle(tmp_path)
    engine = tmp_path / "bundle" / "engines" / "cpu_test.engine"
    original = engine.read_bytes()
    with checked_models("onnxruntime", [engine]) as instead:
        swap(engine)
        assert instead[engine].read_bytes() == original
    assert "cpu_test.engine: " in refused(engine, "onnxruntime")


def test_a_bundles_manifest_is_no_engine(tmp_path):
    write_small_bundle(tmp_path)
    assert "nothing says whose it is" in refused(tmp_path / "bundle" / "manifest.json", "onnxruntime")
