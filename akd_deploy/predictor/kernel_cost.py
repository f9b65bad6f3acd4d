"""The cost of one kernel: a non-negative combination of its terms, times the exponential of a Gaussian process.

Only sums are observed: a probe's latency is an overhead per call plus the costs of its kernels. With c_k the
cost of kernel k, b_k > 0 its base (`kernel_cost_fit`) and g_k its logarithmic correction,

    y_i = o + Σ_k n_ik b_k exp(g_k) + ε_i,        g ~ GP(0, K).

K is zero between regimes; within one it is a Matérn-3/2 covariance of the kernels' coordinates, each group of them
with a length of its own, plus a term of each kernel's own. At the mode g* the sum is linearised, relative to y:
J_ik = n_ik b_k exp(g*_k) / y_i. There the posterior is Gaussian (Rasmussen & Williams 2006, equations 2.23–2.24, and
section 3.4 for Laplace's approximation).

What a kernel is said to cost is the posterior made monotone in sizes (`monotone`): anchors are the observed kernels of
the regime, at the asked kernel's setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from akd_deploy.kernel import Kernel, kernel_from_signature
from akd_deploy.predictor.features import (
    COORDINATE_GROUPS,
    COORDINATES,
    GROUP_NAMES,
    RUN,
    SIZES,
    TERMS,
    coordinates,
    cost_terms,
    order_sizes,
    regime,
    setting,
    window_and_width,
    with_window_and_type,
)
from akd_deploy.predictor.monotone import BaseCosts, Envelope

UNOBSERVED_WIDENING = 2.0
"""Spread of a kernel that no probe held is multiplied by this. The process underrates how unlike its neighbours it may
be: with this, networks of which stretches were measured and those of other families need the same multiple of their
spread (on an H200 0.61 and 0.67 at 90 %; 0.65 and 1.30 without)."""
DOUBLINGS_OUTSIDE = 4.0
"""Doublings outside the measured range that widen a spread by itself once more."""
TOLERATED = 0.5
"""Doublings outside the measured range that still count as within."""
ENOUGH_OWN = 4
"""Observed kernels of a setting that its costs are interpolated between without those of other settings (families left
out on an H200: MAPE 7.2 %, 7.5 % from 10 on; with those of others always: 7.3 %)."""


@dataclass(frozen=True)
class KernelCost:
    """Posterior of one kernel's cost in seconds. `beyond`: by how many doublings its farthest coordinate lies outside
    the range of its regime's measurements, half a doubling tolerated."""

    mean_s: float
    spread_s: float
    beyond: float

    @property
    def in_domain(self) -> bool:
        return self.beyond == 0

    @property
    def told_spread_s(self) -> float:
        """The spread that intervals count with: the process underrates how far from its range it errs.

        Predicted from the stretches below a size, those above were off by the same multiple of `spread_s` up to some
        four doublings outside and by twice of it from there on (ONNX Runtime and OpenVINO on a CPU).
        """
        return self.spread_s * (1 + self.beyond / DOUBLINGS_OUTSIDE)


@dataclass(frozen=True)
class OutOfRange:
    """One dimension of a kernel and the range of it that was measured in its regime."""

    dimension: str
    value: float
    measured: tuple[float, float]

    def __str__(self) -> str:
        own, low, high = (f"{x:,.0f}" if x == round(x) else f"{x:.3g}" for x in (self.value, *self.measured))
        return f"{self.dimension} {own} (measured: {low if low == high else f'{low} to {high}'})"


@dataclass(frozen=True)
class Hyperparameters:
    """Of the process and of the noise.

    `amplitude` and `own` are standard deviations of logarithmic corrections, `lengths` are in coordinates' units (for
    sizes doublings), one for each of `GROUP_NAMES`;
    `misfit` is a share of a probe's latency, `jitter_s` seconds of it: what no sum of kernels explains.
    """

    amplitude: float
    lengths: tuple[float, ...]
    own: float
    misfit: float
    jitter_s: float


@dataclass(frozen=True)
class Features:
    """Features of n kernels: `regime` (n,) positions among the regimes, `terms` (n, terms), `coordinates` (n, d)."""

    regime: np.ndarray
    terms: np.ndarray
    coordinates: np.ndarray

    @staticmethod
    def of(kernels: Sequence[Kernel], regimes: Sequence[str]) -> Features:
        """Read off; every kernel's regime must be among them."""
        index = {name: i for i, name in enumerate(regimes)}
        return Features(
            np.array([index[regime(kernel)] for kernel in kernels]),
            np.array([cost_terms(kernel) for kernel in kernels], dtype=float),
            np.array([coordinates(kernel) for kernel in kernels], dtype=float),
        )


def distances(a: np.ndarray, b: np.ndarray, lengths: Sequence[float]) -> np.ndarray:
    """(len(a), len(b)) Euclidean distances between rows of coordinates, each in units of its group's length."""
    scale = np.array(lengths)[list(COORDINATE_GROUPS)]
    result: np.ndarray = cdist(a / scale, b / scale)
    return result


