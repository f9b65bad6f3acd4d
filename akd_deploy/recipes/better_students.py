"""Search for better students (Gu & Tresp 2020, arXiv:2001.11612): the student is a part of its teacher's graph.

Every unit of the teacher (a channel, several, a residual branch) has a gate. The gated network, which begins as the
teacher, learns to give the teacher's outputs while an L1 penalty on the gates, in proportion to what each unit costs,
drives them to zero; no label is needed. What is left at the budget is extracted as a smaller network, and distilled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from akd_deploy.data import ViewBank
from akd_deploy.distill import TrainingSettings, train
from akd_deploy.distill.trainer import batches_on, not_finite, optimiser_for
from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.losses import kd_loss
from akd_deploy.models.gated_network import GatedNetwork
from akd_deploy.models.part import Part
from akd_deploy.models.teacher import Teacher

NEAR = 0.99
"""A part that costs so much of its budget is at it."""
BAND = 0.1
"""So far behind, in budgets, the penalty grows as fast as it may."""
LEAST = 1e-3
"""The gate of a unit that is kept because there is room for it: from 0 it would not learn."""

Cost = Callable[[np.ndarray], float]
"""(units,) booleans → what the network of these units costs: operations, parameters, seconds."""


@dataclass(frozen=True)
class GateSearchSettings:
    """How gates are searched for.

    Gates move by accelerated proximal steps of `gate_rate` and `gate_momentum` (Huang & Wang 2018): only these give
    zeros. The penalty begins at `strength` and is steered so that the cost of what has a gate above 0 falls evenly to
    the budget between the `opening` and the `closing` share of the training: each step it grows by `growth` where the
    cost is a tenth of the budget or more behind, shrinks by as much where it is ahead, and in between by less. What is
    kept then stays, and what is left of the training goes to its weights, without a penalty. The loss is
    KL(teacher || student) at `temperature` (the other way round with `reverse`), plus `ce_weight` times the labels'
    cross-entropy; with `kd_weight` 0 and a `ce_weight` gates are searched by labels alone, as a control.
    """

    gate_rate: float = 0.02
    gate_momentum: float = 0.9
    strength: float = 0.05
    growth: float = 1.05
    opening: float = 0.05
    closing: float = 0.6
    temperature: float = 4.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    reverse: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "gate_rate": self.gate_rate > 0,
            "gate_momentum": 0 <= self.gate_momentum < 1,
            "strength": self.strength > 0,
            "growth": self.growth > 1,
            "opening": 0 <= self.opening < 1,
            "closing": self.opening < self.closing <= 1,
            "temperature": self.temperature > 0,
            "kd_weight": self.kd_weight >= 0,
            "ce_weight": self.ce_weight >= 0 and self.kd_weight + self.ce_weight > 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise UsageError(
                    asked=f"setting {name} of a search for gates",
                    found=repr(getattr(self, name)),
                    next="Give one within its range.",
                )


@dataclass(frozen=True, eq=False)
class GateSearch:
    """`order` lists units from the one to keep first to the one to drop first; `costs` has the cost at every step."""

    order: np.ndarray
    gates: np.ndarray
    losses: tuple[float, ...]
    costs: tuple[float, ...]


def unit_costs(gated: GatedNetwork, cost: Cost) -> np.ndarray:
    """(units,) what each unit adds to the whole network's cost, in shares of their mean.

    Units of one layer are taken to cost alike: one difference a layer, of about half of its units, is enough, and says
    more of a stepwise cost than that of a single channel.
    """
    whole = np.ones(len(gated.units), bool)
    full, found = cost(whole), np.zeros(len(gated.units))
    layers: dict[str, list[int]] = {}
    for i, unit in enumerate(gated.units):
        layers.setdefault(f"{unit.layer} {unit.branch is not None}", []).append(i)
    for members in layers.values():
        dropped = members if gated.units[members[0]].branch is not None else members[len(members) - len(members) // 2 :]
        if not dropped:
            continue
        mask = whole.copy()
        mask[dropped] = False
        sizes = np.array([max(1, len(gated.units[i].roots)) for i in members])
        share = max(0.0, full - cost(mask)) / max(1, sum(max(1, len(gated.units[i].roots)) for i in dropped))
        found[members] = share * sizes
    mean = found.mean()
    if not mean > 0:
        raise UsageError(asked="what units cost", found="nothing: no unit changes the cost", next="Use another cost.")
    return found / mean


def proximal_step(
    gates: Tensor, velocity: Tensor, gradient: Tensor, penalties: Tensor, rate: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """One accelerated proximal gradient step: z = S(g − η ∂L, ηλα), v ← z − g + μ v, g ← max(z + μ v, 0).

    S is the soft threshold; (units,) `penalties` are λ α. Returns gates and velocity. A gate at zero whose threshold is
    not overcome stays exactly there (the velocity of a unit that is cut is dropped).
    """
    moved = gates - rate * gradient
    z = moved.sign() * (moved.abs() - rate * penalties).clamp(min=0)
    velocity = z - gates + momentum * velocity
    following = (z + momentum * velocity).clamp(min=0)
    cut = z <= 0
    return torch.where(cut, torch.zeros_like(following), following), torch.where(
        cut, torch.zeros_like(velocity), velocity
    )


def search_gates(
    gated: GatedNetwork,
    teacher: Teacher,
    views: ViewBank,
    cost: Cost,
    budget: float,
    training: TrainingSettings,
    settings: GateSearchSettings,
    generator: torch.Generator,
    *,
    weigh: Cost | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> GateSearch:
    """Train weights and gates until the cost is at the budget, and weights on; the gated network is left with the gates
    it has then.

    Args:
        gated: initialised as the teacher (its own network gated, or a copy).
        cost: of a mask; asked at every step, so it should be a count or a table (seconds: see `order`'s use).
        budget: in the unit of `cost`.
        weigh: what penalties of units are in proportion to; `cost` where it is left out.

    Raises:
        InfeasibleBudgetError: one unit in every layer costs more than the budget.
        TrainingError: the loss is not finite; names the step.
    """
    device = gated.gates.device
    alpha = torch.from_numpy(unit_costs(gated, weigh or cost)).float().to(device)
    optimiser = optimiser_for(gated.network, training)
    died = np.full(len(gated.units), np.inf)
    velocity = torch.zeros_like(gated.gates)
    strength = settings.strength
    losses: list[float] = []
    costs: list[float] = []
    full = cost(np.ones(len(gated.units), bool))
    kept: np.ndarray | None = None
    gated.train()
    for step, (images, labels, _) in enumerate(batches_on(device, views, training, None, generator)):
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate_at(step)
        logits = gated(images)
        loss = torch.zeros((), device=device)
        if settings.kd_weight:
            divergence = _divergence(logits, teacher.logits(images), settings.temperature, settings.reverse)
            loss = loss + settings.kd_weight * divergence
        if settings.ce_weight:
            loss = loss + settings.ce_weight * F.cross_entropy(logits, labels)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise not_finite("gates", training, step, value, losses)
        gated.gates.grad = None
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            assert gated.gates.grad is not None
            now, velocity = proximal_step(
                gated.gates, velocity, gated.gates.grad, strength * alpha, settings.gate_rate, settings.gate_momentum
            )
            now = _with_one_each(gated, now)
            if kept is None and step + 1 >= settings.closing * training.steps:
                kept = within_budget(gated, _latest_first(gated, died), cost, budget)
                died = np.where(kept, np.inf, np.minimum(died, step))
            if kept is not None:
                now = torch.where(torch.from_numpy(kept).to(device), now.clamp(min=LEAST), 0.0)
            gated.gates.copy_(now)
        mask = gated.mask()
        died[mask] = np.inf
        died[~mask & np.isinf(died)] = step
        costs.append(cost(mask))
        done = (step + 1) / training.steps
        way = min(1.0, max(0.0, (done - settings.opening) / (settings.closing - settings.opening)))
        behind = (costs[-1] - (full + way * (budget - full))) / budget
        strength = 0.0 if kept is not None else strength * settings.growth ** min(1.0, max(-1.0, behind / BAND))
        losses.append(value)
        if on_step is not None:
            on_step(step + 1, training.steps, value)
    gated.eval()
    gates = gated.gates.detach().cpu().numpy().copy()
    return GateSearch(_latest_first(gated, died), gates, tuple(losses), tuple(costs))


def _latest_first(gated: GatedNetwork, died: np.ndarray) -> np.ndarray:
    """Units by when their gates last came to 0, those that did not first, the greatest gates before others."""
    order: np.ndarray = np.lexsort((-gated.gates.detach().cpu().numpy(), -died))
    return order


def _divergence(student: Tensor, teacher: Tensor, temperature: float, reverse: bool) -> Tensor:
    """KL(teacher || student), or KL(student || teacher) as the formula that is quoted of the paper has it."""
    if not reverse:
        return kd_loss(student, teacher, temperature)
    log_t = F.log_softmax(teacher.detach() / temperature, dim=-1)
    log_s = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(log_t, log_s, reduction="batchmean", log_target=True) * temperature**2


def _with_one_each(gated: GatedNetwork, gates: Tensor) -> Tensor:
    """The gates with the greatest one of every layer that has none left put back: a layer needs a channel."""
    last: dict[str, list[int]] = {}
    for i, unit in enumerate(gated.units):
        if unit.branch is None:
            last.setdefault(unit.layer, []).append(i)
    for members in last.values():
        if not bool((gates[members] > 0).any()):
            before = gated.gates[members]
            best = members[int(before.argmax())]
            gates[best] = gated.gates[best]
    return gates


def within_budget(gated: GatedNetwork, order: Sequence[int] | np.ndarray, cost: Cost, budget: float) -> np.ndarray:
    """(units,) booleans: as many units in this order as the budget allows, one in every layer in any case.

    Where the next unit is too dear, as a whole branch may be, it is left out, as all of its layer, and those behind it
    are tried, so that orders differ in what they keep and not in how much: until the cost is `NEAR` the budget.

    Raises:
        InfeasibleBudgetError: one unit in every layer costs more.
    """
    order = np.asarray(order)
    kind_of = [(unit.layer, unit.branch is None) for unit in gated.units]
    base = np.zeros(len(gated.units), bool)
    seen: set[str] = set()
    for i in order:
        unit = gated.units[i]
        if unit.branch is None and unit.layer not in seen:
            seen.add(unit.layer)
            base[i] = True
    if cost(base) > budget:
        raise InfeasibleBudgetError(
            asked=f"a part of the network for {budget:g}",
            found=f"{cost(base):g} for one unit in every layer",
            next="Raise the budget, or gate smaller units.",
        )

    kept, left = base, [int(i) for i in order if not base[i]]
    while left and cost(kept) < NEAR * budget:
        low, high = 0, len(left)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(_with(kept, left[:middle])) <= budget else (low, middle - 1)
        kept, behind = _with(kept, left[:low]), left[low:]
        left = [i for i in behind if kind_of[i] != kind_of[behind[0]]]
    return kept


def _with(mask: np.ndarray, units: Sequence[int]) -> np.ndarray:
    result = mask.copy()
    result[list(units)] = True
    return result


# --- what a person, or chance, would do with the same budget ---------------------------------------------------


def uniform_width(gated: GatedNetwork) -> np.ndarray:
    """An order that takes the same share of every layer's units, branches first."""
    place = np.zeros(len(gated.units))
    layers: dict[str, list[int]] = {}
    for i, unit in enumerate(gated.units):
        if unit.branch is None:
            layers.setdefault(unit.layer, []).append(i)
    for members in layers.values():
        place[members] = (np.arange(len(members)) + 1) / len(members)
    return np.argsort(place, kind="stable")


def uniform_depth(gated: GatedNetwork) -> np.ndarray:
    """An order that takes all channels, and drops branches first, the last ones of every stage before others; once none
    is left, width. Sums of one shape are a stage."""
    shapes = {node.name: tuple(node.meta["tensor_meta"].shape) for node in gated.graph.module.graph.nodes
              if hasattr(node.meta.get("tensor_meta"), "shape")}  # fmt: skip
    stages: dict[tuple[int, ...], list[int]] = {}
    for i, unit in enumerate(gated.units):
        if unit.branch is not None:
            stages.setdefault(shapes[unit.branch.node], []).append(i)
    place = {i: (n + 0.5) / len(members) for members in stages.values() for n, i in enumerate(members)}
    others = uniform_width(gated)
    others = others[~np.isin(others, list(place))]
    # Every channel belongs to the narrowest plan; branches follow, from every stage's first to its last.
    return np.concatenate([others, np.array(sorted(place, key=lambda i: (place[i], i)), np.int64)])


def random_order(gated: GatedNetwork, rng: np.random.Generator) -> np.ndarray:
    """Any order: the control that tells a good part of the teacher from any part of it."""
    return rng.permutation(len(gated.units))


def _norms(gated: GatedNetwork) -> Iterator[tuple[nn.BatchNorm2d | nn.BatchNorm1d, np.ndarray]]:
    """Batch norms with scales, each with the roots of its channels."""
    for node in gated.graph.module.graph.nodes:
        if node.op != "call_module" or node.name not in gated.graph.of:
            continue
        module = gated.graph.module.get_submodule(str(node.target))
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.weight is not None:
            yield module, np.asarray(gated.graph.roots(gated.graph.of[node.name].labels))


def slim(
    gated: GatedNetwork, views: ViewBank, training: TrainingSettings, generator: torch.Generator, pull: float = 1.0
) -> None:
    """Network slimming's training (Liu et al. 2017, arXiv:1708.06519): by labels, with an L1 penalty on the scales of
    batch norms, whose `norm_order` then tells what to keep.

    The penalty is such that an average scale which nothing holds would go `pull` times its way to zero, steps and
    momentum accounted for: theirs, 1e-4 over 160 epochs, would change nothing in a short training.

    Raises:
        UsageError: no batch norm has scales.
        TrainingError: the loss is not finite; names the step.
    """
    gated.gates.requires_grad_(False)  # what they learned would not be seen in scales
    scales = [module.weight for module, _ in _norms(gated)]
    if not scales:
        raise UsageError(
            asked="network slimming", found="a network whose batch norms have no scales", next="Use another order."
        )
    way = sum(training.learning_rate_at(step) for step in range(training.steps)) / (1 - training.momentum)
    penalty = pull * float(torch.cat([scale.detach().abs() for scale in scales]).mean()) / way
    hooks = [scale.register_hook(lambda grad, scale=scale: grad + penalty * scale.detach().sign()) for scale in scales]
    try:
        train(gated, views, training, generator, method="ce")
    finally:
        for hook in hooks:
            hook.remove()
        gated.gates.requires_grad_(True)


def norm_order(gated: GatedNetwork) -> np.ndarray:
    """By the mean scale of the batch norm behind each unit's channels, branches first; channels without one count as
    average. After `slim` it is network slimming's order, without it that of the teacher as it is."""
    scale_of: dict[int, list[float]] = {}
    for module, roots in _norms(gated):
        for root, scale in zip(roots, module.weight.detach().abs().cpu().numpy(), strict=True):
            scale_of.setdefault(int(root), []).append(float(scale))
    mean = float(np.mean([s for found in scale_of.values() for s in found])) if scale_of else 1.0
    scores = [
        np.inf if unit.branch is not None else np.mean([np.mean(scale_of.get(root, [mean])) for root in unit.roots])
        for unit in gated.units
    ]
    return np.argsort(-np.array(scores), kind="stable")


def student_of(gated: GatedNetwork, mask: np.ndarray, seed: int | None) -> Part:
    """The part of the network that a mask keeps: with the weights it has, or with fresh ones of a seed."""
    part = Part(gated, mask)
    return part if seed is None else part.reset(seed)


def gated_copy(
    network: nn.Module, input_shape: Sequence[int], *, group: int = 1, branches: bool = True
) -> GatedNetwork:
    """A copy of the network with gates, all of whose weights can be trained; the network stays as it is."""
    copied = copy.deepcopy(network).requires_grad_(True)
    return GatedNetwork(copied, input_shape, group=group, branches=branches)


def kept_shares(gated: GatedNetwork, mask: np.ndarray) -> dict[str, float]:
    """Layer, or sum, → share of its units that are kept: what a picture of the student shows. Layers of a dropped
    branch keep nothing."""
    members: dict[str, list[bool]] = {}
    for unit, kept in zip(gated.units, gated.live(mask), strict=True):
        members.setdefault(unit.layer, []).append(bool(kept))
    return {layer: float(np.mean(kept)) for layer, kept in members.items()}


def jaccard(gated: GatedNetwork, one: np.ndarray, other: np.ndarray) -> float:
    """How alike two masks are: units kept by both over units kept by either, those of dropped branches left out."""
    a, b = gated.live(one), gated.live(other)
    return float((a & b).sum() / max(1, (a | b).sum()))
