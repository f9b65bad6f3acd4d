"""What a run's bundle holds: the very network that was built, measured and certified."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from small_run import CPU_FP32, CPU_INT8, OPENVINO_FP32, small_bundle

from akd_deploy.engines import load_engine
from akd_deploy.export.manifest import Manifest
from akd_deploy.export.package import package_bundle
from akd_deploy.export.verify import verify_bundle
from akd_deploy.pipeline.deliver import network_files
from akd_deploy.target import Target


def manifest_of(bundle: Path) -> Manifest:
    verification = verify_bundle(bundle)
    assert verification.problems == ()
    assert verification.manifest is not None
    return verification.manifest


def is_quantised(path: Path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("int8") / "run", CPU_INT8, OPENVINO_FP32)


def test_a_bundle_ships_the_typed_network_and_keeps_the_float32_one_as_its_source(int8_bundle):
    manifest = manifest_of(int8_bundle)
    assert manifest.with_role("onnx") == ["student.int8.onnx"]
    assert manifest.with_role("source") == ["student.onnx"]
    assert is_quantised(int8_bundle / "student.int8.onnx")
    assert not is_quantised(int8_bundle / "student.onnx")


def test_the_shipped_network_can_be_built_again_for_its_target(int8_bundle, tmp_path):
    """The audit refuses a float32 network for an int8 target."""
    (name,) = manifest_of(int8_bundle).with_role("onnx")
    built = load_engine(CPU_INT8).build(int8_bundle / name, tmp_path)
    assert sum(count for dtype, count in built.precision.items() if dtype.endswith("int8")) > 0


def test_a_server_gets_the_network_that_was_certified(int8_bundle, tmp_path):
    package_bundle(int8_bundle, "triton", tmp_path / "models", model_name="student")
    assert is_quantised(tmp_path / "models" / "student" / "1" / "model.onnx")
    assert not is_quantised(tmp_path / "models" / "student" / "bundle" / "student.onnx")


def roles(target: Target, others: tuple[Target, ...], *modes: str) -> dict[str, str]:
    files = network_files({mode: Path(f"student.{mode}") for mode in modes}, target, others)
    return {file.name.removeprefix("student."): file.role for file in files}


def test_every_engine_has_the_network_it_was_built_from_beside_it():
    orin = Target("orin", "orin", "tensorrt", "fp16")
    eager = Target("eager", "cpu", "torch")
    assert roles(CPU_FP32, (CPU_FP32,), "fp32") == {"fp32": "onnx"}
    assert roles(CPU_FP32, (CPU_FP32, orin), "fp32", "fp16", "int8") == {"fp32": "onnx", "fp16": "variant"}
    assert roles(CPU_INT8, (CPU_INT8, orin), "fp32", "fp16", "int8") == {
        "fp32": "source", "fp16": "variant", "int8": "onnx",
    }  # fmt: skip
    assert roles(eager, (eager, CPU_INT8), "fp32", "int8", "pt2") == {"fp32": "source", "int8": "variant"}
    assert roles(CPU_FP32, (CPU_FP32, eager), "fp32", "pt2") == {"fp32": "onnx"}


def test_the_manifest_tells_what_every_engine_is(int8_bundle):
    manifest = manifest_of(int8_bundle)
    assert list(manifest.facts.engines) == manifest.with_role("engine")
    own = manifest.facts.engines["engines/cpu_int8/student.int8.onnx"]
    assert own.target == CPU_INT8
    assert (own.network, own.parts, own.compute_capabilities, own.memory) == ("student.int8.onnx", (), None, None)
    assert own.device == load_engine(CPU_INT8).fingerprint().facts
    assert own.engine_version == load_engine(CPU_INT8).version()
    assert sum(count for dtype, count in own.precision.items() if dtype.endswith("int8")) > 0
    other = manifest.facts.engines["engines/openvino_fp32/student.xml"]
    assert (other.network, other.parts) == ("student.onnx", ("engines/openvino_fp32/student.bin",))


def test_facts_about_engines_follow_their_files_into_a_servers_folder(int8_bundle, tmp_path):
    written = package_bundle(int8_bundle, "triton", tmp_path / "models", model_name="student")
    own = written.facts.engines["bundle/engines/cpu_int8/student.int8.onnx"]
    assert own.network == "1/model.onnx"
    other = written.facts.engines["bundle/engines/openvino_fp32/student.xml"]
    assert (other.network, other.parts) == ("bundle/student.onnx", ("bundle/engines/openvino_fp32/student.bin",))


def test_a_bundle_has_a_runner_that_needs_nothing_of_ours(int8_bundle, tmp_path):
    assert manifest_of(int8_bundle).with_role("runner") == ["runner.py"]
    shutil.copytree(int8_bundle, tmp_path / "shipped")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "runner.py", "--seconds", "0.01"]
    done = subprocess.run(
        command, cwd=tmp_path / "shipped", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "when measured: 1.1 ms" in done.stdout
