import json

import numpy as np
import pytest

from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError
from akd_deploy.export.gate import _annotation, gate_benches, gate_compared, read_bench


def bench(folder, name, median_s=1e-3, blocks=8, seed=0, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "target": "cpu_onnxruntime_fp32",
        "device": {"model": "Test CPU", "cores": "2"},
        "protocol": {"threads": 1, "warm_up_s": 0.5},
        "blocks": {
            str(i): [float(median_s * np.exp(0.01 * rng.standard_normal()) * f) for f in (0.99, 1, 1.02)]
            for i in range(blocks)
        },
    } | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}), encoding="utf-8")
    return path


def judge(baseline, candidate, max_regression=0.03, **kwargs):
    return gate_benches(read_bench(baseline), read_bench(candidate), max_regression, **kwargs)


def test_a_slowdown_beyond_the_limit_is_a_regression_with_an_annotation(tmp_path):
    result = judge(bench(tmp_path, "a"), bench(tmp_path, "b", 1.2e-3, seed=1))
    assert result.regressed
    assert result.interval.low < 1.2 < result.interval.high
    (line,) = result.annotations()
    assert line.startswith("::error title=Latency regression::1.2")
    fields = result.as_dict()
    assert (fields["regressed"], fields["conclusive"]) == (True, True)
    assert fields["ratio"] == pytest.approx(1.2, rel=0.03)
    assert json.loads(json.dumps(fields)) == fields


def test_the_same_speed_passes_without_annotation(tmp_path):
    result = judge(bench(tmp_path, "a"), bench(tmp_path, "b", seed=1), 0.1)
    assert not result.regressed
    assert result.annotations() == []


def test_an_interval_across_the_limit_is_inconclusive_and_warns(tmp_path):
    result = judge(bench(tmp_path, "a"), bench(tmp_path, "b", 1.03e-3, seed=1), 0.03)
    assert not result.regressed
    assert not result.latency.conclusive
    assert result.annotations()[0].startswith("::warning title=Latency inconclusive")


def test_percent_signs_and_line_ends_in_annotations_are_encoded(tmp_path):
    fast, accurate = bench(tmp_path, "a", accuracy=0.9), bench(tmp_path, "b", accuracy=0.85, seed=1)
    result = judge(fast, accurate, 0.1, max_accuracy_loss=0.01)
    assert result.accuracy_regressed
    assert result.regressed
    assert result.annotations() == [
        "::error title=Accuracy regression::accuracy lower by 5.00 percentage points, 1.00 allowed"
    ]
    assert _annotation("error", "t", "5 %\r\n::error::x") == "::error title=t::5 %25%0D%0A::error::x"


def test_headers_that_differ_are_refused_and_named(tmp_path):
    a = bench(tmp_path, "a")
    b = bench(tmp_path, "b", protocol={"threads": 2, "affinity": "0"}, target="other")
    with pytest.raises(MismatchError) as caught:
        judge(a, b)
    assert caught.value.details["differences"] == [
        'protocol.affinity: (none) ≠ "0"',
        "protocol.threads: 1 ≠ 2",
        "protocol.warm_up_s: 0.5 ≠ (none)",
        'target: "cpu_onnxruntime_fp32" ≠ "other"',
    ]


def test_samples_serve_where_there_are_no_blocks(tmp_path):
    blocks = {"0": [1e-3, 1.1e-3], "1": [1.05e-3]}
    assert len(read_bench(bench(tmp_path, "a", samples=blocks)).blocks_s) == 8
    path = tmp_path / "s.json"
    header = {"target": "t", "device": "d", "protocol": {}}
    path.write_text(json.dumps(header | {"samples": blocks}), encoding="utf-8")
    assert list(read_bench(path).block_medians_s) == pytest.approx([1.05e-3, 1.05e-3])
    path.write_text(json.dumps(header | {"samples": [1e-3, 3e-3, 2e-3]}), encoding="utf-8")
    assert list(read_bench(path).block_medians_s) == [2e-3]


