from pathlib import Path

import numpy as np
import pytest
from export_graphs import convnet, images, saved

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.export.advise import advise_precision, quantize_auto, runnable_modes
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.parity import compare_outputs
from akd_deploy.export.sensitivity import Score
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target


def measurer(latencies_s, rng, blocks=10, scatter=0.01, machine=0.0):
    """Blocks of every file in turn; a block's machine is slower or faster for all of its files alike."""

    def measure(paths):
        common = np.exp(machine * rng.standard_normal(blocks))
        found = {}
        for mode, path in paths.items():
            centers = latencies_s[path.stem] * common * np.exp(scatter * rng.standard_normal(blocks))
            samples = [float(c * (1 + 0.001 * i)) for c in centers for i in range(5)]
            found[mode] = Measurement(mode, tuple(samples), tuple(i for i in range(blocks) for _ in range(5)))
        return found

    return measure


LOGITS = np.array([[1.0, 0.0], [0.0, 1.0]])
ALIKE = compare_outputs([{"y": LOGITS}], lambda _: {"y": LOGITS}, [{}])
TURNED = compare_outputs([{"y": LOGITS}], lambda _: {"y": LOGITS[:, ::-1]}, [{}])
"""Every decision another one."""


def advise(latencies, accuracies, rng=None, blocks=10, machine=0.0, **kwargs):
    rng = rng or np.random.default_rng(0)
    paths = {mode: Path(f"{mode}.onnx") for mode in latencies}
    variants = advise_precision(
        paths,
        measurer(latencies, rng, blocks, machine=machine),
        lambda path: accuracies[path.stem],
        kwargs.pop("compare", lambda path: ALIKE),
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


def test_a_variant_that_answers_differently_is_not_recommended_whatever_its_accuracy_and_speed():
    latencies, accuracies = {"fp32": 2e-3, "int8": 1e-3}, {"fp32": 0.5, "int8": 0.5}
    variants = advise(latencies, accuracies, compare=lambda path: TURNED if path.stem == "int8" else ALIKE)
    assert recommended(variants) == "fp32"
    assert "cosine" in variants["int8"].why
    assert variants["int8"].as_dict()["parity"]["top1_agreement"] == 0
    assert recommended(advise(latencies, accuracies)) == "int8"


def test_only_what_is_proven_slower_has_its_kernels_explained():
    asked = []

    def kernels(path):
        asked.append(path.stem)
        conv = ExecutedKernel(Kernel("Conv", ((1, 8, 4, 4),), ((1, 8, 4, 4),)), "conv", ("conv",))
        q = ExecutedKernel(Kernel("QuantizeLinear", ((1, 8, 4, 4),), ((1, 8, 4, 4),)), "q", ("q",))
        return [conv] if path.stem == "fp32" else [q, conv]

    latencies = {"fp32": 2e-3, "fp16": 1e-3, "int8": 4e-3}
    variants = advise(latencies, dict.fromkeys(latencies, 0.9), kernels=kernels)
    assert asked == ["fp32", "int8"]
    assert "1 QuantizeLinear" in variants["int8"].why_slower
    assert variants["fp16"].why_slower is None
    assert variants["int8"].as_dict()["why_slower"] == variants["int8"].why_slower


def test_too_few_blocks_to_prove_anything_are_refused():
    with pytest.raises(UsageError, match="too few blocks"):
        advise({"fp32": 2e-3, "int8": 1e-3}, {"fp32": 0.9, "int8": 0.9}, blocks=3)


def test_what_slows_a_whole_block_down_hides_no_difference_between_its_variants():
    """Blocks differ by 20 %, variants by 4 %: only ratios within a block can tell."""
    variants = advise({"fp32": 1e-3, "int8": 0.96e-3}, {"fp32": 0.9, "int8": 0.9}, machine=0.2)
    assert recommended(variants) == "int8"
    assert variants["int8"].interval.paired
    assert variants["int8"].interval.ratio == pytest.approx(0.96, abs=0.01)


def test_only_blocks_that_both_have_are_compared():
    def measure(paths):
        fp32 = Measurement("fp32", tuple(1e-3 * (i + 1) for i in range(9)), tuple(range(9)))
        int8 = Measurement("int8", tuple(0.5e-3 * (i + 1) for i in range(1, 12)), tuple(range(1, 12)))
        return {"fp32": fp32, "int8": int8}

    paths = {mode: Path(f"{mode}.onnx") for mode in ("fp32", "int8")}
    _, int8 = advise_precision(paths, measure, lambda _: 0.5, lambda _: ALIKE)
    assert (int8.interval.low, int8.interval.high) == pytest.approx((0.5, 0.5))


def test_no_baseline_or_no_fraction_is_refused():
    with pytest.raises(UsageError, match="fp32"):
        advise({"fp16": 1e-3}, {"fp16": 0.9})
    for accuracy in (np.nan, 92.0, -0.1):
        with pytest.raises(UsageError, match="accuracy of int8"):
            advise({"fp32": 1e-3, "int8": 1e-3}, {"fp32": 0.9, "int8": accuracy})


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
        measurer(speeds, rng),
        lambda _: 0.9,
        lambda _: ALIKE,
        Int8Settings(),
        judge=lambda path: Score(0.01, within=True),
        calibrations=("minmax",),
    )
    assert [variant.mode for variant in variants] == ["fp32", "fp16", "bf16", "int8", "fp8"]
    assert recommended({variant.mode: variant for variant in variants}) == "int8"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["net.fp16.onnx", "net.int8.onnx"]
    bf16 = variants[2].as_dict()
    assert (bf16["path"], bf16["accuracy"], bf16["latency_stats_s"], bf16["recommended"]) == (None, None, None, False)
    assert "bfloat16" in bf16["why"]
