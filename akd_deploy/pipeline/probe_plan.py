"""What a profile of networks measures: stretches of them, in the order in which they tell most.

The networks are given ones, or, for a predictor of networks nobody has shown yet, the published ones that this package
carries as skeletons.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from akd_deploy.engines.denormals import DENORMALS
from akd_deploy.engines.onnx_file import read_onnx
from akd_deploy.errors import AkdError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, LatencyTable, TableRow
from akd_deploy.models.onnx_skeleton import read_skeleton, skeleton
from akd_deploy.models.operator_graphs import FAMILY as OPERATORS
from akd_deploy.models.operator_graphs import OPERATOR_GRAPHS, operator_graphs
from akd_deploy.models.published import FAMILY_OF, skeleton_path
from akd_deploy.models.rebatch import rebatched
from akd_deploy.pipeline.expected_error import Enough, ExpectedError, chosen_among
from akd_deploy.pipeline.listing import Lister
from akd_deploy.predictor.cold_weights import network_weights, tells_of_weights, weight_bytes
from akd_deploy.predictor.features import dimensions, regime
from akd_deploy.predictor.probe_choice import expected_s
from akd_deploy.profiling.blocks import PATIENCE_S, Protocol
from akd_deploy.profiling.channels_last import with_channels_last_ends
from akd_deploy.profiling.profile import ProfilePlan
from akd_deploy.profiling.stacks import Stack
from akd_deploy.profiling.subjects import Subjects, WholeNetwork, evenly, written_by_itself
from akd_deploy.profiling.windows import Window, drawn_windows, masked_windows
from akd_deploy.target import Target

STRETCHES = Protocol(
    blocks=2, extra_blocks=2, warmup_s=0.003, seconds=0.01, min_samples=15, max_samples=100, pauses_s=PATIENCE_S
)
"""For stretches of milliseconds: samples enough for a 90th percentile over all blocks, and time for many stretches.
Where two blocks disagree there are more (with a third for all, 60 networks were predicted no better: MAPE 3.55 % and
3.50 without in ONNX Runtime, 5.70 and 5.67 in OpenVINO)."""
MOST_STRETCHES = 800
"""Measured unless told otherwise: on a quiet CPU core four to five minutes, and hardly any gain expected beyond."""
GENERAL_STRETCHES = MOST_STRETCHES + OPERATOR_GRAPHS
"""Of a general profile: those, and every operator graph."""
GENERAL_MINUTES = 15.0
"""Of a general profile, unless told otherwise: three times what it takes on a quiet CPU core."""
CANDIDATES, MOST_CANDIDATES = 40, 200
"""Stretches of each network to choose from; up to the greater number until all of its costly kernels are in one."""
COSTLY = 0.002
"""Share of a network's expected time from which a kernel is costly."""
BLOCK_S = 0.06
"""What a stretch costs in each block beside its calls (seen: 50–70 ms in ONNX Runtime)."""
QUICK_STACKED, SLOW_STACKED = 2, 2
"""Stretches of each class of weights that are stacked, so that their weights outgrow the caches: those whose time
depends most on where weights come from, and ones that work on them for so long that more time than bytes passes
between uses."""
STACKED_BYTES = tuple(mib << 20 for mib in (2, 4, 8, 16, 32, 64))
"""Weights of the stacks of one stretch."""
LARGEST_STACKED_BYTES = tuple(mib << 20 for mib in (128, 256))
"""Of each class the stretch of the fewest copies is stacked higher: past a last level of cache that a machine shares,
and at a cost of seconds each."""
LEAST_WEIGHTS, MOST_WEIGHTS = 128 << 10, 2 << 20
"""Bytes of weights of one copy: with fewer a stack takes more copies than a model should have, and more are far away in
the stretch itself."""
MOST_STORED = 1.5
"""Bytes of constants in a stretch's file for one of weights: a table that is looked up, copied too, would make files
of gigabytes."""
WEIGHING = 0.8
"""Share of a stretch's expected time in kernels that have weights: others would only add noise. (Those of recurrent
operators, which they read again at every step, are near for all steps but the first.)"""
SLOW_S_PER_BYTE = (2e-10, 2e-9)
"""What slow stretches are expected to take for a byte of weights: longer ones tell nothing of weights."""

