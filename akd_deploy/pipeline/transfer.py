"""A new device from a few measurements: candidates are listed, and those that tell most are measured one by one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.latency_table import HEADER_NAME, PROBE, LatencyTable, read_table, table_lock
from akd_deploy.models.published import FAMILY_OF
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.planning import Domain
from akd_deploy.pipeline.probe_plan import carried_networks, plan_probes
from akd_deploy.pipeline.typed import typed_network
from akd_deploy.predictor.fitting import MIN_POINTS
from akd_deploy.predictor.transfer_design import measure_probes
from akd_deploy.predictor.transfer_lessons import Source, plan_transfer
from akd_deploy.predictor.transfer_plan import PLAN_NAME, TransferPlan, read_plan
from akd_deploy.predictor.transferred import Item
from akd_deploy.profiling.blocks import Protocol
from akd_deploy.profiling.measured_journal import JOURNAL_NAME
from akd_deploy.profiling.preparing import ForTarget, Preparation, Subject
from akd_deploy.profiling.profile import Profiled, ProfilePlan, measure_subjects
from akd_deploy.profiling.rounds import Progress
from akd_deploy.profiling.subjects import (
    Subjects,
    WholeNetwork,
    WholeSkeleton,
    evenly,
    is_plain_data,
    model_subjects,
    space_subjects,
    written_by_itself,
)
from akd_deploy.target import Target

CANDIDATE_PROBES, CANDIDATE_NETWORKS = 240, 40
"""What probes are chosen from: as much as an ordinary profile measures. Kernel costs are fitted to what the transfer
says of all candidates, so that they, too, have to hold every operation at several sizes."""
PROBES = 10
"""Measured by default."""


@dataclass(frozen=True)
class TransferProfile:
    """What came of it: the table, the plan it was measured by, and `Profiled`'s counts over all probes."""

    table: LatencyTable
    plan: TransferPlan
    seconds: float
    planned: int
    measured: int
    disturbed: int
    torn_lines: int


def profile_transfer(
    target: Target,
    subjects: Subjects,
    sources: Mapping[str, Source],
    probes: int,
    protocol: Protocol,
    directory: Path,
    seed: int,
    *,
    resume: bool = False,
    on_prepared: Progress = lambda done, total: None,
    on_model: Progress = lambda done, total: None,
) -> TransferProfile:
    """Measure `probes` of the subjects into the table in `directory`, each chosen after those before it were measured.

    The plan, `transfer.npz`, is written first. A killed profile goes on with `resume`: whatever the table or the
    journal holds counts, and what was begun is finished first.

    Args:
        sources: name → source, as messages call them.
        on_prepared: called with (so far, all) while the candidates' kernels are listed.
        on_model: called with (so far, all) after each probe.

    Raises:
        UsageError: fewer candidates than probes, or too few of them stretches of networks.
        UncoveredOperatorError: a source never measured an operator of the candidates.
        MismatchError: what is there was measured from other sources, candidates or settings.
        AkdError: what `measure_subjects` raises.
    """
    began = time.monotonic()
    by_name = {subject.name: subject for subject in subjects.subjects}
    if resume and (directory / PLAN_NAME).is_file():
        plan = read_plan(directory)
        _check_same(plan, sources, by_name, directory)
    elif resume and ((directory / HEADER_NAME).is_file() or (directory / JOURNAL_NAME).is_file()):
        raise MismatchError(
            asked=f"to go on with a transfer in {directory}",
            found=f"measurements without a {PLAN_NAME}: an ordinary profile",
            next="Leave --transfer-from away to go on with it, or profile in another working directory.",
        )
    else:
        items = list_items(target, subjects, probes, on_prepared)
        plan = plan_transfer(sources, items, probes, np.random.default_rng(seed))
        with table_lock(directory):
            plan.save(directory)
    measure = partial(
        measure_subjects,
        target,
        plan=ProfilePlan(protocol=protocol, seed=seed),
        directory=directory,
        transfer=plan.origin,
    )
    position = {item.name: i for i, item in enumerate(plan.items)}
    done: list[Profiled] = []
    known: list[tuple[int, float]] = []
    if resume:
        done.append(measure(Subjects([], subjects.write), resume=True))  # what the journal holds goes into the table
        begun = [by_name[row.name] for row in done[-1].table.rows]
        done.append(measure(Subjects(begun, subjects.write), resume=True))
        known = [(position[row.name], row.measurement.label_s) for row in done[-1].table.rows]

    def measure_s(row: int) -> float:
        name = plan.items[row].name
        done.append(measure(Subjects([by_name[name]], subjects.write), resume=bool(done)))
        (latency_s,) = (r.measurement.label_s for r in done[-1].table.rows if r.name == name)
        on_model(len(done[-1].table.rows), probes)
        return latency_s

    measure_probes(plan.prior, measure_s, probes, np.random.default_rng(seed), plan.criterion, known=known)
    table = read_table(directory)
    lacking = sum(max(0, protocol.blocks - len(row.measurement.blocks)) for row in table.rows)
    planned = len(table.rows) * protocol.blocks
    return TransferProfile(
        table=table,
        plan=plan,
        seconds=time.monotonic() - began,
        planned=planned,
        measured=planned - lacking,
        disturbed=sum(one.disturbed for one in done),
        torn_lines=sum(one.torn_lines for one in done),
    )


