"""Oracle-KD with architecture search (Kang, Mun & Han 2020, arXiv:1911.13019): learning from an ensemble's best.

The teachers are an ensemble; of these, those that are right about a view teach it (`distill` method "oracle"), or the
righter ones teach more ("soft-oracle", ours). The student is a backbone with layers added to it within a limit of
memory, and of latency too; the search shares weights between candidates, is rewarded after distillation by the same
loss, and is steered by a controller learning from rewards of single batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from akd_deploy.architecture import Architecture
from akd_deploy.data import Split, ViewBank
from akd_deploy.distill import TeacherBank, TrainingSettings, train
from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.models.shared_network import SampledNetwork, SharedNetwork
from akd_deploy.models.teacher import Teacher
from akd_deploy.search.reward import RewardShape
from akd_deploy.search.shared_weights import Limit, SharedSearchResult, SharedSearchSettings, search_shared_weights
from akd_deploy.search.strategies import load_strategy
from akd_deploy.search_space import SearchSpace
from akd_deploy.search_space.augmented import AugmentedSpace
from akd_deploy.search_space.operations import operations

BYTES_PER_PARAMETER = 4
"""Of a student that is shipped in float32."""

CONTROLLER: Mapping[str, float] = {"skip_target": 0.4, "skip_weight": 0.8, "baseline_decay": 0.9}
"""Settings of the controller as ENAS has them, but for its baseline, which forgets faster: a search of hundreds of
candidates would otherwise end before it knows what is usual."""

ROUND_SETTINGS = TrainingSettings(steps=100, learning_rate=0.05)
"""Of one round of training shared weights; with less steps than candidates some would not be trained in it."""

BETAS = (0.0, 1.0, 4.0, 16.0)
"""Of a soft or relative oracle: from the mean of all teachers to about those alone who are right."""


def memory_bytes(space: SearchSpace, architecture: Architecture) -> int:
    """Bytes of a network's weights as shipped, batch norms folded."""
    return BYTES_PER_PARAMETER * sum(step.parameters for step in operations(space.layers(architecture)))


def memory_limit(space: SearchSpace, most_bytes: float, shape: RewardShape | None = None) -> Limit:
    """At most so many bytes of weights, or with a `shape` a reward that trades them off."""
    return Limit("memory", lambda architecture: memory_bytes(space, architecture), most_bytes, shape)


@dataclass(frozen=True, eq=False)
class AddOnBed:
    """What a search of add-ons learns from and is judged on; `bank` is of the views, or the teachers themselves where
    views are fresh."""

    views: ViewBank
    bank: TeacherBank | Sequence[Teacher]
    reward_split: Split


def backbone_of(space: SearchSpace) -> Architecture:
    """The network of the space to which nothing is added.

    Raises:
        UsageError: a space of no backbone.
    """
    if isinstance(space, AugmentedSpace):
        return space.backbone()
    raise UsageError(
        asked=f"a search of space {space.name} that begins with its backbone's weights",
        found="a space without a backbone",
        next=f'Search space "{AugmentedSpace.name}", or leave its training out.',
    )