REORDER = "Reorder"
"""What OpenVINO calls a change of layout. Layouts in blocks, as in ONNX Runtime, no transpose at the ends brings."""

Counts = Mapping[Kernel, int]


@dataclass(frozen=True)
class ProbePlan:
    """Subjects in the order of measuring; `errors[i]` is the error expected of a network, relatively, once i + 1 of the
    stretches are measured in the order in which they were chosen, and `ended` why no more were (`expected_error`).
    Nothing is expected where the engine takes too long to say what stretches execute.

    `unlisted` names networks that play no part and why. Making it took `seconds`.
    """

    subjects: Subjects
    expected: ExpectedError | None
    errors: tuple[float, ...]
    ended: str
    unlisted: Mapping[str, str]
    seconds: float

    @property
    def probes(self) -> int:
        """How many stretches are to be measured, stacks of them not counted."""
        return sum(subject.kind == PROBE for subject in self.subjects.subjects)

    def within_what_is_left(self, plan: ProfilePlan) -> ProfilePlan:
        """The profile's plan less the time that this one took, but half of its time in any case."""
        if plan.within_s is None:
            return plan
        return replace(plan, within_s=max(plan.within_s / 2, plan.within_s - self.seconds))

    def error_of(self, table: LatencyTable) -> float | None:
        """The expected error now that the table holds what it does of the stretches; None where it holds none."""
        return None if self.expected is None else self.expected.of(row.name for row in table.of_kind(PROBE))


def stretches_plan(probes: int, protocol: Protocol, minutes: float | None, seed: int) -> ProfilePlan:
    """A profile of networks' stretches: so many `probes`, or what `minutes` are enough for of them."""
    return ProfilePlan(probes, 0, protocol, seed, None if minutes is None else 60 * minutes)


def given_networks(paths: Sequence[Path], batch: int) -> dict[str, onnx.ModelProto]:
    """Name → skeleton of each ONNX file."""
    networks = {}
    for path in paths:
        model = read_onnx(path, batch)
        onnx.load_external_data_for_model(model, str(path.parent))
        networks[path.stem] = skeleton(model)
    return networks


def carried_networks(target: Target) -> tuple[dict[str, onnx.ModelProto], dict[str, str]]:
    """Name → skeleton of each published network, of the target's batch; and name → why for those that have no other
    batch than 1.

    Raises:
        UsageError: the engine reads no ONNX.
    """
    if target.engine == "torch":
        raise UsageError(
            asked=f"a general profile for target {target.name}",
            found="engine torch: the networks carried here are ONNX",
            next="Name networks of your own: `--model` for each.",
        )
    networks, fixed = {}, {}
    for name in FAMILY_OF:
        try:
            networks[name] = rebatched(read_skeleton(skeleton_path(name)), target.batch)
        except UsageError as error:
            fixed[name] = error.found
    return networks, fixed


