"""What a profile of a search space measures, with the error to expect of its networks where that can be said soon."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.pipeline.expected_error import COUNT, Enough, chosen_among
from akd_deploy.pipeline.listing import Lister
from akd_deploy.pipeline.probe_plan import ProbePlan
from akd_deploy.pipeline.typed import typed_network
from akd_deploy.profiling.preparing import ForTarget
from akd_deploy.profiling.probes import Probe, drawn_probes, probe_writer, space_networks
from akd_deploy.profiling.subjects import Subjects, evenly, space_subjects
from akd_deploy.search_space import SearchSpace
from akd_deploy.target import Target

DRAWS_PER_PROBE, LEAST_DRAWS = 1.25, 300
"""Stretches to choose from, for each that may be measured, and at least. Listing what one executes takes 5 ms."""
LEAST_PLANNED_S = 60.0
"""Planning takes two to four seconds."""
TARGETS = 40
"""Random networks whose expected errors guide the choice."""


def plan_space(
    target: Target,
    space: SearchSpace,
    enough: Enough,
    networks: int,
    seed: int,
    measured: Sequence[TableRow] = (),
    on_listed: Callable[[int, int], None] = lambda done, total: None,
    within_s: float | None = None,
) -> ProbePlan:
    """Stretches of random architectures until they are `enough`, and whole `networks` to calibrate and score on.

    They are chosen by what they tell of random networks where rules say what an engine executes. Where only the engine
    itself does (quantised, or torch: a quarter of a second a stretch), or `within_s` seconds are to be enough for
    everything and are too few to plan in, they are `space_probes`, which cover the space's operations, and no error is
    expected. Other arguments are those of `plan_probes`.
    """
    began, rng = time.monotonic(), np.random.default_rng(seed)
    typed = ForTarget(typed_network, target.as_dict(), seed)
    hurried = within_s is not None and within_s < LEAST_PLANNED_S
    listed = Lister(target) if target.engine != "torch" and not hurried else None
    if listed is None or not listed.is_quick:
        subjects = space_subjects(target, space, enough.most, networks, seed, typed)
        return ProbePlan(subjects, None, (), COUNT, {}, seconds=0.0)  # the time limit is for measuring alone
    draws = max(LEAST_DRAWS, round(DRAWS_PER_PROBE * enough.most))
    candidates, kinds = drawn_probes(space, draws, rng)
    whole = space_networks(space, networks, rng)
    targets = space_networks(space, TARGETS, rng)

    def kernels(subjects: Sequence[Probe], done: int) -> list[Counter[Kernel]]:
        result = []
        for number, subject in enumerate(subjects, start=done + 1):
            result.append(listed(onnx_from_layers(subject.layers, rng, target.batch)))
            on_listed(number, len(candidates) + len(targets))
        return result

    counts = kernels(candidates, 0)
    wanted = kernels(targets, len(candidates))
    names = [probe.name for probe in candidates]
    chosen, expected, ended = chosen_among(names, counts, wanted, enough, measured, required=kinds)
    probes = [candidates[choice.index] for choice in chosen]
    return ProbePlan(
        subjects=Subjects(evenly(probes, whole), probe_writer(target, rng, typed)),
        expected=expected,
        errors=tuple(choice.error for choice in chosen),
        ended=ended,
        unlisted={},
        seconds=time.monotonic() - began,
    )
