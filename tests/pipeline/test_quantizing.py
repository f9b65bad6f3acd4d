"""Advice on precision is scored on samples that calibrated nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.pipeline import quantizing
from akd_deploy.target import Target

TARGET = Target("t", "cpu", "onnxruntime", batch=2)


def _auto(tmp_path, count, rng=None):
    images = np.arange(count, dtype=np.float32)[:, None]
    np.savez(tmp_path / "samples.npz", input=images, labels=np.arange(count) % 3)
    rng = rng or np.random.default_rng(0)
    return quantizing.quantize_measured(
        tmp_path / "m.onnx", TARGET, "auto", tmp_path / "out", None, tmp_path / "samples.npz", rng, lambda *_: None
    )


def test_auto_scores_on_samples_that_did_not_calibrate(tmp_path, monkeypatch):
    calibrated, scored, measured_with = [], [], []

    class Session:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def run(self, feeds):
            scored.extend(feeds["input"].ravel())
            return {"y": np.eye(3)[feeds["input"].ravel().astype(int) % 3]}  # always right

    engine = SimpleNamespace(
        fingerprint=lambda: SimpleNamespace(facts={}), why_not=lambda: None, require=lambda reason: None,
        load=lambda path: Session(),
    )  # fmt: skip

    def advised(onnx, target, calibration, output, measure, accuracy, settings, build):
        calibrated.extend(np.concatenate([feed["input"].ravel() for feed in calibration]))
        measure(onnx)
        assert accuracy(onnx) == 1
        return (SimpleNamespace(recommended=True, path=onnx, as_dict=dict),)

    def measured(target, models, protocol, rng):
        measured_with.append(rng)
        return {"model": SimpleNamespace(measurement=None)}

    monkeypatch.setattr(quantizing, "load_engine", lambda target: engine)
    monkeypatch.setattr(quantizing, "quantize_auto", advised)
    monkeypatch.setattr(quantizing, "measure_blocks", measured)
    monkeypatch.setattr(quantizing, "CALIBRATION_SAMPLES", 8)
    rng = np.random.default_rng(7)
    _auto(tmp_path, 15, rng)
    assert calibrated == list(range(8))
    assert scored == list(range(8, 14))  # the last one fills no batch
    assert measured_with == [rng]


def test_auto_without_a_sample_to_score_on_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"129 samples.*more than 129"):
        _auto(tmp_path, 129)


def test_a_network_that_is_none_is_named_before_the_data_are_read(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"s\.json"):
        quantizing._samples(tmp_path / "run.toml", None, path)