def plan_probes(
    target: Target,
    networks: Mapping[str, onnx.ModelProto],
    enough: Enough,
    seed: int,
    whole: Sequence[Path] = (),
    on_listed: Callable[[int, int], None] = lambda done, total: None,
    measured: Sequence[TableRow] = (),
    operators: Mapping[str, onnx.ModelProto] | None = None,
) -> ProbePlan:
    """The most telling stretches of the networks until they are `enough`, stacks of some, and `whole` networks.

    Args:
        networks: name → skeleton. Stretches of published ones have their family's name, others the network's.
        on_listed: called with (models so far, all) as their kernels are listed.
        measured: rows of the table that is gone on with. Stretches among them come first, others need not tell again
            what they have told.
        operators: name → skeleton of further stretches, which are all chosen where there is room for twice as many.

    Raises:
        UsageError: nothing in the networks can be measured on its own.
    """
    rng, began = np.random.default_rng(seed), time.monotonic()
    listed = Lister(target)
    candidates: dict[str, tuple[Window, Counter[Kernel]]] = {}
    wanted: list[Counter[Kernel]] = []
    unlisted: dict[str, str] = {}
    required: dict[str, None] = {}
    held: set[str] = set()
    for name, model in (operators or {}).items():
        try:
            window = Window(OPERATORS, model)
            candidates.setdefault(window.name, (window, listed(model)))
            required[window.name] = None
        except AkdError as error:
            unlisted[name] = error.found
    for done, (name, model) in enumerate(networks.items()):
        kernels: Counter[Kernel] = Counter()
        try:
            kernels = listed(model)
            wanted.append(kernels)
        except AkdError as error:
            unlisted[name] = error.found
        found = 0
        for window, counts in _candidates(FAMILY_OF.get(name, name), model, kernels, listed, rng, held):
            candidates.setdefault(window.name, (window, counts))
            found += 1
        if not found:
            unlisted.setdefault(name, "no stretch of it can be measured on its own")
        on_listed(done + 1, len(networks))
    if not candidates:
        raise UsageError(
            asked=f"stretches of {', '.join(networks)} for target {target.name}",
            found="none that can be measured on its own",
            next="Give float inputs and static shapes to the networks.",
        )
    windows, all_counts = zip(*candidates.values(), strict=True)
    seconds = [_measuring_s(counts) for counts in all_counts]
    certain = [i for i, name in enumerate(candidates) if name in required] if enough.most >= 2 * len(required) else []
    chosen, expected, ended = chosen_among(list(candidates), all_counts, wanted, enough, measured, seconds, certain)
    stretches = [windows[choice.index] for choice in chosen]
    stacks = _stacks(stretches, [all_counts[choice.index] for choice in chosen])
    own: Sequence[Any] = [window for window in stretches if window.name not in required]
    theirs: Sequence[Any] = [window for window in stretches if window.name in required]
    networks_whole: list[Any] = [WholeNetwork(path) for path in whole]
    # The operators are spread over the first stretches: a time limit cuts off the last ones.
    first = evenly(theirs, own[: len(theirs)])
    return ProbePlan(
        subjects=Subjects(evenly([*first, *own[len(theirs) :]], stacks, networks_whole), written_by_itself),
        expected=expected,
        errors=tuple(choice.error for choice in chosen),
        ended=ended,
        unlisted=unlisted,
        seconds=time.monotonic() - began,
    )


def plan_general(
    target: Target,
    enough: Enough,
    seed: int,
    whole: Sequence[Path] = (),
    on_listed: Callable[[int, int], None] = lambda done, total: None,
    measured: Sequence[TableRow] = (),
) -> ProbePlan:
    """`plan_probes` of the published networks, with the operators that others may have.

    Raises:
        UsageError: the target's engine reads no ONNX.
    """
    networks, fixed = carried_networks(target)
    operators = operator_graphs(target.batch)
    plan = plan_probes(target, networks, enough, seed, whole, on_listed, measured, operators)
    return replace(plan, unlisted={**fixed, **plan.unlisted})