def search_add_ons(
    space: SearchSpace,
    bed: AddOnBed,
    method: str,
    training: TrainingSettings,
    limits: Sequence[Limit],
    settings: SharedSearchSettings,
    seed: int,
    *,
    strategy: str = "akd-reinforce",
    strategy_settings: Mapping[str, Any] = MappingProxyType({}),
    reward_batch: int = 256,
    backbone: TrainingSettings | None = None,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[SharedSearchResult, SharedNetwork]:
    """Search what to add to the backbone, with weights shared between candidates.

    Args:
        method: the distillation method that shared weights are trained by: with the oracle's the search is KDAS.
        training: of one round; its steps go through the round's candidates in turn.
        limits: of memory, of latency; hard or traded off.
        seed: of the weights, the batches and the controller.
        strategy_settings: of the strategy; those of akd-reinforce are over `CONTROLLER`'s.
        reward_batch: images that one candidate of a round is judged on (a batch's accuracy is the reward, as in ENAS);
            the last candidates are judged on the whole reward split, at most so many images at a time.
        backbone: of a training of the backbone alone before all rounds, with whose weights the search begins.

    Raises:
        UnknownNameError: a setting that the strategy does not have.
        UsageError: `backbone` in a space without one, or a setting out of range.
        InfeasibleBudgetError: nothing within the limits was drawn.
        TrainingError: the loss became NaN or infinite.
    """
    shared = SharedNetwork(space, seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 31])
    images, labels = torch.tensor(bed.reward_split.images), torch.tensor(bed.reward_split.labels)
    whole = mixed_batches(len(labels), reward_batch, np.random.default_rng([seed, 43]))
    done = 0

    def train_round(candidates: Sequence[Architecture]) -> None:
        nonlocal done
        train(SampledNetwork(shared, candidates), bed.views, training, generator, method=method, teacher=bed.bank)
        done += 1
        on_round(done, settings.warmup + settings.rounds)

    def accuracy(architecture: Architecture, batches: Sequence[np.ndarray]) -> float:
        with torch.no_grad():
            right = [shared(images[batch], architecture).argmax(dim=1) == labels[batch] for batch in batches]
        return float(torch.cat(right).double().mean())

    def judge(architecture: Architecture) -> float:
        return accuracy(architecture, [rng.choice(len(labels), size=min(reward_batch, len(labels)), replace=False)])

    def judge_last(architecture: Architecture) -> float:
        return accuracy(architecture, whole)

    if backbone is not None:
        first = SampledNetwork(shared, [backbone_of(space)])
        train(first, bed.views, backbone, generator, method=method, teacher=bed.bank)
    controller = CONTROLLER if strategy == "akd-reinforce" else {}
    found = search_shared_weights(
        space,
        load_strategy(strategy, seed, {**controller, **strategy_settings}),
        train_round,
        judge,
        judge_last,
        limits,
        settings,
        np.random.default_rng([seed, 41]),
    )
    return found, shared


def mixed_batches(count: int, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of `count` images in a random order, in batches of about equal size and at most `most`.

    Shared weights normalise by the batch that they see: one of a few images, or of one class as they may lie in a
    folder, would be another network's.
    """
    return np.array_split(rng.permutation(count), -(-count // most))


def wider_backbone(space: AugmentedSpace, most_bytes: float) -> Architecture:
    """The uniformly widest backbone of at most so many bytes: what a person would do with the memory.

    Raises:
        InfeasibleBudgetError: the narrowest one needs more.
    """
    (family,) = space.hand_shrunk()
    fitting = [
        architecture
        for architecture in family
        if memory_bytes(AugmentedSpace(dict(architecture.settings)), architecture) <= most_bytes
    ]
    if not fitting:
        raise InfeasibleBudgetError(
            asked=f"a backbone of at most {most_bytes:g} bytes",
            found=f"{memory_bytes(AugmentedSpace(dict(family[0].settings)), family[0])} bytes for the narrowest",
            next="Raise the limit.",
        )
    return fitting[-1]


def random_add_ons(
    space: AugmentedSpace, limits: Sequence[Limit], like: float, count: int, rng: np.random.Generator
) -> list[Architecture]:
    """`count` different networks at random that cost no more than the limits and, of the first, at least `like` of it:
    the control without a search at equal cost.

    Raises:
        InfeasibleBudgetError: a thousand draws a network do not give so many.
    """
    found: dict[str, Architecture] = {}
    for _ in range(1000 * count):
        architecture = space.sample(rng)
        costs = [limit.cost(architecture) / limit.most for limit in limits]
        if max(costs) <= 1 and costs[0] >= like:
            found.setdefault(space.network_digest(architecture), architecture)
        if len(found) == count:
            return list(found.values())
    raise InfeasibleBudgetError(
        asked=f"{count} random networks between {like:.0%} and 100 % of the limits",
        found=f"{len(found)} among {1000 * count} draws",
        next="Ask for less of the limit.",
    )


def choose_beta(
    score: Callable[[TrainingSettings, int], float],
    settings: TrainingSettings,
    seeds: Sequence[int],
    betas: Sequence[float] = BETAS,
) -> tuple[float, dict[float, float]]:
    """The β of a soft or relative oracle with the best mean accuracy on held-out images, the smallest of equals; and
    all means.

    Args:
        score: (settings, seed) → accuracy on images that are neither learned from nor reported.
        seeds: of the trainings; others than those that are reported.
    """
    means = {
        beta: float(np.mean([score(replace(settings, oracle_beta=beta), seed) for seed in seeds])) for beta in betas
    }
    best = max(means.values())
    return min(beta for beta, mean in means.items() if mean == best), means