def test_too_few_blocks_to_judge_are_refused(tmp_path):
    with pytest.raises(UsageError, match="too few blocks"):
        judge(bench(tmp_path, "a", blocks=3), bench(tmp_path, "b", blocks=3))


def answered(wrong, samples=1_000):
    """A bench's account of its accuracy where these samples were answered wrongly."""
    correct = [0 if i in wrong else 1 for i in range(samples)]
    return {"accuracy": sum(correct) / samples, "correct": correct, "samples_sha256": "5" * 64}


@pytest.mark.parametrize(
    ("wrong", "regressed", "conclusive", "annotated"),
    [
        (
            range(100, 150),
            True,
            True,
            "::error title=Accuracy regression::accuracy lower by 5.00 percentage points (3.8",
        ),
        (
            range(100, 112),
            False,
            False,
            "::warning title=Accuracy inconclusive::accuracy lower by 1.20 percentage points (0.",
        ),
        (range(0), False, True, None),
    ],
)
def test_accuracy_on_the_same_samples_is_judged_with_confidence(tmp_path, wrong, regressed, conclusive, annotated):
    a = bench(tmp_path, "a", **answered(range(50)))
    b = bench(tmp_path, "b", seed=1, **answered({*range(50), *wrong}))
    result = judge(a, b, 0.1, max_accuracy_loss=0.01)
    assert (result.accuracy_regressed, result.accuracy.conclusive) == (regressed, conclusive)
    assert (result.regressed, result.conclusive) == (regressed, conclusive)
    fields = result.as_dict()
    low, high = fields["accuracy_interval"]
    assert fields["accuracy_loss"] == pytest.approx(len(wrong) / 1_000)
    assert low <= fields["accuracy_loss"] <= high
    assert json.loads(json.dumps(fields)) == fields
    assert [line[: len(annotated or "")] for line in result.annotations()] == ([annotated] if annotated else [])
    points = f"| accuracy lost, percentage points | {100 * fields['accuracy_loss']:.2f} | {100 * low:.2f} to"
    assert points in result.markdown()
    assert ("inconclusive" in result.markdown()) == (not conclusive)


def test_pairing_sees_a_loss_that_two_shares_hide(tmp_path):
    """Both are right on about half of the samples; those that only the baseline got right are 30 of 1,000."""
    a = bench(tmp_path, "a", **answered(range(500)))
    b = bench(tmp_path, "b", seed=1, **answered(range(530)))
    assert judge(a, b, 0.1, max_accuracy_loss=0.015).accuracy_regressed
    shuffled = bench(tmp_path, "c", seed=1, **answered(range(470, 1_000)))
    assert not judge(a, shuffled, 0.1, max_accuracy_loss=0.015).accuracy_regressed


def test_accuracies_on_other_samples_are_refused(tmp_path):
    a = bench(tmp_path, "a", **answered(range(50)))
    b = bench(tmp_path, "b", **{**answered(range(50)), "samples_sha256": "6" * 64})
    with pytest.raises(MismatchError, match="same samples"):
        judge(a, b, 0.1, max_accuracy_loss=0.01)
    assert not judge(a, b, 0.1).regressed  # latency alone does not mind


def test_another_version_of_the_engine_is_refused_unless_it_is_what_is_judged(tmp_path):
    a, b = bench(tmp_path, "a", engine_version="1.30.0"), bench(tmp_path, "b", seed=1, engine_version="1.31.1")
    with pytest.raises(MismatchError) as caught:
        judge(a, b)
    assert caught.value.details["differences"] == ['engine_version: "1.30.0" ≠ "1.31.1"']
    assert "--across-versions" in caught.value.next
    assert not judge(a, b, 0.1, across_versions=True).regressed
    with pytest.raises(MismatchError, match="engine_version: null"):
        judge(bench(tmp_path, "old"), b)


def test_benches_of_more_and_of_fewer_blocks_compare(tmp_path):
    protocol = {"threads": 1, "seconds": 0.1}
    a = bench(tmp_path, "a", blocks=8, protocol={**protocol, "blocks": 8})
    b = bench(tmp_path, "b", blocks=20, seed=1, protocol={**protocol, "blocks": 20})
    assert not judge(a, b, 0.1).regressed