def _candidates(
    family: str,
    network: onnx.ModelProto,
    kernels: Counter[Kernel],
    listed: Lister,
    rng: np.random.Generator,
    held: set[str],
) -> Iterator[tuple[Window, Counter[Kernel]]]:
    """Stretches of a network with their kernels, `CANDIDATES` of them at least and then until its costly kernels are
    in one, and one of every regime that is not in `held` yet; those that masks slow down come beside them."""
    cost_s = {kernel: count * expected_s(kernel) for kernel, count in kernels.items()}
    least_s = COSTLY * sum(cost_s.values())
    missing: set[Kernel | str] = {kernel for kernel, seconds in cost_s.items() if seconds > least_s}
    missing |= set(map(regime, kernels)) - held
    if any(kernel.attribute(DENORMALS) is not None for kernel in kernels):
        for window in masked_windows(family, network):
            with suppress(AkdError):
                yield window, listed(window.model)
    tried: set[str] = set()
    every_node = MOST_CANDIDATES + 2 * len(network.graph.node)
    for number, window in enumerate(islice(drawn_windows(family, network, rng), every_node)):
        operators = {node.op_type for node in window.model.graph.node}
        if number >= CANDIDATES and not missing:
            return
        if number >= MOST_CANDIDATES:
            # What is left is of operators that are rare in the network.
            if operators <= tried:
                continue
            tried |= operators
        try:
            counts = listed(window.model)
        except AkdError:
            continue  # a stretch that the engine does not take on its own
        told = {*counts, *map(regime, counts)}
        if number < CANDIDATES or missing & told:
            missing -= told
            held.update(map(regime, counts))
            tried |= operators
            yield window, counts
            if (without := _without_reorders(window, counts, listed)) is not None:
                yield without


def _without_reorders(window: Window, counts: Counter[Kernel], listed: Lister) -> tuple[Window, Counter[Kernel]] | None:
    """The stretch with its ends as the engine would have them, where that saves it reorders and costs it nothing."""
    reorders = sum(n for kernel, n in counts.items() if kernel.op == REORDER)
    if not reorders or (wrapped := with_channels_last_ends(window)) is None:
        return None
    try:
        left = listed(wrapped.model)
    except AkdError:
        return None
    saved = counts - left
    return (wrapped, left) if saved and not left - counts else None


def _measuring_s(counts: Counts) -> float:
    """What one block of a stretch takes."""
    latency_s = sum(count * expected_s(kernel) for kernel, count in counts.items())
    return BLOCK_S + max(STRETCHES.seconds, STRETCHES.min_samples * latency_s) + STRETCHES.warmup_s


def _stored_bytes(window: Window) -> float:
    """Bytes of all constants in a stretch's file."""
    constants = window.model.graph.initializer
    return float(
        sum(prod(one.dims) * onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize for one in constants)
    )


def _stacks(windows: Sequence[Window], counts: Sequence[Counts]) -> list[Stack]:
    """Stacks of stretches with weights of every class, of quick ones and of slow ones."""
    weights = np.array([network_weights(one) for one in counts])
    total = weights.sum(1)
    latency_s = np.array([sum(n * expected_s(kernel) for kernel, n in one.items()) for one in counts])
    weighing_s = np.array([sum(n * expected_s(k) for k, n in one.items() if weight_bytes(k).any()) for one in counts])
    per_byte_s = latency_s / np.maximum(total, 1.0)
    once = np.array([all(dimensions(kernel).kind != "recurrent" for kernel in one) for one in counts])
    telling = np.array([tells_of_weights(one) for one in counts])
    telling &= np.array([_stored_bytes(window) for window in windows]) <= MOST_STORED * total
    able = once & telling & (total >= LEAST_WEIGHTS) & (weighing_s >= WEIGHING * latency_s)
    planned: list[tuple[int, int]] = []
    for own in weights.T:
        ranked = [int(i) for i in np.argsort(per_byte_s) if own[i] > total[i] / 2 and able[i]]
        small = [i for i in ranked if total[i] <= MOST_WEIGHTS] or ranked
        quick = small[:QUICK_STACKED]
        least_s, most_s = SLOW_S_PER_BYTE
        slow = [i for i in small if i not in quick and least_s <= per_byte_s[i] <= most_s]
        slow = [slow[k] for k in np.linspace(0, len(slow) - 1, min(SLOW_STACKED, len(slow))).astype(int)]
        planned += [(i, amount) for amount in STACKED_BYTES for i in (*quick, *slow)]
        largest = sorted(quick, key=lambda i: -total[i])[:1]
        planned += [(i, amount) for amount in LARGEST_STACKED_BYTES for i in largest]
    copies = [(i, round(amount / total[i])) for i, amount in planned]
    return [Stack(windows[i], number) for i, number in copies if number > 1]
