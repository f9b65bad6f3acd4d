"""Advice on precision: what chooses and scores has calibrated nothing; the machine's drift is no variant's."""

from __future__ import annotations

from math import exp

import numpy as np
import onnx
import pytest
from export.export_graphs import convnet, network, saved, weight
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, ParityError, UsageError
from akd_deploy.pipeline import quantizing
from akd_deploy.pipeline.parity import outputs_of
from akd_deploy.pipeline.samples import images_from, parts_of, read_samples, samples_for
from akd_deploy.profiling import blocks
from akd_deploy.profiling.blocks import Taken, measure_blocks
from akd_deploy.target import Target

pytest.importorskip("onnxruntime")
TARGET = Target("t", "cpu", "onnxruntime")


class Machine:
    """Stands in for measuring processes: each model takes its own time, and everything takes longer and longer."""

    def __init__(self, seconds: dict[str, float], drift: float) -> None:
        self.seconds, self.drift, self.turn = seconds, drift, 0

    def run_block(self, target, models, order, protocol, seed, until_s):
        for name in order:
            self.turn += 1
            yield name, Taken((self.seconds[name] * exp(self.drift * self.turn),) * 5, 1.0, 0.0)


@pytest.fixture
def source(tmp_path):
    return saved(convnet(), tmp_path / "net.onnx")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(quantizing, "CALIBRATION_SAMPLES", 16)


def written_samples(path, source, count=64, scale=1.0, first=0):
    """Noise that the network itself labels, so that it is always right; the first ones `scale` times as large."""
    images = np.random.default_rng(1).standard_normal((count, 3, 8, 8), dtype=np.float32)
    answers = outputs_of(load_engine(TARGET), source, [{"x": image[None]} for image in images])
    labels = np.array([answer["logits"].argmax() for answer in answers])
    images[:first] *= scale
    np.savez(path, x=images, labels=labels)
    return path


