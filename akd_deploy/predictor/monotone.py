"""Costs that never fall where kernels grow: an envelope that is monotone by construction, through given anchors.

Kernels that differ in nothing but sizes are partly ordered: one is smaller where none of its sizes is larger. Anchors
are places in that order with a cost each. Their costs are made to keep the order first (half-way between the running
maximum from below and the running minimum from above, so that nothing drifts to either side). The cost of any other
kernel then lies within

    max {c_a : a smaller} ≤ c(x) ≤ min {c_a : a larger},

and within these bounds is the geometric mean of

    max_a c_a (b(x ∧ a) / b(a))²   and   min_a c_a (b(x ∨ a) / b(a))²,

the least and the greatest cost that go through the anchors and rise between not at all and twice as fast as the base
costs b (as McShane 1934 extends functions of a bounded slope). ∧ and ∨ take the smaller and the larger of each term.
All of these are monotone in x, and what is made of them by maxima, minima and means is as well: no kernel, measured or
not, is predicted to cost more than a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BaseCosts:
    """Of kernels of one regime: `terms_s` (terms,) seconds per unit, non-negative, and the least there is."""

    terms_s: np.ndarray
    floor_s: float

    def log(self, terms: np.ndarray) -> np.ndarray:
        """(..., terms) → (...) logarithms of seconds; no term's growth lowers it."""
        result: np.ndarray = np.log(np.maximum(terms @ self.terms_s, self.floor_s))
        return result


@dataclass(frozen=True)
class Envelope:
    """`sizes` (anchors, sizes) orders them, `terms` (anchors, terms) are what their base costs are made of, and
    `log_base` and `log_cost` (anchors,) logarithms of seconds, the latter in keeping with the order."""

    base: BaseCosts
    sizes: np.ndarray
    terms: np.ndarray
    log_base: np.ndarray
    log_cost: np.ndarray

    @staticmethod
    def through(base: BaseCosts, sizes: np.ndarray, terms: np.ndarray, log_cost: np.ndarray) -> Envelope:
        """The envelope of anchors whose costs need not keep the order yet."""
        return Envelope(base, sizes, terms, base.log(terms), ordered(sizes, log_cost))

    def log_costs(self, sizes: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """(n, sizes), (n, terms) → (n,) logarithms of costs: monotone in sizes and terms together."""
        counts = self.base.terms_s > 0
        base = BaseCosts(self.base.terms_s[counts], self.base.floor_s)
        asked, anchors = terms[:, counts][:, None], self.terms[:, counts]
        meet, join = base.log(np.minimum(asked, anchors)), base.log(np.maximum(asked, anchors))
        offset = self.log_cost - 2 * self.log_base
        between = ((offset + 2 * meet).max(1) + (offset + 2 * join).min(1)) / 2
        below, above = not_larger(self.sizes, sizes), not_larger(sizes, self.sizes)
        least = np.where(below.T, self.log_cost, -np.inf).max(1)
        greatest = np.where(above, self.log_cost, np.inf).min(1)
        result: np.ndarray = np.clip(between, least, greatest)
        return result


def not_larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) whether no size of a row of `a` is larger than that of a row of `b`."""
    result = np.ones((len(a), len(b)), dtype=bool)
    for one, other in zip(a.T, b.T, strict=True):
        result &= one[:, None] <= other
    return result


def ordered(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values that keep the order of (n, sizes) and are the given ones where these keep it."""
    below = not_larger(sizes, sizes)
    from_below = np.where(below, values[:, None], -np.inf).max(0)
    from_above = np.where(below, values, np.inf).min(1)
    result: np.ndarray = (from_below + from_above) / 2
    return result
