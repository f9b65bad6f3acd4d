from pathlib import Path

import numpy as np
import pytest
from export_graphs import convnet, images, saved

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.export.advise import advise_precision, quantize_auto, runnable_modes
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target


def measurement(path: Path, center_s: float, rng: np.random.Generator, blocks: int = 6, scatter: float = 0.01):
    centers = center_s * np.exp(scatter * rng.standard_normal(blocks))
    samples = [float(c * (1 + 0.001 * i)) for c in centers for i in range(5)]
    return Measurement(str(path), tuple(samples), tuple(i for i in range(blocks) for _ in range(5)))


def advise(latencies, accuracies, rng=None, blocks=6, **kwargs):
    rng = rng or np.random.default_rng(0)
    paths = {mode: Path(f"{mode}.onnx") for mode in latencies}
    variants = advise_precision(
        paths,
        lambda path: measurement(path, latencies[path.stem], rng, blocks),
        lambda path: accuracies[path.stem],
        **kwargs,
    )
    return {variant.mode: variant for variant in variants}


def recommended(variants):
    (mode,) = [mode for mode, variant in variants.items() if variant.recommended]
    return mode


def test_the_fastest_variant_that_keeps_its_accuracy_is_recommended():
    variants = advise(
        {"fp32": 2e-3, "fp16": 1.5e-3, "bf16": 1.4e-3, "int8": 1e-3},
        {"fp32": 0.9, "fp16": 0.9, "bf16": 0.895, "int8": 0.85},
    )
    assert recommended(variants) == "bf16"
    assert "5.00%" in variants["int8"].why
    assert "bf16 is faster" in variants["fp16"].why


def test_int8_that_is_slower_is_never_recommended_however_accurate():
    variants = advise({"fp32": 2e-3, "int8": 2.3e-3}, {"fp32": 0.8, "int8": 0.9})
    assert recommended(variants) == "fp32"
    assert variants["int8"].why.startswith("slower")


def test_a_variant_that_only_seems_faster_is_not_recommended_more_often_than_stated():
    """The same latency under another name, 300 times: at most 5 % wrongly recommended, here one-sided."""
    rng = np.random.default_rng(3)
    equal = dict.fromkeys(("fp32", "fp16", "int8"), 1e-3)
    wrong = sum(recommended(advise(equal, dict.fromkeys(equal, 0.9), rng)) != "fp32" for _ in range(300))
    assert wrong <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)


def test_too_few_blocks_to_prove_anything_are_refused():
    with pytest.raises(UsageError, match="too few blocks"):
        advise({"fp32": 2e-3, "int8": 1e-3}, {"fp32": 0.9, "int8": 0.9}, blocks=3)


def test_rounds_interleave_the_variants_and_their_blocks_are_merged():
    asked = []

    def measure(path):
        asked.append(path.stem)
        return measurement(path, 1e-3, np.random.default_rng(len(asked)), blocks=2)

    modes = {mode: Path(f"{mode}.onnx") for mode in ("fp32", "fp16")}
    variants = advise_precision(modes, measure, lambda _: 0.5, rounds=3)
    assert asked == ["fp32", "fp16", "fp16", "fp32", "fp32", "fp16"]
    assert all(variant.latency_stats_s["median"] > 0 for variant in variants)


def test_no_baseline_no_fraction_or_no_round_is_refused():
    with pytest.raises(UsageError, match="fp32"):
        advise({"fp16": 1e-3}, {"fp16": 0.9})
    for accuracy in (np.nan, 92.0, -0.1):
        with pytest.raises(UsageError, match="accuracy of int8"):
            advise({"fp32": 1e-3, "int8": 1e-3}, {"fp32": 0.9, "int8": accuracy})
    with pytest.raises(UsageError, match="rounds"):
        advise({"fp32": 1e-3}, {"fp32": 0.9}, rounds=0)


def test_modes_an_engine_does_not_run_have_a_reason():
    modes = runnable_modes(Target("t", "cpu", "onnxruntime"))
    assert modes["int8"] is None
    assert "bfloat16" in (modes["bf16"] or "")
    assert all(runnable_modes(Target("t", "cpu", "torch")).values())
    with pytest.raises(UnknownNameError):
        runnable_modes(Target("t", "cpu", "ncnn"))


def test_auto_writes_each_variant_the_target_runs_and_lists_the_others(tmp_path):
    pytest.importorskip("onnxruntime")
    source = saved(convnet(), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    speeds = {"net": 2e-3, "net.fp16": 3e-3, "net.int8": 1e-3}
    variants = quantize_auto(
        source,
        Target("t", "cpu", "onnxruntime"),
        images(4),
        tmp_path / "out",
        lambda path: measurement(path, speeds[path.stem], rng),
        lambda _: 0.9,
        Int8Settings(),
    )
    assert [variant.mode for variant in variants] == ["fp32", "fp16", "bf16", "int8", "fp8"]
    assert recommended({variant.mode: variant for variant in variants}) == "int8"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["net.fp16.onnx", "net.int8.onnx"]
    bf16 = variants[2].as_dict()
    assert (bf16["path"], bf16["accuracy"], bf16["latency_stats_s"], bf16["recommended"]) == (None, None, None, False)
    assert "bfloat16" in bf16["why"]