def quantized(source, mode, tmp_path, samples, target=TARGET, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return quantizing.quantize_measured(
        source, target, mode, tmp_path / "out", None, samples, rng, lambda *_: None, **kwargs
    )


def advice(source, tmp_path, samples, machine, monkeypatch, **kwargs):
    monkeypatch.setattr(blocks, "_run_block", machine.run_block)
    data = quantized(source, "auto", tmp_path, samples, **kwargs)
    return {row["mode"]: row for row in data["variants"]}


# --- latency ------------------------------------------------------------------------------------------------------


def test_a_machine_that_slows_down_makes_no_variant_slower(source, few, tmp_path, monkeypatch):
    """All variants are equally fast; measured one after the other, the later ones would be proven slower."""
    same = dict.fromkeys(("fp32", "fp16", "int8"), 1e-3)
    samples = written_samples(tmp_path / "s.npz", source)
    rows = advice(source, tmp_path, samples, Machine(same, 0.02), monkeypatch, calibration="minmax")
    for mode in ("fp16", "int8"):
        low, high = rows[mode]["interval"]
        assert low <= 1 <= high, mode
    assert rows["fp32"]["recommended"]

    in_turn = Machine({"model": 1e-3}, 0.02)
    monkeypatch.setattr(blocks, "_run_block", in_turn.run_block)
    rng = np.random.default_rng(0)
    a, b = (
        measure_blocks(TARGET, {"model": source}, quantizing.ADVICE, rng)["model"].measurement.block_medians_s
        for _ in range(2)
    )
    assert a.max() < b.min()


def test_a_variant_that_is_faster_is_found_faster_on_a_machine_that_slows_down(source, few, tmp_path, monkeypatch):
    seconds = {"fp32": 1e-3, "fp16": 1.3e-3, "int8": 0.8e-3}
    samples = written_samples(tmp_path / "s.npz", source)
    rows = advice(source, tmp_path, samples, Machine(seconds, 0.02), monkeypatch, calibration="minmax")
    assert [mode for mode, row in rows.items() if row["recommended"]] == ["int8"]
    assert rows["int8"]["ratio"] == pytest.approx(0.8, rel=0.03)
    assert rows["fp16"]["why"].startswith("slower")
    assert "Cast" in rows["fp16"]["why_slower"]
    assert rows["bf16"]["latency_stats_s"] is None


def test_the_blocks_are_enough_for_intervals_that_hold_together():
    """Paired signs of n blocks prove at most 2/2ⁿ; Bonferroni over four variants asks for 1.25 %."""
    assert 2 / 2**quantizing.ADVICE.blocks < 0.05 / 4


# --- samples ------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 90),
    batch=st.integers(1, 4),
    calibrating=st.integers(1, 40),
)
def test_parts_share_no_sample_and_keep_their_order_and_labels(count, batch, calibrating):
    images = np.arange(count, dtype=np.float32)[:, None]
    parts = parts_of({"x": images}, images.ravel(), batch, calibrating)
    held = (parts.calibration, parts.choosing, parts.scoring)
    seen = [feed["x"].ravel() for part in held for feed in part.feeds]
    assert all(len(feed) == batch for feed in seen)
    assert np.concatenate([np.empty(0), *seen]).tolist() == list(range(count // batch * batch))
    for part in held:
        assert part.labels.tolist() == [v for feed in part.feeds for v in feed["x"].ravel()]
    left = count // batch - len(parts.calibration.feeds)
    assert bool(parts.choosing.feeds) == (left >= 2)
    assert bool(parts.scoring.feeds) == (left >= 1)


def test_choices_and_scores_are_made_on_samples_that_calibrated_nothing(source, few, tmp_path, monkeypatch):
    ran, calibrated = [], []
    real_outputs, real_tuned = quantizing.outputs_of, quantizing.quantize_auto

    def spy(engine, path, feeds):
        ran.append((path, frozenset(float(feed["x"].ravel()[0]) for feed in feeds)))
        return real_outputs(engine, path, feeds)

    def spy_on_calibration(onnx, target, calibration, *args, **kwargs):
        calibrated.extend(float(feed["x"].ravel()[0]) for feed in calibration)
        return real_tuned(onnx, target, calibration, *args, **kwargs)

    monkeypatch.setattr(quantizing, "outputs_of", spy)
    monkeypatch.setattr(quantizing, "quantize_auto", spy_on_calibration)
    samples = written_samples(tmp_path / "s.npz", source)
    advice(source, tmp_path, samples, Machine(dict.fromkeys(("fp32", "fp16", "int8"), 1.0), 0.0), monkeypatch)
    first = [float(v) for v in np.load(samples)["x"][:, 0, 0, 0]]
    assert calibrated == first[:16]
    chosen = {values for path, values in ran if path.parent != tmp_path / "out" and path != source}
    scored = {values for path, values in ran if path.parent == tmp_path / "out"}
    assert (chosen, scored) == ({frozenset(first[16:32])}, {frozenset(first[32:])})


def test_auto_without_a_batch_to_choose_on_and_one_to_score_on_is_refused(source, tmp_path):
    samples = tmp_path / "s.npz"
    np.savez(samples, x=np.zeros((129, 3, 8, 8), np.float32), labels=np.zeros(129, int))
    for mode in ("auto", "int8"):
        with pytest.raises(UsageError, match=r"129 samples, 1 of them left.*at least 130"):
            quantized(source, mode, tmp_path, samples, calibration="auto")
    np.savez(samples, x=np.zeros((200, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="no labels"):
        quantized(source, "auto", tmp_path, samples)
    with pytest.raises(UsageError, match="0 batches"):
        quantized(source, "auto", tmp_path, None)


def test_a_network_that_is_none_is_named_before_the_data_are_read(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"s\.json"):
        samples_for(tmp_path / "run.toml", None, path)


def test_samples_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    shape = (8, 3, 4, 4)
    np.savez(path, x=np.ones((10, 3, 4, 4), np.float32), labels=np.zeros(10))
    assert images_from(path, shape).shape == shape
    np.savez(path, x=np.ones((2, 3, 4, 4), np.float32))
    assert images_from(path, shape).shape == (2, 3, 4, 4)
    for wrong in (np.ones((10, 4, 4, 3), np.float32), np.ones((10, 3, 4, 4)), np.ones((0, 3, 4, 4), np.float32)):
        np.savez(path, x=wrong)
        with pytest.raises(UsageError, match="float32"):
            images_from(path, shape)
    np.savez(path, x=np.ones(1), y=np.ones(1))
    with pytest.raises(UsageError, match="2 arrays"):
        images_from(path, shape)
    np.save(tmp_path / "lone.npy", np.ones(3))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:100])
    for name in ("lone.npy", "empty.npz", "torn.npz"):
        with pytest.raises(CorruptFileError):
            read_samples(tmp_path / name)
    with pytest.raises(UsageError, match="labels of 3"):
        parts_of({"x": np.ones((3, 1))}, np.ones(2), 1, 1)


# --- parity -------------------------------------------------------------------------------------------------------


def test_one_variant_is_compared_with_its_source(source, few, tmp_path):
    samples = written_samples(tmp_path / "s.npz", source)
    data = quantized(source, "fp16", tmp_path, samples)
    (row,) = data["variants"]
    assert 0 < row["parity"]["max_rel"] < 1e-2
    assert row["parity"]["samples"] == 32
    assert data["compared_on"] == "samples that calibrated nothing"
    (row,) = quantized(source, "fp16", tmp_path, None)["variants"]
    assert row["parity"] is None
    assert "no samples" in row["why"]
    (row,) = quantized(source, "bf16", tmp_path, samples)["variants"]  # which ONNX Runtime does not run here
    assert row["parity"] is None
    assert "not compared with its source" in row["why"]


@pytest.fixture
def unbiased(tmp_path):
    """Whose answers come from its inputs alone."""
    model = convnet()
    for name in ("b0", "b3"):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        bias.CopyFrom(weight(name, np.zeros(tuple(bias.dims))))
    return saved(model, tmp_path / "net.onnx")


def test_a_broken_variant_names_the_first_node_that_differs(unbiased, few, tmp_path):
    """Calibrated on what is a hundred times too small, int8 clips everything from the first convolution on."""
    source = unbiased
    samples = written_samples(tmp_path / "s.npz", source, scale=0.01, first=16)
    with pytest.raises(ParityError, match="first at node 'conv0'") as caught:
        quantized(source, "int8", tmp_path, samples)
    found = caught.value.details["first_divergence"]
    assert (found["tensor"], found["op"], found["agreeing_tensors"]) == ("r0", "Conv", 0)  # int8 took the Relu in
    assert caught.value.details["looked_for_by"] == "target t"
    assert (tmp_path / "out" / "net.int8.onnx").is_file()


def test_a_broken_variant_is_a_row_that_names_the_node_and_is_not_recommended(unbiased, few, tmp_path, monkeypatch):
    source = unbiased
    samples = written_samples(tmp_path / "s.npz", source, scale=0.01, first=16)
    seconds = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.5e-3}
    rows = advice(
        source, tmp_path, samples, Machine(seconds, 0.0), monkeypatch, calibration="minmax", max_accuracy_loss=1.0
    )
    assert rows["fp32"]["recommended"]
    assert rows["int8"]["excluded"]  # which was not enough
    assert "first at node" in rows["int8"]["why"]


# --- a layer that int8 breaks -----------------------------------------------------------------------------------------


def with_an_outlier_layer() -> onnx.ModelProto:
    """The convolutional network, its residual sum with a channel a thousand times the others before it is undone."""
    model = convnet()
    up, down = np.ones((1, 16, 1, 1)), np.ones((1, 16, 1, 1))
    up[0, 0], down[0, 0] = 3e3, 1 / 3e3
    position = next(i for i, node in enumerate(model.graph.node) if node.name == "pool")
    model.graph.node.insert(position, helper.make_node("Mul", ["a2", "up"], ["u2"], "up"))
    model.graph.node.insert(position + 1, helper.make_node("Mul", ["u2", "down"], ["d2"], "down"))
    next(node for node in model.graph.node if node.name == "pool").input[0] = "d2"
    model.graph.initializer.extend([weight("up", up), weight("down", down)])
    return network(model.graph.node, model.graph.initializer)


def test_nodes_that_int8_breaks_are_found_and_stay_in_float(few, tmp_path, monkeypatch):
    source = saved(with_an_outlier_layer(), tmp_path / "net.onnx")
    samples = written_samples(tmp_path / "s.npz", source, count=112)
    seconds = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.5e-3}
    rows = advice(
        source, tmp_path, samples, Machine(seconds, 0.0), monkeypatch, calibration="minmax", max_accuracy_loss=0.05
    )
    excluded = {one["node"]: one["effect"] for one in rows["int8"]["excluded"]}
    assert set(excluded) == {"up", "down"}
    assert all(effect > 0.1 for effect in excluded.values())
    assert rows["int8"]["recommended"], rows["int8"]
