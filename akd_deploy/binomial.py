"""Counts of what happens or not, independently: their distribution, and what a count says of the share behind it."""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log1p


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(X ≤ successes) for X ~ Binomial(trials, probability), 0 < probability < 1; exact up to rounding."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    if successes > trials * probability:  # the other tail is the shorter one
        return 1 - _tail(trials - successes - 1, trials, 1 - probability, log1p(-probability), log(probability))
    return _tail(successes, trials, probability, log(probability), log1p(-probability))


def _tail(successes: int, trials: int, probability: float, log_hit: float, log_miss: float) -> float:
    """P(X ≤ successes) below the mean, where each term is smaller than the one before it."""
    if not 0 < probability < 1:  # the complement of what rounds to none or all
        return 0.0 if probability else 1.0
    log_choose = lgamma(trials + 1) - lgamma(successes + 1) - lgamma(trials - successes + 1)
    total = term = 1.0
    for k in range(successes, 0, -1):
        term *= k / (trials - k + 1) * (1 - probability) / probability
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, exp(log_choose + successes * log_hit + (trials - successes) * log_miss) * total)


def share_upper_bound(hits: int, trials: int, confidence: float) -> float:
    """Exact upper bound of a share of which `hits` of `trials` independent draws are (Clopper & Pearson 1934): the
    largest one with which so few would not be rarer than 1 − confidence."""
    if hits >= trials:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(hits, trials, middle) > 1 - confidence else (low, middle)
    return (low + high) / 2


@lru_cache(maxsize=256)
def most_hits(trials: int, share: float, rarity: float) -> int:
    """The most hits of `trials` independent draws that are as rare as `rarity` where `share` of all hit; −1 where even
    none is not."""
    most, too_many = -1, trials
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if binomial_cdf(middle, trials, share) <= rarity else (most, middle)
    return most
