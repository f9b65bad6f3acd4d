import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import UsageError
from akd_deploy.measurement import Measurement

SECONDS = st.floats(1e-9, 10)
MEASUREMENTS = st.lists(st.tuples(SECONDS, st.integers(-3, 5)), min_size=1, max_size=30).map(
    lambda pairs: Measurement("conv", tuple(s for s, _ in pairs), tuple(i for _, i in pairs))
)


@pytest.mark.parametrize(
    ("samples", "ids"),
    [
        ((), ()),
        ((1.0,), ()),
        ((1.0, 2.0), (0,)),
        ((1.0,), (0, 0)),
        ((0.0,), (0,)),
        ((-1.0,), (0,)),
        ((float("nan"),), (0,)),
        ((float("inf"),), (0,)),
        ((1.0, None), (0, 0)),
        (("1.0",), (0,)),
        ((True,), (0,)),
        (((1.0, 2.0),), (0,)),
        ((1.0,), (0.5,)),
        ((1.0,), (None,)),
        ((1.0,), ("0",)),
    ],
)
def test_what_is_no_measurement_is_refused_by_name(samples, ids):
    with pytest.raises(ValueError, match="conv"):
        Measurement("conv", samples, ids)


def test_samples_are_kept_as_plain_numbers_in_the_order_taken():
    measurement = Measurement("conv", np.array([3.0, 1.0, 2.0]), [1, 0, 1])
    assert measurement.samples_s == (3.0, 1.0, 2.0)
    assert {type(s) for s in measurement.samples_s} == {float}
    assert {type(i) for i in measurement.block_ids} == {int}
    assert hash(measurement) == hash(Measurement("conv", (3.0, 1.0, 2.0), (1, 0, 1)))
    assert {i: samples.tolist() for i, samples in measurement.blocks.items()} == {1: [3.0, 2.0], 0: [1.0]}


def test_statistics_of_a_hand_computed_case():
    # Block medians 2, 4 and 9: their median 4, mean 5, standard deviation √13.
    measurement = Measurement("conv", (1.0, 2.0, 3.0, 4.0, 4.0, 9.0), (0, 0, 0, 1, 1, 2))
    assert measurement.block_medians_s.tolist() == [2, 4, 9]
    assert measurement.median_s == 4
    assert measurement.sigma == pytest.approx(np.sqrt(13) / 5)
    assert measurement.percentile_s(50) == 3.5
    assert measurement.percentile_s(90) == 6.5
    assert measurement.statistics_s() == {"median": 4, "p90": 6.5, "p99": pytest.approx(8.75)}


def test_one_block_has_no_scatter_between_processes():
    assert Measurement("conv", (1.0, 2.0), (7, 7)).sigma is None
    assert Measurement("conv", (1.0, 1.0), (7, 7)).label_sigma is None


def test_a_label_is_the_median_of_what_ran_at_full_speed():
    # Samples of seconds are segments of their own. The 5 % quantile of 1.00, 1.04, 1.06, 2.0 is 1.006: 2.0 is slow.
    measurement = Measurement("conv", (1.04, 1.00, 2.0, 1.06), (0, 0, 1, 2))
    assert measurement.label_s == 1.04
    # Blocks at full speed have medians 1.02 and 1.06; block 1 was slow throughout.
    assert measurement.label_sigma == pytest.approx(np.std([1.02, 1.06], ddof=1) / 1.04 / np.sqrt(2))


def test_a_label_of_one_block_at_full_speed_has_no_known_noise():
    assert Measurement("conv", (1.0, 2.0, 2.0), (0, 1, 2)).label_sigma is None


def test_samples_that_take_little_are_one_segment_as_long_as_a_disturbance():
    # 1 ms each: five to a segment. One slow sample in each leaves the segments' medians alone.
    samples = ([0.001] * 4 + [0.002]) * 6
    calm = Measurement("conv", tuple(samples), (0,) * 15 + (1,) * 15)
    assert calm.label_s == 0.001
    # Half of each block slowed to half the speed: told apart, whatever the median says of the mixture.
    half = Measurement("conv", tuple(([0.001] * 25 + [0.002] * 30) * 2), (0,) * 55 + (1,) * 55)
    assert half.label_s == 0.001
    assert half.label_sigma == 0
    assert half.median_s == 0.002


@given(st.lists(st.floats(0.97, 1.03), min_size=2, max_size=60), st.integers(1, 5))
def test_where_nothing_disturbs_the_label_is_as_good_as_the_median(factors, blocks):
    measurement = Measurement("conv", tuple(factors), tuple(i % blocks for i in range(len(factors))))
    assert measurement.label_s == pytest.approx(float(np.median(factors)))


def test_a_block_at_half_speed_moves_the_tail_and_not_the_label():
    rng = np.random.default_rng(0)
    samples = 1e-4 * np.exp(rng.normal(0, 0.1, 900)) * np.repeat([1.0, 1.9, 1.0], 300)
    ids = tuple(np.repeat([0, 1, 2], 300))
    one = Measurement("conv", tuple(samples), ids)
    assert one.label_s < 1.1e-4
    assert one.label_sigma is not None
    assert one.median_s < 1.1e-4
    assert one.percentile_s(90) > 1.7e-4


def test_one_loaded_process_does_not_move_the_median():
    calm = Measurement("conv", (1.0,) * 30, (0,) * 10 + (1,) * 10 + (2,) * 10)
    loaded = Measurement("conv", (1.0,) * 20 + (50.0,) * 100, (0,) * 10 + (1,) * 10 + (2,) * 100)
    assert loaded.median_s == calm.median_s


def test_an_upper_bound_from_too_few_samples_or_processes_is_refused():
    ids = (0, 1, 2) * 10
    assert Measurement("conv", (1.0,) * 29, ids[:29]).upper_bound_s(90) == 1
    with pytest.raises(UsageError, match="at least 29"):
        Measurement("conv", (1.0,) * 28, ids[:28]).upper_bound_s(90)
    with pytest.raises(UsageError, match="at least 3 processes"):
        Measurement("conv", (1.0,) * 29, (0,) * 29).upper_bound_s(90)


@given(MEASUREMENTS, MEASUREMENTS)
def test_merging_keeps_every_sample_and_every_block_apart(a, b):
    merged = a.merged(b)
    assert merged.samples_s == a.samples_s + b.samples_s
    mine, theirs = list(a.blocks.values()), list(b.blocks.values())
    assert [block.tolist() for block in merged.blocks.values()] == [block.tolist() for block in mine + theirs]
    assert merged.block_ids[: len(a.block_ids)] == a.block_ids
    assert min(merged.block_ids[len(a.block_ids) :]) == max(a.block_ids) + 1


def test_merging_another_subject_is_refused():
    with pytest.raises(ValueError, match=r"'pool' into 'conv'"):
        Measurement("conv", (1.0,), (0,)).merged(Measurement("pool", (1.0,), (0,)))
