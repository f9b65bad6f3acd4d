"""What a part is compared with: a uniformly narrower teacher that is as fast, by the clock and not by prediction."""

import numpy as np
import pytest

from akd_deploy.models.part import mask_from_text
from akd_deploy.pipeline.shrink import EQUALLY_SLOW, TRIES, _as_slow

UNITS = 100


def found(
    bias: float, latency_s: float, budget_s: float, begin_s: float = 50.0, units: int = UNITS
) -> tuple[dict, int]:
    """Parts of n units are predicted to take n seconds, and take `bias` times that."""
    asked = []

    def part_within(within_s: float) -> np.ndarray:
        return np.arange(UNITS) < min(UNITS, UNITS // units * int(within_s / (UNITS / units)))

    def certified(mask: np.ndarray, number: int) -> dict:
        asked.append(number)
        median = bias * float(mask.sum())
        return {"measured_s": {"median": median}, "certificate": {"ok": median <= budget_s}}

    one = _as_slow(part_within, certified, begin_s, latency_s)
    assert asked == list(range(len(asked)))
    return one, len(asked)


@pytest.mark.parametrize("bias", [0.6, 0.8, 1.0, 1.3])
def test_a_part_of_equal_latency_is_found_however_far_predictions_are_off(bias):
    one, tries = found(bias, latency_s=50.0, budget_s=60.0)
    assert abs(one["measured_s"]["median"] / 50 - 1) < EQUALLY_SLOW
    assert mask_from_text(one["mask"]).sum() == pytest.approx(50 / bias, rel=2 * EQUALLY_SLOW)
    assert tries <= 2


def test_of_coarse_parts_the_nearest_that_holds_is_taken():
    one, tries = found(1.0, latency_s=50.0, budget_s=50.0, begin_s=35.0, units=5)
    assert one["measured_s"]["median"] == 40.0
    assert tries <= TRIES


def test_where_no_certificate_holds_the_nearest_is_told_as_it_is():
    one, _ = found(1.0, latency_s=50.0, budget_s=10.0)
    assert one["certificate"]["ok"] is False
    assert one["measured_s"]["median"] == 50.0
