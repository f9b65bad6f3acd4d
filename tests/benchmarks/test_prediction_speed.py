"""The exit code of the speed benchmark is that of its slowest number."""

import pytest

from benchmarks.prediction_speed import REQUIRED_COLD_S, REQUIRED_PER_S, REQUIRED_SEEN_S, within_limits

MET = {"cold_s": REQUIRED_COLD_S, "seen_s": REQUIRED_SEEN_S, "tokens_per_s": float(REQUIRED_PER_S)}


def test_numbers_at_their_limits_are_within_them():
    assert within_limits(MET)
    assert within_limits({name: value for name, value in MET.items() if name != "tokens_per_s"})


@pytest.mark.parametrize("change", [{"cold_s": 0.051}, {"seen_s": 0.0051}, {"tokens_per_s": 49_999.0}])
def test_one_number_beyond_its_limit_is_enough(change):
    assert not within_limits({**MET, **change})
