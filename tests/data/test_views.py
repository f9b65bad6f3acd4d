"""Views: deterministic, order-free, and what they say they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.data import Split, ViewBank, ViewSettings
from akd_deploy.errors import UsageError


def split(n: int = 5, channels: int = 1, side: int = 6, seed: int = 0) -> Split:
    images = np.random.default_rng(seed).random((n, channels, side, side), dtype=np.float32)
    return Split(images, np.arange(n) % 2, np.arange(n))


def test_a_view_is_the_same_in_any_batch_and_order() -> None:
    bank = ViewBank(split(), ViewSettings(views=4, noise=0.3, shift=2, flip=True), seed=7)
    everything = bank.all()
    assert everything.shape == (4, 5, 1, 6, 6)
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(bank.batch(order // 5, order % 5), everything.reshape(20, 1, 6, 6)[order])
    assert np.array_equal(bank.batch(np.array([3]), np.array([2]))[0], everything[3, 2])


def test_one_seed_gives_one_bank_and_another_seed_another() -> None:
    settings = ViewSettings(views=2, noise=0.3, shift=1)
    one, again, other = (ViewBank(split(), settings, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.all(), again.all())
    assert one.digest == again.digest
    assert not np.array_equal(one.all(), other.all())
    assert one.digest != other.digest


def test_the_digest_changes_with_images_labels_and_settings() -> None:
    settings = ViewSettings(views=2, noise=0.3)
    base = split()
    relabelled = Split(base.images, 1 - base.labels, base.originals)
    banks = [
        ViewBank(base, settings, 0),
        ViewBank(split(seed=1), settings, 0),
        ViewBank(relabelled, settings, 0),
        ViewBank(base, ViewSettings(views=2, noise=0.31), 0),
        ViewBank(base, ViewSettings(views=3, noise=0.3), 0),
    ]
    assert len({bank.digest for bank in banks}) == len(banks)


def test_noise_has_the_standard_deviation_asked_for_and_differs_between_views_and_images() -> None:
    bank = ViewBank(split(n=50, side=12), ViewSettings(views=4, noise=0.25), seed=0)
    noise = bank.all() - bank.split.images
    assert np.std(noise) == pytest.approx(0.25, rel=0.02)
    assert np.mean(noise) == pytest.approx(0, abs=0.01)
    flat = noise.reshape(200, -1)
    correlations = np.corrcoef(flat) - np.eye(200)
    assert np.abs(correlations).max() < 0.5


@given(seed=st.integers(0, 1_000), shift=st.integers(1, 3))
def test_a_shifted_view_is_the_image_moved_with_zeros_behind(seed: int, shift: int) -> None:
    bank = ViewBank(split(n=2), ViewSettings(views=3, shift=shift), seed)
    padded = np.pad(bank.split.images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    moves = range(2 * shift + 1)
    for view in bank.all():
        for i, image in enumerate(view):
            assert any(np.array_equal(image, padded[i, :, y : y + 6, x : x + 6]) for y in moves for x in moves)


def test_every_shift_and_both_mirrorings_occur() -> None:
    image = np.zeros((1, 1, 5, 5), np.float32)
    image[0, 0, 2, 2] = 1
    views = ViewBank(Split(image, np.zeros(1), np.zeros(1)), ViewSettings(views=200, shift=1), 0).all()
    assert len({tuple(np.argwhere(v[0, 0])[0]) for v in views}) == 9
    side = np.zeros((1, 1, 1, 2), np.float32)
    side[..., 0] = 1
    mirrored = ViewBank(Split(side, np.zeros(1), np.zeros(1)), ViewSettings(views=400, flip=True), 0).all()
    assert 0.4 < mirrored[..., 1].mean() < 0.6


def test_all_channels_of_an_image_move_together() -> None:
    images = np.repeat(np.random.default_rng(0).random((3, 1, 6, 6), dtype=np.float32), 3, axis=1)
    bank = ViewBank(Split(images, np.zeros(3), np.arange(3)), ViewSettings(views=5, shift=2, flip=True), 0)
    views = bank.all()
    assert np.array_equal(views[:, :, 0], views[:, :, 2])


def test_without_settings_a_view_is_the_image() -> None:
    bank = ViewBank(split(), ViewSettings(views=1), 0)
    assert np.array_equal(bank.all()[0], bank.split.images)


def test_views_beyond_the_bank_are_fresh() -> None:
    bank = ViewBank(split(n=1), ViewSettings(views=2, noise=0.3), 0)
    fresh = bank.batch(np.array([10**9]), np.array([0]))[0]
    assert not any(np.array_equal(fresh, view[0]) for view in bank.all())


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"views": 0}, {"noise": -0.1}, {"shift": -1}):
        with pytest.raises(UsageError):
            ViewSettings(**wrong)  # type: ignore[arg-type]
