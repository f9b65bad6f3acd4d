import pytest

from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.benching import upper_bounds_s


@pytest.mark.parametrize(("samples", "p90", "p99"), [(28, None, None), (29, 29.0, None), (299, 278.0, 299.0)])
def test_bounds_of_alike_processes_are_order_statistics_and_absent_where_samples_are_too_few(samples, p90, p99):
    # Three processes of equal medians: those of 1, 2, 3 … taken in turn differ by a step or two.
    values = tuple(float(i) for i in range(1, samples + 1))
    bounds = upper_bounds_s(Measurement("m", values, tuple(i % 3 for i in range(samples))))
    assert (bounds["p90"] is None, bounds["p99"] is None) == (p90 is None, p99 is None)
    assert p90 is None or p90 <= bounds["p90"]
    assert p99 is None or p99 <= bounds["p99"]


def test_two_processes_bound_nothing():
    assert upper_bounds_s(Measurement("m", (1.0,) * 600, (0, 1) * 300)) == {"p90": None, "p99": None}
