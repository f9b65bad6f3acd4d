"""What a profile of a search space measures, with the error to expect of its networks where that can be said soon."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, TableRow
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.pipeline.expected_error import COUNT, Enough, chosen_among
from akd_deploy.pipeline.listing import Lister
from akd_deploy.pipeline.probe_plan import ProbePlan
from akd_deploy.pipeline.typed import typed_network
from akd_deploy.profiling.preparing import ForTarget
from akd_deploy.profiling.probes import Probe, space_networks
from akd_deploy.profiling.subjects import space_subjects
from akd_deploy.search_space import SearchSpace
from akd_deploy.target import Target

TARGETS = 40
"""Random networks whose errors are expected. Listing the kernels of one, or of a stretch, takes 5 to 10 ms."""
LEAST_PLANNED_S = 60.0
"""Of a time limit: an error is expected within two seconds or so."""


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
    """`space_probes` until they are `enough`, and whole `networks` to calibrate and score on.

    Where rules say what an engine executes, an error is expected of the space's networks. Where the engine itself would
    have to (quantised, or torch: up to a quarter of a second for each stretch), or everything is to be done within so
    few seconds that this is worth more measured, all probes are measured. Other arguments are those of `plan_probes`.
    """
    began = time.monotonic()
    subjects = space_subjects(
        target, space, enough.most, networks, seed, ForTarget(typed_network, target.as_dict(), seed)
    )
    hurried = within_s is not None and within_s < LEAST_PLANNED_S
    listed = Lister(target) if target.engine != "torch" and not hurried else None
    if listed is None or not listed.is_quick:
        return ProbePlan(subjects, None, (), COUNT, {}, seconds=0.0)
    rng = np.random.default_rng(seed)
    probes = [subject for subject in subjects.subjects if isinstance(subject, Probe) and subject.kind == PROBE]
    drawn = space_networks(space, TARGETS, rng)
    counts: list[Counter[Kernel]] = []
    for probe in (*probes, *drawn):
        counts.append(listed(onnx_from_layers(probe.layers, rng, target.batch)))
        on_listed(len(counts), len(probes) + len(drawn))
    names = [probe.name for probe in probes]
    chosen, expected, ended = chosen_among(
        names, counts[: len(probes)], counts[len(probes) :], enough, measured, in_order=True
    )
    kept = set(expected.names)
    return ProbePlan(
        subjects=replace(subjects, subjects=[s for s in subjects.subjects if s.kind != PROBE or s.name in kept]),
        expected=expected,
        errors=tuple(choice.error for choice in chosen),
        ended=ended,
        unlisted={},
        seconds=time.monotonic() - began,
    )
