"""What a profile measures, be it of a search space, of given networks, or of networks to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from akd_deploy.errors import UsageError
from akd_deploy.latency_table import TableRow
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.probe_plan import ProbePlan, given_networks, plan_general, plan_probes
from akd_deploy.search_space import SearchSpace
from akd_deploy.target import Target


@dataclass(frozen=True)
class Domain:
    """What a table is to predict: networks of a space, `given` ones, or, where it is neither, ones to come.

    `whole` networks are measured for calibration and scores only, as are `drawn` ones of the space.
    """

    space: SearchSpace | None
    given: tuple[Path, ...] = ()
    whole: tuple[Path, ...] = ()
    drawn: int = 0


def planned_probes(
    target: Target,
    domain: Domain,
    enough: Enough,
    seed: int,
    measured: Sequence[TableRow],
    on_listed: Callable[[int, int], None],
    within_s: float | None = None,
) -> ProbePlan:
    """The stretches that tell most of the domain, in the order of measuring.

    Args:
        measured: rows of the table that is gone on with.
        on_listed: called with (so far, all) as kernels are listed.
        within_s: seconds that are to be enough for planning and measuring.

    Raises:
        UsageError: nothing can be measured, or an error is asked for where none can be expected.
    """
    if domain.space is not None:
        from akd_deploy.pipeline.space_plan import plan_space

        plan = plan_space(target, domain.space, enough, domain.drawn, seed, measured, on_listed, within_s)
    elif domain.given and target.engine == "torch":
        from akd_deploy.pipeline.archive_plan import plan_archives

        plan = plan_archives(target, domain.given, enough, seed, domain.whole, on_listed, measured)
    elif domain.given:
        networks = given_networks(domain.given, target.batch)
        plan = plan_probes(target, networks, enough, seed, domain.whole, on_listed, measured)
    else:
        plan = plan_general(target, enough, seed, domain.whole, on_listed, measured)
    if plan.expected is None and enough.until_error is not None:
        raise UsageError(
            asked=f"a profile of target {target.name} until an expected error of {enough.until_error:.1%}",
            found="none that can be expected: the engine takes too long to say what stretches of a space execute, or "
            "the time limit is below a minute",
            next="Leave --until-error away; --probes and --minutes say how much to measure.",
        )
    return plan