def candidates(target: Target, domain: Domain, networks: int, seed: int) -> Subjects:
    """What probes of a transfer are chosen from: stretches of the domain, and whole networks of it to predict.

    Args:
        networks: how many of a space to draw.
    """
    if domain.space is not None:
        typed = ForTarget(typed_network, target.as_dict(), seed)
        return space_subjects(target, domain.space, CANDIDATE_PROBES, networks, seed, typed)
    if domain.given:
        whole = list(dict.fromkeys([*domain.given, *domain.whole]))
        return model_subjects(target, domain.given, CANDIDATE_PROBES, seed, whole)
    published, _ = carried_networks(target)
    plan = plan_probes(target, published, Enough(CANDIDATE_PROBES, least_gain=None), seed)
    stretches = [subject for subject in plan.subjects.subjects if subject.kind == PROBE]
    predicted: list[Subject] = [WholeSkeleton(FAMILY_OF[name], model) for name, model in published.items()]
    return Subjects(evenly(stretches, predicted, [WholeNetwork(path) for path in domain.whole]), written_by_itself)


def list_items(target: Target, subjects: Subjects, probes: int, on_prepared: Progress) -> list[Item]:
    """What each subject executes on the target; those that execute nothing are left out.

    Raises:
        UsageError: too few to choose `probes` from and to fit kernel costs to.
        AkdError: a model cannot be written, or its kernels cannot be listed.
    """
    unique = list({subject.name: subject for subject in subjects.subjects}.values())
    with (
        tempfile.TemporaryDirectory(prefix="akd-transfer-") as scratch,
        Preparation(target, subjects.write, Path(scratch), is_plain_data) as preparation,
    ):
        prepared = preparation.prepare(unique, {}, on_prepared)
    items = [Item(s.name, s.kind, s.family, prepared[s.name].kernels) for s in unique if prepared[s.name].kernels]
    stretches = sum(item.kind == PROBE for item in items)
    if len(items) < probes or stretches < max(MIN_POINTS, probes):
        raise UsageError(
            asked=f"{probes} probes for target {target.name}",
            found=f"{len(items)} candidates, {stretches} of them stretches of networks",
            next=f"Name more networks or a larger space: at least {max(MIN_POINTS, probes)} stretches are needed.",
        )
    return items


def _check_same(
    plan: TransferPlan, sources: Mapping[str, Source], candidates: Mapping[str, object], directory: Path
) -> None:
    asked = sorted(str(source.described) for source in sources.values())
    there = sorted(map(str, plan.sources))
    differing: Sequence[str] = []
    if asked != there:
        differing = [f"sources {', '.join(there)}"]
    elif strangers := [item.name for item in plan.items if item.name not in candidates]:
        differing = [f"{len(strangers)} candidates that are none now, {strangers[0]} the first of them"]
    if differing:
        raise MismatchError(
            asked=f"to go on with the transfer in {directory}",
            found="one that was begun with other " + "; ".join(differing),
            next="Give the same --transfer-from, --space or --onnx, and --seed, or delete the folder to start again.",
        )
