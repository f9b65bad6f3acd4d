import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.certificate import MIN_BLOCKS, certify
from akd_deploy.export.promises import FEWEST_BLOCKS, contradiction

HELD = certify({i: np.full(100, 1e-3) for i in range(10)}, 2e-3).as_dict()


@given(
    data=st.data(),
    percentile=st.sampled_from([50, 90, 95, 99]),
    confidence=st.sampled_from([0.9, 0.99]),
    blocks=st.integers(10, 14),
    samples=st.integers(50, 80),
)
def test_no_certificate_contradicts_itself(data, percentile, confidence, blocks, samples):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([1e-6, 1e-4, 3e-4]))
    taken = {i: rng.normal(1e-3, scale, samples) + rng.normal(0, scale) for i in range(blocks)}
    certificate = certify(taken, 1e-3 + data.draw(st.floats(-1e-3, 1e-3)), percentile, confidence)
    told = json.loads(json.dumps(certificate.as_dict()))
    pooled = np.concatenate(list(taken.values()))
    measured = {f"p{p}": float(np.percentile(pooled, p)) for p in (50, 90, 95, 99)}
    assert contradiction(told, {"measured_s": measured, "budget_s": certificate.budget_s}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ok": False}, "ok False, with pooled_ok True and clustered_ok True"),
        ({"pooled_ok": False}, "pooled_ok False, with exceeding 0 and allowed 78"),
        ({"clustered_ok": False}, "clustered_ok False, with clustered_upper_s 0.001 and budget_s 0.002"),
        ({"clustered_upper_s": None}, "clustered_ok True, with clustered_upper_s None and budget_s 0.002"),
        ({"budget_s": 1e-4}, "clustered_ok True, with clustered_upper_s 0.001 and budget_s 0.0001"),
        ({"exceeding": 79, "worst_block_exceeding": 0.1}, "pooled_ok True, with exceeding 79 and allowed 78"),
        ({"exceeding": 1_001}, "exceeding 1001 of 1000 samples"),
        ({"allowed": 79}, "79 of 1000 samples allowed over p90 at 99.0000%"),
        ({"allowed": 77}, "77 of 1000 samples allowed over p90"),
        ({"percentile": 1e-300}, "allowed over p1e-300"),
        ({"percentile": 99.999999999999999}, "allowed over"),
        ({"samples": 10}, "78 of 10 samples allowed"),
        ({"samples": 9}, "blocks 10 of 9 samples"),
        ({"samples": None}, "no samples"),
        ({"ok": None, "budget_s": None}, "no budget_s, ok"),
        ({"blocks": None}, "blocks 'None' is no whole number"),
        ({"allowed": None}, "allowed 'None' is no whole number"),
        ({"samples": 10**8}, "samples '100000000' is no whole number from 0 to 1e.07"),
        ({"blocks": 10**5}, "blocks '100000' is no whole number from 0 to 10000"),
        ({"blocks": 1, "failing_share_upper": 0.99}, "blocks 1, of at least 10"),
        ({"failing_blocks": 11}, "failing_blocks 11 of 10 blocks"),
        ({"failing_blocks": 1}, "failing_share_upper 0.369.*, with 1 of 10 blocks at 99"),
        ({"failing_share_upper": 0.2}, "failing_share_upper 0.2, with 0 of 10 blocks"),
        ({"failing_blocks": 10, "failing_share_upper": 1.0}, "failing_blocks 10, with none of 1000 samples over"),
        ({"worst_block_exceeding": 1.5}, "worst_block_exceeding '1.5' is no number from 0 to 1"),
        ({"worst_block_exceeding": 0.05}, "worst_block_exceeding 0.05, with 0 of 1000 samples over"),
        ({"exceeding": 50}, "worst_block_exceeding 0.0, with 50 of 1000 samples over"),
        ({"exceeding": 50, "worst_block_exceeding": 0.04}, "worst_block_exceeding 0.04, with 50 of 1000"),
        ({"exceeding": 50, "worst_block_exceeding": 0.5}, "failing_blocks 0, with worst_block_exceeding 0.5"),
        ({"exceeding": -1}, "exceeding '-1'"),
        ({"exceeding": 0.5}, "exceeding '0.5' is no whole number"),
        ({"exceeding": True}, "exceeding 'True'"),
        ({"ok": "yes"}, "ok 'yes' is neither true nor false"),
        ({"pooled_ok": None}, "pooled_ok 'None' is neither"),
    ],
)
def test_what_a_certificate_says_against_itself_is_told(changes, message):
    assert contradiction(HELD, {}) is None
    assert re.search(message, str(contradiction({**HELD, **changes}, {})))


@pytest.mark.parametrize(
    ("without", "changes", "message"),
    [
        (("pooled_ok",), {"clustered_ok": False, "clustered_upper_s": 1.0}, "with clustered_upper_s 1.0 and budget_s"),
        (("clustered_ok",), {"clustered_upper_s": 1.0}, "it holds, with clustered_upper_s 1.0 and budget_s 0.002"),
        (("clustered_upper_s",), {"clustered_ok": False}, "ok True, with pooled_ok True and clustered_ok False"),
        (("pooled_ok", "allowed"), {"exceeding": 79, "worst_block_exceeding": 0.1}, "exceeding 79 and allowed 78"),
        (("budget_s",), {}, "no budget_s"),
        (("percentile", "confidence"), {}, "no percentile, confidence"),
    ],
)
def test_what_is_left_out_hides_nothing(without, changes, message):
    certificate = {name: value for name, value in {**HELD, **changes}.items() if name not in without}
    assert re.search(message, str(contradiction(certificate, {})))


def test_a_certificate_of_earlier_versions_is_judged_by_what_it_says():
    short = {"percentile": 90, "confidence": 0.99, "samples": 1_000, "exceeding": 78, "ok": True, "budget_s": 1e-3}
    assert contradiction(short, {}) is None
    assert contradiction({**short, "exceeding": 79}, {}) == "it holds, with exceeding 79 and allowed 78"
    del short["budget_s"]
    assert contradiction(short, {"budget_s": 1e-3}) is None
    assert contradiction({**short, "budget_s": None}, {"budget_s": 1e-3}) is None
    assert contradiction(short, {}) == "no budget_s"


def test_a_certificate_is_held_against_what_was_measured():
    assert contradiction(HELD, {"measured_s": {"median": 1e-3, "p90": 1e-3}}) is None
    assert contradiction(HELD, {"measured_s": {"median": 5.0, "p90": 9.0}}) == (
        "it holds, with p90 9.0 s measured and a budget of 0.002 s"
    )
    assert contradiction(HELD, {"measured_s": "much"}) is None


def test_a_certificate_is_read_by_the_rule_that_it_is_made_by():
    """Reading one needs no numpy, so that the number stands twice."""
    assert FEWEST_BLOCKS == MIN_BLOCKS
