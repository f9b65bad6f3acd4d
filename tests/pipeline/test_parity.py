"""What an engine computes beside what torch does: a difference is put down to the node where it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models.random_students import SPACES, trained_like
from onnx import numpy_helper

from akd_deploy.engines import load_engine
from akd_deploy.errors import BuildError, ParityError
from akd_deploy.pipeline import shipping
from akd_deploy.pipeline.parity import checked_build, student_parity
from akd_deploy.target import Target

pytest.importorskip("onnxruntime")
TARGET = Target("t", "cpu", "onnxruntime")
IMAGES = np.random.default_rng(1).standard_normal((16, 1, 12, 12), dtype=np.float32)


@pytest.fixture(scope="module")
def student():
    return trained_like(SPACES["digits 12×12"].sample(np.random.default_rng(0)), 0)


@pytest.fixture
def source(student, tmp_path):
    return shipping.export_student(student, TARGET, tmp_path)


def broken(source: Path, folder: Path) -> tuple[Path, str]:
    """A copy of which one convolution in the middle has other weights, and that convolution's name."""
    model = onnx.load(source)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    node = convolutions[len(convolutions) // 2]
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    path = folder / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    return path, node.name


def test_a_conversion_that_broke_a_layer_is_found_at_that_layer(student, source, tmp_path):
    assert student_parity(student, load_engine(TARGET), source, IMAGES, source).max_rel < 1e-4
    path, name = broken(source, tmp_path)
    with pytest.raises(ParityError, match=name) as caught:
        student_parity(student, load_engine(TARGET), path, IMAGES, source)
    assert caught.value.details["first_divergence"]["node"] == name
    assert caught.value.details["looked_for_by"] == "target t"


def test_an_engine_that_computes_another_thing_is_found_against_plain_numpy(student, source, tmp_path, monkeypatch):
    """The files are the same: the engine itself answers for another network."""
    path, name = broken(source, tmp_path)
    engine = load_engine(TARGET)
    load = engine.load

    def wrong(asked: Path):
        model, other = onnx.load(asked), onnx.load(path)
        weights = {t.name: t for t in other.graph.initializer}
        for tensor in model.graph.initializer:
            tensor.CopyFrom(weights[tensor.name])
        swapped = tmp_path / "swapped.onnx"
        swapped.write_bytes(model.SerializeToString())
        return load(swapped)

    monkeypatch.setattr(engine, "load", wrong)
    with pytest.raises(ParityError) as caught:
        student_parity(student, engine, source, IMAGES[:2], source)
    assert caught.value.details["first_divergence"]["node"] == name
    assert "plain numpy" in caught.value.details["looked_for_by"]


def test_a_wrong_export_from_torch_is_told_as_that(student, source, tmp_path):
    """Its own file is what engine and plain numpy agree about."""
    path, _ = broken(source, tmp_path)
    with pytest.raises(ParityError, match="the export from torch") as caught:
        student_parity(student, load_engine(TARGET), path, IMAGES[:2], path)
    assert caught.value.details["first_divergence"] is None


# --- every engine of a run ------------------------------------------------------------------------------------------


def built(source: Path, target: Target, folder: Path) -> shipping.TargetBuild:
    return shipping.build_for(target, {"fp32": source}, folder)


def test_every_engine_that_runs_here_is_compared_and_the_others_are_not(student, source, tmp_path):
    models = {"fp32": source}
    build = built(source, TARGET, tmp_path / "e")
    same, parity = checked_build(student, build, models, IMAGES, required=False)
    assert same is build
    assert parity["samples"] == 16
    for one in (replace(build, built=None, why_not="absent"), replace(build, why_not_measured="no GPU")):
        assert checked_build(student, one, models, IMAGES, required=False) == (one, None)


def test_an_engine_that_differs_is_not_shipped_and_the_runs_own_ends_the_run(student, source, tmp_path):
    path, _ = broken(source, tmp_path)
    build = built(path, TARGET, tmp_path / "e")
    models = {"fp32": path}
    dropped, parity = checked_build(student, build, models, IMAGES, required=False)
    assert dropped.built is None
    assert dropped.why_not.startswith("built, but not shipped")
    assert parity["cosine"] < 1
    with pytest.raises(ParityError):
        checked_build(student, build, models, IMAGES, required=True)


def test_a_run_whose_own_engine_was_not_built_ends_with_the_reason(student, source):
    build = shipping.TargetBuild(TARGET, None, "no such operator")
    with pytest.raises(BuildError, match="no such operator") as caught:
        checked_build(student, build, {"fp32": source}, IMAGES, required=True)
    assert caught.value.exit_code == 6
    assert checked_build(student, build, {"fp32": source}, IMAGES, required=False) == (build, None)
