"""Answers to labelled samples, and the files they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline.benched import classifier

from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.pipeline.correctness import LabelledSamples, correct_answers, labelled_samples
from akd_deploy.target import Target


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_every_sample_is_answered_once_whatever_the_batch(tmp_path, batch):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((10, 3)).astype(np.float32), rng.integers(0, 3, 10)
    labels[-1] = (x[-1] + np.array([0, 0.5, 0])).argmax()  # the last one in a batch that it does not fill
    engine = load_engine(Target("t", "cpu", "onnxruntime", batch=batch))
    model = classifier(tmp_path / "m.onnx", batch, bias=(0.0, 0.5, 0.0))
    right = correct_answers(engine, model, LabelledSamples({"x": x}, labels))
    assert right.tolist() == ((x + np.array([0, 0.5, 0])).argmax(1) == labels).tolist()
    assert 0 < right.sum() < 10


def test_a_digest_is_of_the_values_their_order_and_their_names():
    x, labels = np.eye(3, dtype=np.float32), np.arange(3)
    first = LabelledSamples({"x": x}, labels)
    assert first.digest == LabelledSamples({"x": x.copy()}, labels.copy()).digest
    others = [({"x": x[::-1]}, labels), ({"y": x}, labels), ({"x": x}, labels[::-1]), ({"x": x * 2}, labels)]
    assert len({first.digest, *(LabelledSamples(*other).digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3))}, "labelled samples"),
        ({"labels": np.zeros(2, int)}, "labelled samples"),
        ({"x": np.ones((2, 3)), "labels": np.zeros(3, int)}, "2 of x, 3 of labels"),
        ({"x": np.float32(1), "labels": np.zeros(3, int)}, "0 of x"),
        ({"x": np.ones((2, 3)), "labels": np.zeros(2)}, "float64"),
        ({"x": np.ones((0, 3)), "labels": np.zeros(0, int)}, "shape \\(0,\\)"),
    ],
)
def test_files_without_as_many_labels_as_inputs_are_refused(tmp_path, arrays, message):
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        labelled_samples(path)


def test_files_that_are_no_samples_are_refused(tmp_path):
    with pytest.raises(MissingFileError):
        labelled_samples(tmp_path / "gone.npz")
    bad = tmp_path / "bad.npz"
    for content in (b"", b"no archive", b"PK\x03\x04 torn"):
        bad.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"bad\.npz"):
            labelled_samples(bad)
    np.save(bad.with_suffix(".npy"), np.ones(3))
    with pytest.raises(CorruptFileError, match="npy"):
        labelled_samples(bad.with_suffix(".npy"))


def test_a_network_that_is_no_classifier_is_refused(tmp_path: Path):
    from onnx import TensorProto, helper, save_model

    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, [])],
    )
    path = tmp_path / "sum.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    samples = LabelledSamples({"x": np.eye(3, dtype=np.float32)}, np.arange(3))
    with pytest.raises(UsageError, match="'total'"):
        correct_answers(load_engine(Target("t", "cpu", "onnxruntime")), path, samples)
