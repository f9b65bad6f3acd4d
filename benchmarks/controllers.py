"""Every search strategy on 64 networks whose accuracies are known: regret to the optimum at equal evaluations.

    python -m benchmarks.controllers diswot_s0_cifar100_kd_vs_ce.csv

The table (DisWOT, Dong et al. 2023, github.com/lliai/DisWOT-CVPR2023, Apache-2.0) has the CIFAR-100 accuracy of the 64
ResNets of depths (d1, d2, d3) in {1, 3, 5, 7}³, each trained with and without a ResNet-110 as teacher. It is not in
this repository. Its one training a network has a scatter of about 0.34 points: regret is to the table, not to the
truth.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from akd_deploy.architecture import Architecture
from akd_deploy.recipes.paired_seeds import paired
from akd_deploy.search import REWARD_PRESETS, Score, SearchSettings, search
from akd_deploy.search.enumerated import exact_optimum
from akd_deploy.search.strategies import STRATEGIES
from akd_deploy.search_space import Layer, SearchSpace, Segment

DEPTHS = (1, 3, 5, 7)
BUDGETS_MFLOPS = (32.0, 51.0, 70.0)
"""A quarter, a good half and three quarters of the networks are within these."""
TRIALS = (8, 16)
SEEDS = 40
MAX_DRAWS = 64
"""Candidates in a row without a new network end a search: as many as there are networks."""
UNIT_S = 1e-6
"""A million operations stand for so many seconds: the budget is one of operations, for want of a device."""


class DepthSpace(SearchSpace):
    """Three choices of depth; what its networks are is known from the table alone."""

    name = "resnet-depths"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = dict(settings or {})
        self.choices = {f"d{i}": DEPTHS for i in (1, 2, 3)}
        self.segments = (Segment("all", tuple(self.choices)),)

    def segment_layers(self, segment: Segment, values: Mapping[str, object]) -> tuple[Layer, ...]:
        raise NotImplementedError("networks of a table have no layers")

    def network_digest(self, architecture: Architecture) -> str:
        return architecture.digest

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, 32, 32)

    @property
    def classes(self) -> int:
        return 100

    def hand_shrunk(self) -> list[list[Architecture]]:
        return [[self.architecture({name: depth for name in self.choices}) for depth in DEPTHS]]


@dataclass(frozen=True)
class Known:
    """One network of the table: accuracies as fractions, operations in millions."""

    kd: float
    ce: float
    mflops: float


def read_table(path: Path) -> dict[tuple[int, ...], Known]:
    """Depths → what is known."""
    with path.open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {
            tuple(int(row[f"d{i}"]) for i in (1, 2, 3)): Known(
                float(row["acc_kd"]) / 100, float(row["acc_ce"]) / 100, float(row["mflops"])
            )
            for row in rows
        }


@dataclass(frozen=True)
class Regret:
    """Over seeds: points of distilled accuracy below the best within the budget, how often that one was found, and the
    evaluations taken (fewer than allowed where a strategy proposes nothing new any more)."""

    points: np.ndarray
    found: float
    evaluations: float


class Bench:
    """One table, searched again and again."""

    def __init__(self, known: Mapping[tuple[int, ...], Known]) -> None:
        self.known, self.space = known, DepthSpace()

    def of(self, architecture: Architecture) -> Known:
        return self.known[tuple(int(value) for value in architecture.choices.values())]

    def predict(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        seconds = UNIT_S * np.array([self.of(architecture).mflops for architecture in architectures])
        return seconds, seconds

    def settings(self, budget_mflops: float, trials: int, seed: int) -> SearchSettings:
        budget_s = UNIT_S * budget_mflops
        return SearchSettings(trials, budget_s, REWARD_PRESETS["hard"], max_draws=MAX_DRAWS, seed=seed)

    def regret(self, strategy: str, rewarded_by: str, budget_mflops: float, trials: int, seeds: int) -> Regret:
        """`rewarded_by` "kd" is AKD's reward, "ce" the conventional one; both are scored by the distilled accuracy."""
        best = exact_optimum(self.space, self.predict, lambda a: self.of(a).kd, self.settings(budget_mflops, trials, 0))
        points, evaluations = [], []
        for seed in range(seeds):
            found = search(
                self.space,
                strategy,
                self.predict,
                lambda architecture, _: Score(getattr(self.of(architecture), rewarded_by)),
                self.settings(budget_mflops, trials, seed),
            )
            points.append(100 * (best.accuracy - self.of(found.best.architecture).kd))
            evaluations.append(sum(trial.state == "done" for trial in found.trials))
        return Regret(np.array(points), float(np.mean(np.array(points) < 1e-9)), float(np.mean(evaluations)))


def line(name: str, one: Regret, other: Regret | None) -> str:
    """A strategy's figures, and what it differs by."""
    told = f"  {name:24s} {one.points.mean():6.3f} {one.found:6.0%} {one.evaluations:6.1f}"
    if other is None:
        return told
    difference = paired(one.points, other.points)
    if not np.isfinite(difference.low):  # all pairs differ by the same
        return f"{told}   {difference.mean:+.3f}"
    return f"{told}   {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def main(path: str, seeds: str = str(SEEDS)) -> None:
    """Print the regret of every strategy, and its paired difference to random search's."""
    torch.set_num_threads(
        1
    )  # a controller of sixteen units is slowed a hundredfold by threads that wait for each other
    began, bench = time.perf_counter(), Bench(read_table(Path(path)))
    count = int(seeds)
    print(f"{len(bench.known)} networks; mean regret over {count} seeds in points of distilled accuracy, how often the")
    print("best network was found, evaluations taken; paired difference to random search (of the last row: to the same")
    print("strategy rewarded by KD), 95 % interval")
    for budget in BUDGETS_MFLOPS:
        within = sum(known.mflops <= budget for known in bench.known.values())
        for trials in TRIALS:
            print(f"\n{budget:g} MFLOPs ({within} networks within), {trials} evaluations")
            found = {strategy: bench.regret(strategy, "kd", budget, trials, count) for strategy in STRATEGIES}
            for strategy, one in found.items():
                print(line(strategy, one, None if strategy == "random" else found["random"]))
            conventional = bench.regret("constrained_evolution", "ce", budget, trials, count)
            print(line("… rewarded by CE", conventional, found["constrained_evolution"]))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
