"""NNI's own tuners, each made to give one answer for one seed."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from nni import NoMoreTrialError
from nni.algorithms.hpo.evolution_tuner import EvolutionTuner, Individual
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner

from akd_deploy.search.strategies.base import Parameters, Strategy, strategy_settings


@dataclass(frozen=True)
class EvolutionSettings:
    """The first `population_size` candidates are random. NNI's default of 32 is most of a small search."""

    population_size: int = 16


@dataclass(frozen=True)
class TpeSettings:
    """NNI's names, and its defaults but for `n_startup_jobs` (20): as many candidates are random, refused ones too.
    The best `gamma` · √n of n count as good."""

    n_startup_jobs: int = 10
    n_ei_candidates: int = 24
    linear_forgetting: int = 25
    prior_weight: float = 1.0
    gamma: float = 0.25


@dataclass(frozen=True)
class RandomSettings:
    """There is nothing to set."""


class SeededEvolution(EvolutionTuner):
    """NNI's evolution with its two sources of randomness under one seed.

    It draws from the process-wide `random` module and from an unseeded RandomState that `update_search_space`
    makes. Here each call runs on a state of `random` of its own, and the RandomState is replaced.
    """

    learns_by_rank = True

    def __init__(self, seed: int, population_size: int) -> None:
        super().__init__(optimize_mode="maximize", population_size=population_size)
        self._seed = seed
        self._random_state = random.Random(seed).getstate()

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        super().update_search_space(search_space)
        self.random_state = np.random.RandomState(self._seed)
        self.population: list[Individual] = []
        for _ in range(self.population_size):
            self._random_generate_individual()

    def generate_parameters(self, parameter_id: int, **options: Any) -> Parameters:
        with self._own_random():
            if not self.population:  # all of it is in training: as many at a time as it has individuals
                self._random_generate_individual()
            return super().generate_parameters(parameter_id, **options)

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Add evaluated individuals, which NNI's ignores; each takes the place of one not yet evaluated."""
        for trial in data:
            config = {
                name: {"_index": self.searchspace_json[name]["_value"].index(value), "_value": value}
                for name, value in trial["parameter"].items()
            }
            waiting = [i for i, individual in enumerate(self.population) if individual.result is None]
            if waiting:
                self.population.pop(waiting[0])
            self.population.append(Individual(config=config, result=trial["value"]))

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        theirs = random.getstate()
        random.setstate(self._random_state)
        try:
            yield
        finally:
            self._random_state = random.getstate()
            random.setstate(theirs)


class NearbyTpe(TpeTuner):
    """NNI's TPE that replaces a candidate it has proposed before by a new one nearby.

    NNI replaces it by the next point of a grid that starts at every choice's first option; once TPE has converged,
    which on a space of choices it soon does, that is all it proposes.
    """

    learns_by_rank = True

    def update_search_space(self, space: dict[str, Any]) -> None:
        super().update_search_space(space)
        self.dedup = NewNearby({key: spec.size for key, spec in self.space.items()}, self.rng)


class RandomAnew(RandomTuner):
    """NNI's random search that replaces a candidate it has proposed before by another one at random.

    NNI replaces it by the next point of a grid that starts at every choice's first option: of a small space the first
    networks would nearly always be among those drawn.
    """

    def update_search_space(self, space: dict[str, Any]) -> None:
        super().update_search_space(space)
        self.dedup = NewAtRandom({key: spec.size for key, spec in self.space.items()}, self.rng)


class _New(ABC):
    """In the place of NNI's Deduplicator, which is called with a candidate and returns one that is new."""

    def __init__(self, sizes: Mapping[Any, int], rng: np.random.Generator) -> None:
        self._sizes, self._rng = sizes, rng
        self._seen: set[tuple[int, ...]] = set()

    @abstractmethod
    def __call__(self, parameters: Mapping[Any, int]) -> dict[Any, int]:
        """The candidate, or where it is not new another one. Raises `nni.NoMoreTrialError` when there is none."""

    def add_history(self, parameters: Mapping[Any, int]) -> None:
        """Count a candidate as proposed; NNI's name for it."""
        self._seen.add(self._key(parameters))

    def _key(self, parameters: Mapping[Any, int]) -> tuple[int, ...]:
        return tuple(int(parameters[key]) for key in self._sizes)


class NewNearby(_New):
    """Changes one choice after another at random until the candidate is new."""

    MAX_CHANGES = 1000
    """Then the space counts as used up."""

    def __call__(self, parameters: Mapping[Any, int]) -> dict[Any, int]:
        parameters = dict(parameters)
        keys = list(self._sizes)
        for _ in range(self.MAX_CHANGES):
            if self._key(parameters) not in self._seen:
                self.add_history(parameters)
                return parameters
            key = keys[self._rng.integers(len(keys))]
            parameters[key] = int(self._rng.integers(self._sizes[key]))
        raise NoMoreTrialError(f"nothing new after {self.MAX_CHANGES} changes")


class NewAtRandom(_New):
    """Draws again until the candidate is new: every one that is new is equally likely."""

    MAX_DRAWS = 100
    """Then so little of the space is new that what is left is listed, and drawn from."""

    def __call__(self, parameters: Mapping[Any, int]) -> dict[Any, int]:
        parameters = dict(parameters)
        for _ in range(self.MAX_DRAWS):
            if self._key(parameters) not in self._seen:
                break
            parameters = {key: int(self._rng.integers(size)) for key, size in self._sizes.items()}
        else:
            left = [row for row in itertools.product(*map(range, self._sizes.values())) if row not in self._seen]
            if not left:
                raise NoMoreTrialError(f"all {len(self._seen)} candidates were proposed")
            parameters = dict(zip(self._sizes, left[self._rng.integers(len(left))], strict=True))
        self.add_history(parameters)
        return parameters


def evolution(seed: int, settings: Mapping[str, Any]) -> Strategy:
    """NNI's naive evolution; `EvolutionSettings`. It learns the budget from penalties."""
    own = strategy_settings(EvolutionSettings, settings, "evolution")
    return SeededEvolution(seed % 2**32, own.population_size)


def tpe(seed: int, settings: Mapping[str, Any]) -> Strategy:
    """NNI's tree-structured Parzen estimator (`NearbyTpe`); `TpeSettings`. It learns the budget from penalties."""
    own = strategy_settings(TpeSettings, settings, "tpe")
    return NearbyTpe(optimize_mode="maximize", seed=seed, tpe_args=vars(own))


def random_search(seed: int, settings: Mapping[str, Any]) -> Strategy:
    """NNI's random search (`RandomAnew`), which never proposes an encoding twice. It learns nothing."""
    strategy_settings(RandomSettings, settings, "random")
    return RandomAnew(seed=seed)
