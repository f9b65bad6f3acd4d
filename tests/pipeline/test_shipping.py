"""Small decisions on the way from a student to its engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from akd_deploy.errors import BuildError, UsageError
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline import shipping
from akd_deploy.pipeline.summary import paired_difference
from akd_deploy.profiling.blocks import Measured, Protocol, Taken
from akd_deploy.target import Target


def target(engine="onnxruntime", precision="fp32", name="t", **fields):
    return Target(name, "cpu", engine, precision, **fields)


@pytest.mark.parametrize(
    ("engine", "precision", "mode"),
    [
        ("onnxruntime", "fp32", "fp32"),
        ("onnxruntime", "int8", "int8"),
        ("openvino", "bf16", "fp32"),  # a hint on the float32 network
        ("tensorrt", "tf32", "fp32"),
        ("tensorrt", "bf16", "bf16"),  # TensorRT reads types off the network
        ("tensorrt", "fp16", "fp16"),
        ("torch", "fp32", "pt2"),
        ("torch", "fp16", "pt2-fp16"),
    ],
)
def test_each_target_reads_the_variant_that_its_precision_lives_in(engine, precision, mode):
    asked = target(engine, precision)
    assert shipping.mode_for(asked) == mode
    assert shipping.model_for(asked, {mode: Path("m")}) == Path("m")
    with pytest.raises(BuildError, match=f'Add "{mode}" to quantize'):
        shipping.model_for(asked, {"none": Path("m")})


def test_images_that_fill_no_batch_are_left_out():
    images = np.arange(10, dtype=np.float32).reshape(10, 1)
    feeds = shipping.feeds_of(images, 4, "x")
    assert [feed["x"].ravel().tolist() for feed in feeds] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def _measured(name, seconds, block=0):
    return Measured(Measurement(name, (seconds,) * 3, (block,) * 3), remeasured=1, disturbed=0)


def test_engines_are_measured_block_by_block_in_turn(monkeypatch):
    """A slow minute of the machine then hits all of them, and blocks of equal number can be compared."""
    calls = []

    def measure(target, models, protocol, rng, usual, **_):
        assert protocol.blocks == 1
        # What is usual is learnt across blocks: within one of a single model nothing can look unusual.
        assert len(usual.references_s) == len(calls)
        usual.references_s.append(1e-3)
        calls.append(target.name)
        return {name: _measured(name, float(len(calls))) for name in models}

    monkeypatch.setattr(shipping, "measure_blocks", measure)
    a, b = target(name="a"), target("openvino", name="b")
    subjects = {"a": (a, Path("1")), "a int8": (a, Path("2")), "b": (b, Path("3"))}
    reports = []
    merged = shipping.measure_together(
        subjects, Protocol(blocks=4), np.random.default_rng(0), lambda done, total: reports.append((done, total))
    )
    assert [sorted(calls[i : i + 2]) for i in range(0, 8, 2)] == [["a", "b"]] * 4
    assert reports[-1] == (12, 12)
    for name, value in merged.items():
        assert len(value.measurement.blocks) == 4, name
        assert len(value.measurement.samples_s) == 12
        assert value.remeasured == 4
    assert merged["a"].measurement.samples_s == merged["a int8"].measurement.samples_s


def test_references_of_different_devices_are_not_held_against_one_another(monkeypatch):
    """A GPU's reference is other arithmetic: beside it every block of the CPU would look slowed."""
    asked = []

    def measure(target, models, protocol, rng, usual, on_taken, earlier):
        asked.append(target.name)
        reference_s = 108e-6 if target.device == "cpu" else 25e-6
        usual.references_s.append(reference_s)
        for name in models:
            on_taken(name, 0, Taken((1.0,), reference_s, 0.0))
        return {name: _measured(name, 1.0) for name in models}

    monkeypatch.setattr(shipping, "measure_blocks", measure)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    gpu = replace(target("torch", name="g"), device="gpu")
    subjects = {"c": (target(name="c"), Path("1")), "g": (gpu, Path("2"))}
    shipping.measure_together(subjects, Protocol(blocks=3, pauses_s=(1.0, 2.0)), np.random.default_rng(0))
    assert sorted(asked) == ["c"] * 3 + ["g"] * 3


