"""What a profile of given `torch.export` archives measures: the stretches that tell most of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from akd_deploy.engines import load_engine
from akd_deploy.errors import UncoveredOperatorError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.pipeline.expected_error import Enough, chosen_among
from akd_deploy.pipeline.probe_plan import ProbePlan
from akd_deploy.profiling.subjects import Subjects, WholeNetwork, evenly, written_by_itself
from akd_deploy.target import Target

if TYPE_CHECKING:
    from akd_deploy.profiling.archive_windows import ArchiveWindow

CANDIDATES_PER_PROBE = 3
"""Stretches to choose from for each that may be measured, shared out among the networks; listing one takes 10–30 ms."""
LEAST_CANDIDATES = 20
"""Of each network: fewer leave some of its operators out."""


def plan_archives(
    target: Target,
    paths: Sequence[Path],
    enough: Enough,
    seed: int,
    whole: Sequence[Path] = (),
    on_listed: Callable[[int, int], None] = lambda done, total: None,
    measured: Sequence[TableRow] = (),
) -> ProbePlan:
    """The most telling stretches of the networks until they are `enough`, and `whole` networks.

    Arguments are those of `plan_probes`, `paths` archives of the target's batch and precision.

    Raises:
        UsageError: nothing in the networks can be measured on its own, or a file the engine does not read.
        MissingFileError, CorruptFileError: a file is not there, or no network.
    """
    from akd_deploy.engines.torch_graph import recorded_kernels
    from akd_deploy.profiling.archive_windows import archive_windows

    began, rng, engine = time.monotonic(), np.random.default_rng(seed), load_engine(target)
    share = max(LEAST_CANDIDATES, -(-CANDIDATES_PER_PROBE * enough.most // len(paths)))
    keep_views = engine.option("mode") != "cuda_graph"
    candidates: dict[str, tuple[ArchiveWindow, Counter[Kernel]]] = {}
    wanted: list[Counter[Kernel]] = []
    unlisted: dict[str, str] = {}
    for done, path in enumerate(paths):
        try:
            wanted.append(Counter(executed.kernel for executed in engine.executed_kernels(path)))
        except UncoveredOperatorError as error:
            unlisted[path.stem] = error.found
        for window in archive_windows(path, share, rng):
            listed = recorded_kernels(window.module, window.inputs, keep_views=keep_views)
            if listed:
                candidates.setdefault(window.name, (window, Counter(executed.kernel for executed in listed)))
        on_listed(done + 1, len(paths))
    if not candidates:
        raise UsageError(
            asked=f"windows of {', '.join(path.name for path in paths)}",
            found="none whose inputs are float tensors of known shape",
            next="Give static shapes to the network's inputs.",
        )
    windows, counts = zip(*candidates.values(), strict=True)
    chosen, expected, ended = chosen_among(list(candidates), counts, wanted, enough, measured)
    stretches: list[Any] = [windows[choice.index] for choice in chosen]
    return ProbePlan(
        subjects=Subjects(evenly(stretches, [WholeNetwork(path) for path in whole]), written_by_itself),
        expected=expected,
        errors=tuple(choice.error for choice in chosen),
        ended=ended,
        unlisted=unlisted,
        seconds=time.monotonic() - began,
    )