def test_a_summary_has_a_row_for_what_was_judged(tmp_path):
    slow = judge(bench(tmp_path, "a"), bench(tmp_path, "b", 1.2e-3, seed=1)).markdown()
    assert slow.splitlines()[0] == "### akd-deploy gate"
    assert "1.030× | **regressed** |" in slow
    assert "accuracy" not in slow
    assert "within the limit" in judge(bench(tmp_path, "a"), bench(tmp_path, "b", seed=1), 0.1).markdown()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "a list"),
        ('{"target": 1, "device": 1}', "protocol"),
        ('{"target": 1, "device": 1, "protocol": 1}', "blocks"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {}}', "blocks"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": []}}', "block '0'"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [0.1, NaN]}}', "sample 1 of block '0'"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [true]}}', "sample 0"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [-1]}}', "sample 0"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": ["1"]}}', "sample 0"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "accuracy": 92}', "accuracy"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "correct": [1, 2]}', "0 and 1"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "correct": []}', "0 and 1"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "correct": [1, 0]}', "accuracy None"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "accuracy": 1, "correct": [0]}', "0 of 1"),
        ('{"target": 1, "device": 1, "protocol": 1, "blocks": {"0": [1]}, "engine_version": 3}', "engine_version"),
    ],
)
def test_files_that_are_no_bench_are_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=message):
        read_bench(path)


def test_limits_and_accuracies_that_make_no_sense_are_refused(tmp_path):
    a = bench(tmp_path, "a")
    for limit in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="slow-down"):
            judge(a, a, limit)
    with pytest.raises(UsageError, match="no accuracy"):
        judge(a, a, 0.03, max_accuracy_loss=0.01)
    with pytest.raises(MissingFileError):
        read_bench(tmp_path / "nothing.json")


def test_paired_blocks_see_a_small_slowdown_through_a_common_drift(tmp_path):
    drift = [1.0, 1.4, 0.8, 1.2, 0.9, 1.3, 1.1, 0.7]
    a = bench(tmp_path, "a")
    fields = json.loads(a.read_text(encoding="utf-8"))
    fields["blocks"] = {str(i): [1e-3 * d] for i, d in enumerate(drift)}
    a.write_text(json.dumps(fields), encoding="utf-8")
    b = tmp_path / "b.json"
    fields["blocks"] = {str(i): [1.05e-3 * d * (1 + 0.001 * i)] for i, d in enumerate(drift)}
    b.write_text(json.dumps(fields), encoding="utf-8")
    assert judge(a, b, 0.03, paired=True).regressed
    assert not judge(a, b, 0.03).regressed


def test_a_records_own_comparison_is_judged_block_by_block_whatever_their_order(tmp_path):
    drift = {str(i): [1e-3 * d] for i, d in enumerate([1.0, 1.4, 0.8, 1.2, 0.9, 1.3, 1.1, 0.7])}
    slower = {name: [1.05 * s for s in samples] for name, samples in drift.items()}
    pair = bench(tmp_path, "pair", blocks=8, compared={"ratio": 1.05, "blocks": dict(reversed(drift.items()))})
    fields = json.loads(pair.read_text(encoding="utf-8"))
    pair.write_text(json.dumps({**fields, "blocks": slower}), encoding="utf-8")
    result = gate_compared(read_bench(pair), 0.03)
    assert (result.regressed, result.interval.paired) == (True, True)
    assert (result.interval.low, result.interval.high) == pytest.approx((1.05, 1.05))
    fields["compared"]["blocks"].popitem()
    pair.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="beside compared blocks"):
        read_bench(pair)
    for alone in ({}, {"compared": None}, {"compared": {"ratio": 1.0}}):
        with pytest.raises(UsageError, match="--compare-with"):
            gate_compared(read_bench(bench(tmp_path, "alone", **alone)), 0.03)