def test_what_is_disturbed_at_the_end_is_measured_again_after_pauses_until_the_machine_is_calm(monkeypatch):
    """The reference tells, never the model's own times: a slow model beside a calm reference stays as it is."""
    slept, asked = [], []

    def measure(target, models, protocol, rng, usual, on_taken, earlier):
        asked.append((target.name, sorted(models), {name: len(blocks) for name, blocks in earlier.items()}))
        found = {}
        for name in models:
            before = earlier[name][0].remeasured + 1 if name in earlier else 0
            slow = name == "b" and len(slept) < 2 and len(asked) >= 3
            usual.references_s.append(2e-3 if slow else 1e-3)
            on_taken(name, 0, Taken((5.0 if slow else 1.0,), usual.references_s[-1], 0.0, remeasured=before))
            found[name] = Measured(Measurement(name, (5.0 if slow else 1.0,), (0,)), before, int(slow))
        return found

    monkeypatch.setattr(shipping, "measure_blocks", measure)
    monkeypatch.setattr("time.sleep", slept.append)
    subjects = {"a": (target(name="a"), Path("1")), "b": (target("openvino", name="b"), Path("2"))}
    merged = shipping.measure_together(subjects, Protocol(blocks=4, pauses_s=(1.0, 2.0, 4.0)), np.random.default_rng(0))
    assert slept == [1.0, 2.0]
    assert all(names == ["b"] for _, names, earlier in asked if earlier)
    assert merged["a"].measurement.samples_s == merged["b"].measurement.samples_s == (1.0,) * 4
    assert (merged["a"].remeasured, merged["b"].disturbed) == (0, 0)
    assert merged["b"].remeasured > 2


def test_a_machine_that_never_calms_down_is_given_up_in_time(monkeypatch):
    asked = []

    def measure(target, models, protocol, rng, usual, on_taken, earlier):
        asked.append(sorted(models))
        for name in models:
            usual.references_s.append(2e-3 if len(asked) > 4 else 1e-3)
            on_taken(name, 0, Taken((1.0,), usual.references_s[-1], 0.0, remeasured=len(earlier)))
        return {name: Measured(Measurement(name, (1.0,), (0,)), len(earlier), 1) for name in models}

    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr(shipping, "measure_blocks", measure)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    subjects = {"a": (target(name="a"), Path("1"))}
    shipping.measure_together(subjects, Protocol(blocks=20, pauses_s=(1.0, 2.0)), np.random.default_rng(0))
    assert 20 < len(asked) < 26


def test_a_ratio_needs_six_paired_blocks():
    def measurement(factor, blocks):
        samples = [factor * (1 + 0.01 * i) for i in range(blocks) for _ in range(3)]
        return Measurement("m", tuple(samples), tuple(i for i in range(blocks) for _ in range(3)))

    assert shipping.paired_ratio(measurement(1, 5), measurement(2, 5)) is None
    ratio = shipping.paired_ratio(measurement(1, 6), measurement(2, 6))
    assert ratio is not None
    assert ratio == pytest.approx({"ratio": 2, "low": 2, "high": 2})


def test_a_paired_difference_is_students_interval():
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027; half = 4.3027 / √3.
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert found["mean"] == pytest.approx(2)
    assert found["low"] == pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-6)
    assert found["high"] == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)
    assert found["n"] == 3


def test_what_cannot_be_built_here_is_told_and_not_raised(tmp_path, monkeypatch):
    from akd_deploy.engines.openvino_engine import OpenVinoEngine

    monkeypatch.setattr(OpenVinoEngine, "why_not_build", lambda self: "openvino is not installed")
    build = shipping.build_for(target("openvino"), {"fp32": Path("gone.onnx")}, tmp_path / "e")
    assert (build.built, build.why_not) == (None, "openvino is not installed")
    missing = shipping.build_for(target(precision="int8"), {"fp32": Path("gone.onnx")}, tmp_path / "e")
    assert missing.built is None
    assert 'Add "int8" to quantize' in str(missing.why_not)


def test_a_certificate_with_too_few_samples_is_refused():
    from akd_deploy.configuration import CertificateTable

    few = Measurement("m", (1e-3,) * 10, (0,) * 10)
    with pytest.raises(UsageError, match="at least 44"):
        shipping.certificate_of(few, 1.0, CertificateTable())