def squared_distances(a: np.ndarray) -> np.ndarray:
    """(groups, len(a), len(a)) squares of the distances between rows of coordinates, by coordinate group."""
    squares = (a[:, None, :] - a[None, :, :]) ** 2
    groups = np.array(COORDINATE_GROUPS)
    return np.array([squares[:, :, groups == g].sum(2) for g in range(len(GROUP_NAMES))])


def matern(distance: np.ndarray) -> np.ndarray:
    """Matérn-3/2 correlation at a distance in lengths (Rasmussen & Williams 2006, equation 4.17)."""
    scaled = np.sqrt(3.0) * distance
    return (1 + scaled) * np.exp(-scaled)


@dataclass(frozen=True)
class KernelCostModel:
    """The fitted model, as plain arrays. `kernels` are the observed ones, in the order of the columns below.

    `terms_s` (regimes, terms): seconds per unit; `floor_s` bounds base costs from below. `jacobian` (observations,
    kernels) is J above; `alpha` (observations,) and `factor` (observations, observations) are S⁻¹ z and the lower
    Cholesky factor of S = J K Jᵀ + noise, with z the linearised residual.
    """

    overhead_s: float
    floor_s: float
    regimes: tuple[str, ...]
    terms_s: np.ndarray
    kernels: tuple[Kernel, ...]
    jacobian: np.ndarray
    alpha: np.ndarray
    factor: np.ndarray
    hyperparameters: Hyperparameters

    @cached_property
    def features(self) -> Features:
        """Of the observed kernels."""
        return Features.of(self.kernels, self.regimes)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """Positions of each regime's observed kernels."""
        return [np.flatnonzero(self.features.regime == r) for r in range(len(self.regimes))]

    @cached_property
    def _position(self) -> dict[Kernel, int]:
        return {kernel: i for i, kernel in enumerate(self.kernels)}

    @cached_property
    def _pull(self) -> np.ndarray:
        """(kernels,) Jᵀ α: what a unit of covariance with each kernel adds to a correction."""
        pull: np.ndarray = self.jacobian.T @ self.alpha
        return pull

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(regimes, coordinates) least and greatest measured coordinate."""
        members = [self.features.coordinates[positions] for positions in self._members]
        return np.array([m.min(0) for m in members]), np.array([m.max(0) for m in members])

    def _beyond(self, features: Features) -> np.ndarray:
        """(n, coordinates) doublings outside the measured range, `TOLERATED` ones not counted."""
        low, high = (bound[features.regime] for bound in self._bounds)
        outside = np.maximum(low - features.coordinates, features.coordinates - high)
        return np.maximum(outside - TOLERATED, 0.0)

    def outside(self, kernel: Kernel) -> tuple[OutOfRange, ...]:
        """The dimensions of a `covered` kernel that lie outside the measured range."""
        features = Features.of([kernel], self.regimes)
        low, high = (bound[features.regime[0]].tolist() for bound in self._bounds)
        own = features.coordinates[0].tolist()
        return tuple(
            OutOfRange(name, natural(own[i]), (natural(low[i]), natural(high[i])))
            for i, (name, natural) in enumerate(COORDINATES)
            if self._beyond(features)[0, i] > 0
        )

    def covered(self, kernel: Kernel) -> bool:
        """Whether any kernel of its regime was measured."""
        return regime(kernel) in self.regimes

    @cached_property
    def _setting_numbers(self) -> dict[tuple[object, ...], int]:
        return {key: i for i, key in enumerate(dict.fromkeys(map(setting, self.kernels)))}

    @cached_property
    def _settings(self) -> np.ndarray:
        """(kernels,) number of each one's setting."""
        return np.array([self._setting_numbers[setting(kernel)] for kernel in self.kernels])

    @cached_property
    def _windows_and_widths(self) -> np.ndarray:
        """(kernels, 2)"""
        return np.array([window_and_width(kernel) for kernel in self.kernels])

    @cached_property
    def _envelopes(self) -> dict[tuple[object, ...], Envelope]:
        """Those made so far, by setting."""
        return {}

    def costs(self, kernels: Sequence[Kernel]) -> list[KernelCost]:
        """The posterior of each kernel on its own, its mean made monotone in sizes, its spread widened where no probe
        held the kernel; every one must be `covered`."""
        found = self.posterior(kernels)
        asked = Features.of(kernels, self.regimes)
        rows_of: dict[tuple[object, ...], list[int]] = {}
        for row, kernel in enumerate(kernels):
            rows_of.setdefault(setting(kernel), []).append(row)
        for key, rows in rows_of.items():
            envelope = self._envelopes.get(key)
            if envelope is None:
                envelope = self._envelopes[key] = self._envelope_of(kernels[rows[0]], key)
            terms = asked.terms[rows]
            mean_s = np.exp(envelope.log_costs(order_sizes(asked.coordinates[rows], terms), terms))
            for row, mean in zip(rows, mean_s.tolist(), strict=True):
                relative = found[row].spread_s / found[row].mean_s
                relative *= 1.0 if kernels[row] in self._position else UNOBSERVED_WIDENING
                found[row] = KernelCost(mean, mean * relative, found[row].beyond)
        return found

    def _envelope_of(self, kernel: Kernel, key: tuple[object, ...]) -> Envelope:
        """Through the observed kernels of this setting; where they are few, also the regime's others as if with it."""
        r, h = self.regimes.index(regime(kernel)), self.hyperparameters
        members = self._members[r]
        there = self.features.coordinates[members]
        here = there.copy()
        fixed = [i for i, group in enumerate(COORDINATE_GROUPS) if group != SIZES and i != RUN]
        here[:, fixed] = np.array(coordinates(kernel))[fixed]
        own = self._settings[members] == self._setting_numbers.get(key, -1)
        terms = self.features.terms[members].copy()
        terms[~own] = with_window_and_type(terms[~own], self._windows_and_widths[members[~own]], kernel)
        sizes = order_sizes(here, terms)
        of_others = np.zeros(0, int)
        if own.sum() < ENOUGH_OWN:
            # Where a kernel of this setting was observed, what others would cost there says nothing.
            _, first = np.unique(np.vstack([sizes[own], sizes[~own]]), axis=0, return_index=True)
            of_others = np.flatnonzero(~own)[first[first >= own.sum()] - own.sum()]
        kept = np.concatenate([np.flatnonzero(own), of_others])
        near = h.amplitude**2 * matern(distances(here[kept], there, h.lengths))
        pull = self._pull[members]
        correction = near @ pull + h.own**2 * (pull * own)[kept]
        base = BaseCosts(self.terms_s[r], self.floor_s)
        return Envelope.through(base, sizes[kept], terms[kept], base.log(terms[kept]) + correction)

    def posterior(self, kernels: Sequence[Kernel]) -> list[KernelCost]:
        """The posterior of each kernel on its own, whatever those of larger ones are."""
        if not kernels:
            return []
        asked, h = Features.of(kernels, self.regimes), self.hyperparameters
        correction = np.zeros(len(kernels))
        against = np.zeros((len(kernels), len(self.alpha)))  # covariance with every observation
        for r in np.unique(asked.regime):
            rows, columns = np.flatnonzero(asked.regime == r), self._members[r]
            near = matern(distances(asked.coordinates[rows], self.features.coordinates[columns], h.lengths))
            cross = h.amplitude**2 * near
            for i, row in enumerate(rows.tolist()):
                position = self._position.get(kernels[row])
                if position is not None:
                    cross[i, np.searchsorted(columns, position)] += h.own**2
            correction[rows] = cross @ self._pull[columns]
            against[rows] = cross @ self.jacobian[:, columns].T
        solved = linalg.solve_triangular(self.factor, against.T, lower=True, check_finite=False)
        variance = np.maximum(h.amplitude**2 + h.own**2 - (solved**2).sum(0), 0.0)
        mean_s = self.base_s(asked) * np.exp(correction)
        spread_s = mean_s * np.sqrt(variance)
        beyond = self._beyond(asked).max(1)
        return [KernelCost(float(m), float(s), float(b)) for m, s, b in zip(mean_s, spread_s, beyond, strict=True)]

    def base_s(self, features: Features) -> np.ndarray:
        """(n,) base costs in seconds."""
        return np.maximum((self.terms_s[features.regime] * features.terms).sum(1), self.floor_s)

    def as_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON fields; `model_from_arrays` reads them back."""
        arrays = {"terms_s": self.terms_s, "jacobian": self.jacobian, "alpha": self.alpha, "factor": self.factor}
        fields = {
            "overhead_s": self.overhead_s,
            "floor_s": self.floor_s,
            "regimes": list(self.regimes),
            "terms": list(TERMS),
            "kernels": [kernel.signature for kernel in self.kernels],
            "hyperparameters": asdict(self.hyperparameters),
        }
        return arrays, fields


def model_from_arrays(arrays: Mapping[str, np.ndarray], fields: Mapping[str, object]) -> KernelCostModel:
    """The inverse of `KernelCostModel.as_arrays`; ValueError when the terms are another version's."""
    if fields["terms"] != list(TERMS):
        raise ValueError(f"terms {fields['terms']}, this program has {list(TERMS)}")
    kernels, regimes, hyperparameters = fields["kernels"], fields["regimes"], fields["hyperparameters"]
    if not isinstance(kernels, list) or not isinstance(regimes, list) or not isinstance(hyperparameters, dict):
        raise ValueError("kernels, regimes or hyperparameters of another kind")
    return KernelCostModel(
        overhead_s=float(str(fields["overhead_s"])),
        floor_s=float(str(fields["floor_s"])),
        regimes=tuple(regimes),
        terms_s=arrays["terms_s"],
        kernels=tuple(kernel_from_signature(text) for text in kernels),
        jacobian=arrays["jacobian"],
        alpha=arrays["alpha"],
        factor=arrays["factor"],
        hyperparameters=Hyperparameters(**{**hyperparameters, "lengths": tuple(hyperparameters["lengths"])}),
    )
