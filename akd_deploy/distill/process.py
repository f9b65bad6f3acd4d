"""A process of distillation as a value: the weight of every pathway at every moment of a training.

(DistPro, Deng et al. 2022, arXiv:2204.05547: searched once, it is used by other, longer trainings.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_ndtr
from torch import Tensor

from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UnknownNameError
from akd_deploy.storage import write_atomically

FORMAT = 1
WALK = 0.9
"""How much of a random process's place at one moment is that of the moment before."""

NORMALISATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda alpha, kd_weight: torch.full_like(alpha, kd_weight),
    "softmax": lambda alpha, _: F.softmax(alpha, dim=0),
    "biased-softmax": lambda alpha, _: _biased(alpha),
    "sigmoid": lambda alpha, _: torch.sigmoid(alpha),
    "absolute": lambda alpha, _: alpha.abs(),
    "absolute-share": lambda alpha, _: 3 * alpha.abs() / alpha.abs().sum(),
    "bounded-share": lambda alpha, _: 10 * alpha.abs() / (1 + alpha.abs().sum()),
    "scaled-biased-softmax": lambda alpha, kd_weight: _biased(alpha) * len(alpha) * kd_weight,
}
"""How parameters α become weights ω, given `kd_weight` where one scales them: those of DistPro's release, in its order
(0 to 6, and 333). With a biased softmax all weights can vanish together."""


def _biased(alpha: Tensor) -> Tensor:
    """Softmax over α and one more entry, the constant 1, which is then left out."""
    return F.softmax(torch.cat([alpha, alpha.new_ones(1)]), dim=0)[:-1]


def weights_of(alpha: Tensor, normalisation: str, kd_weight: float = 1.0) -> Tensor:
    """(pathways,) α → (pathways,) ω ≥ 0.

    Raises:
        UnknownNameError: no such normalisation.
    """
    if normalisation not in NORMALISATIONS:
        raise UnknownNameError("normalisation", normalisation, NORMALISATIONS)
    return NORMALISATIONS[normalisation](alpha, kd_weight)


@dataclass(frozen=True, eq=False)
class Process:
    """`weights` is (moments, pathways), from the beginning of a training to its end, evenly; `pathways` names them."""

    weights: np.ndarray
    pathways: tuple[str, ...]

    def __post_init__(self) -> None:
        weights = np.ascontiguousarray(self.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(self.pathways) or not len(weights):
            raise MismatchError(
                asked=f"weights of {len(self.pathways)} pathways at one moment or more",
                found=f"an array {weights.shape}",
                next="Give (moments, pathways).",
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise MismatchError(
                asked="weights of pathways ≥ 0", found=f"one of {weights.min()}", next="Search or average anew."
            )
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "pathways", tuple(self.pathways))

    def stretched(self, steps: int) -> np.ndarray:
        """(steps, pathways): the process over a training of so many steps, interpolated linearly.

        A moment stands for its equal share of the training, and is in force in the middle of that; before the first
        middle and behind the last one weights stay, so that their mean over time is that over moments.
        """
        moments = len(self.weights)
        place = np.clip((np.arange(steps) + 0.5) * moments / steps - 0.5, 0, moments - 1)
        low = np.minimum(place.astype(int), max(0, moments - 2))
        high = np.minimum(low + 1, moments - 1)
        share = (place - low)[:, None]
        result: np.ndarray = (1 - share) * self.weights[low] + share * self.weights[high]
        return result

    def smoothed(self, moments: int) -> Process:
        """The mean over so many stretches of equal length: steps of a search scatter."""
        parts = np.array_split(self.weights, min(moments, len(self.weights)))
        return replace(self, weights=np.stack([part.mean(axis=0) for part in parts]))

    # --- controls: what is left of a process without its course in time ---

    def time_mean(self) -> Process:
        """Its mean weights at all times."""
        return replace(self, weights=self.weights.mean(axis=0, keepdims=True))

    def final(self) -> Process:
        """Its last weights at all times."""
        return replace(self, weights=self.weights[-1:])

    def reversed(self) -> Process:
        """From its end to its beginning."""
        return replace(self, weights=self.weights[::-1])

    def shuffled(self, rng: np.random.Generator) -> Process:
        """Every pathway with the weights of another one, if there are two."""
        count = len(self.pathways)
        order = rng.permutation(count)
        while count > 1 and (order == np.arange(count)).any():
            order = rng.permutation(count)
        return replace(self, weights=self.weights[:, order])

    def at_random(self, rng: np.random.Generator) -> Process:
        """Shares of pathways that walk at random, evenly likely at every moment, in place of these; the sum of weights
        at each moment is kept."""
        places = rng.normal(size=self.weights.shape)
        places[1:] *= np.sqrt(1 - WALK**2)
        for moment in range(1, len(places)):
            places[moment] += WALK * places[moment - 1]
        # Normal places to exponential ones: their shares are evenly likely (a flat Dirichlet distribution).
        drawn = -log_ndtr(places)
        return replace(self, weights=self.weights.sum(axis=1, keepdims=True) * drawn / drawn.sum(axis=1, keepdims=True))

    def scaled_to(self, total: float) -> Process:
        """With a mean sum of weights of `total`.

        Raises:
            MismatchError: all weights are 0.
        """
        mean = float(self.weights.sum(axis=1).mean())
        if mean <= 0:
            raise MismatchError(asked=f"weights that add up to {total:g}", found="all 0", next="Use another process.")
        return replace(self, weights=self.weights * (total / mean))

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {"pathways": list(self.pathways), "weights": self.weights.tolist()}

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_atomically(path, json.dumps({"format": FORMAT, **self.as_dict()}).encode())


def constant_process(weights: Mapping[str, float]) -> Process:
    """The same weights at all times."""
    return Process(np.array([list(weights.values())]), tuple(weights))


def mean_process(processes: Sequence[Process]) -> Process:
    """The mean of several searches' processes, each as fine as the finest.

    Raises:
        MismatchError: none, or of other pathways.
    """
    names = {process.pathways for process in processes}
    if len(names) != 1:
        raise MismatchError(
            asked="processes of the same pathways", found=f"{len(names)} sets of pathways", next="Leave out the others."
        )
    steps = max(len(process.weights) for process in processes)
    return Process(np.mean([process.stretched(steps) for process in processes], axis=0), names.pop())


def load_process(path: Path) -> Process:
    """Read what `Process.save` wrote.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or not such a file.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the process {path}", found="no such file", next="Check the path.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise CorruptFileError(
                asked=f"a process of format {FORMAT} in {path}",
                found=f"format {document['format']}",
                next="Read it with the version of akd-deploy that wrote it, or search again.",
            )
        return Process(np.array(document["weights"], dtype=np.float64), tuple(document["pathways"]))
    except (ValueError, LookupError, TypeError, MismatchError) as error:
        if isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(
            asked=f"a process in {path}", found=f"no whole one ({error})", next="Search again, or copy it again."
        ) from error
