import pytest

from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.benching import _upper_bounds_s


@pytest.mark.parametrize(("samples", "p90", "p99"), [(28, None, None), (29, 29.0, None), (299, 278.0, 299.0)])
def test_bounds_are_order_statistics_and_absent_where_samples_are_too_few(samples, p90, p99):
    measurement = Measurement("m", tuple(float(i) for i in range(1, samples + 1)), (0,) * samples)
    bounds = _upper_bounds_s(measurement)
    assert bounds["p99"] == p99
    assert bounds["p90"] == pytest.approx(p90, abs=1) if p90 is not None else bounds["p90"] is None
