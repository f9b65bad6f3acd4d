"""Networks are typed, exported and built for an RTX card on a machine without one."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from command_line import call, written
from engines.engine_graphs import GRAPHS

from akd_deploy.engines.nvidia import why_no_gpu

TARGET = "rtx_tensorrt-rtx_fp16"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)


@pytest.fixture
def network(tmp_path):
    onnx.save(GRAPHS["residual"](), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_network_is_quantised_to_fp16_and_built(network, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi anywhere
    made = call(tmp_path, "quantize", "--onnx", network, "--target", TARGET, "--mode", "fp16", "-o", "q", "--json")
    assert made.code == 0, made
    built = call(tmp_path, "build", "--onnx", made.data["onnx"], "--target", TARGET, "-o", "e", "--json")
    assert built.code == 0, built
    assert "float16" in built.data["precision"]
    assert built.data["memory"].keys() >= {"weights_bytes", "activation_bytes"}
    assert built.data["memory"]["weights_bytes"] > 2 * 16 * 16 * 9
    assert built.stderr == ""
    # The plan tells its kernels on its GPU alone; what it was built from tells them anywhere.
    of_network, of_plan = (
        call(tmp_path, "inspect", file, "--target", TARGET, "--json")
        for file in (made.data["onnx"], built.data["engine"])
    )
    assert of_plan.code == 0, of_plan
    assert of_plan.data["kernels"] == of_network.data["kernels"] != []
    refused = call(tmp_path, "build", "--onnx", network, "--target", TARGET, "-o", "e", "--json")
    assert (refused.code, refused.error["kind"]) == (6, "build")
    assert "Conv_0" in refused.error["layers"]


def test_a_build_shows_its_phases_and_its_memory(network, tmp_path):
    text = '[engine_options]\nshapes = ["x:1x3x16x16,2x3x16x16,4x3x16x16"]\n'
    target = written(tmp_path / "rtx.toml", f'device = "rtx"\nengine = "tensorrt-rtx"\nprecision = "fp32"\n{text}')
    answer = call(tmp_path, "build", "--onnx", network, "--target", target, "-o", "e")
    assert answer.code == 0, answer
    assert "Building engine\n" in answer.stderr
    assert answer.stderr.count("Building engine\n") == 1
    assert "of weights" in answer.stdout
    again = call(tmp_path, "build", "--onnx", network, "--target", target, "-o", "e", "--json")
    assert again.data["profiles"] == [{"x": "1x3x16x16,2x3x16x16,4x3x16x16"}]
    assert again.data["timing_cache"] is None


def test_a_student_is_exported_with_the_variant_the_card_reads(tmp_path):
    from akd_deploy.models.student import save_student, student_from_architecture
    from akd_deploy.search_space import load_space

    space = load_space("mobile")
    save_student(student_from_architecture(space.sample(np.random.default_rng(0)), 0), tmp_path / "s.safetensors")
    answer = call(tmp_path, "export", "--student", "s.safetensors", "--target", TARGET, "-o", "out", "--json")
    assert answer.code == 0, answer
    built = call(tmp_path, "build", "--onnx", answer.data["variants"]["fp16"], "--target", TARGET, "-o", "e", "--json")
    assert built.code == 0, built


@pytest.mark.skipif(why_no_gpu() is None, reason="a GPU is here")
def test_what_needs_the_card_says_so(network, tmp_path):
    answer = call(tmp_path, "bench", "--onnx", network, "--target", TARGET, "--json")
    assert (answer.code, answer.error["kind"]) == (5, "missing_runtime")
    assert "driver" in answer.error["found"]
