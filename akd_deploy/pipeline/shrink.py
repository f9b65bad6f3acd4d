"""The whole way for a student that is a part of its teacher: gates, a budget, distillation, engines, a certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from akd_deploy.configuration import RunConfiguration
from akd_deploy.data import ViewBank
from akd_deploy.distill.methods import PROCESS
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.errors import InfeasibleBudgetError, UncoveredOperatorError
from akd_deploy.latency_table import HEADER_NAME, read_table
from akd_deploy.models.gated_network import GatedNetwork
from akd_deploy.models.onnx_from_module import quick_onnx
from akd_deploy.models.part import Part, load_part, mask_from_text, mask_text, save_part
from akd_deploy.pipeline import deliver, prepare, shipping
from akd_deploy.pipeline.choose import finished, searched_for, teach
from akd_deploy.pipeline.context import Progress, Run
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.linting import granularity_of
from akd_deploy.pipeline.probe_plan import STRETCHES, given_networks, plan_probes, stretches_plan
from akd_deploy.pipeline.stages import Stage, do_stages
from akd_deploy.pipeline.summary import (
    accuracy_parts,
    common_parts,
    limits_of,
    paired_difference,
    reported,
    winner_parts,
)
from akd_deploy.pipeline.training import SEED_OFFSET, Bed, load_bed, settings_from
from akd_deploy.pipeline.typed import typed_network
from akd_deploy.predictor.predictor import Prediction
from akd_deploy.profiling.blocks import measure_blocks
from akd_deploy.profiling.profile import measure_subjects, resumed_protocol
from akd_deploy.recipes.better_students import (
    Cost,
    GateSearchSettings,
    gated_copy,
    kept_shares,
    random_order,
    search_gates,
    uniform_depth,
    uniform_width,
    unit_costs,
    within_budget,
)
from akd_deploy.units import format_seconds, parse_latency_budget

GATE_TRAINING = TrainingSettings(steps=1_200, learning_rate=0.02)
"""Of the gated teacher, whose weights are good already."""
EXAMPLE_SHARES = (0.6, 0.4, 0.2, 0.1)
"""Of the way from the smallest part's operations to the teacher's, in the parts whose stretches are profiled."""
TRIES, TIGHTER = 4, 0.95
"""A part whose certificate does not hold untrained is followed by one for so much less, so often at most."""
EQUALLY_SLOW = 0.03
"""Relatively: a rival's median that is no further above the part's is of equal latency."""
RIVALS, NOT_SLOWER, LARGER = 6, 0.1, 1.02
"""So many rivals are measured at most; of those above the part none counts that is so much slower, relatively; where
there is none between two, the next one is looked for in steps of this factor."""


RIVAL_ORDERS: Mapping[str, Callable[[GatedNetwork], np.ndarray]] = {
    "hand_shrunk": uniform_width,
    "shallower": uniform_depth,
}
"""What a hand would do instead."""
BY_HAND = {"hand_shrunk": "the teacher narrowed evenly", "shallower": "the teacher without its last blocks"}


def arms_of(method: str, rivals: Sequence[str]) -> dict[str, str]:
    """Trainings of the report, and the method of each: the part from fresh weights by the run's method, by plain KD and
    by labels alone; from the teacher's weights; and the teacher shrunk by hand to the same latency."""
    own = {name: name for name in dict.fromkeys((method, "kd", "ce"))}
    return {**own, "inherited": method, **dict.fromkeys(rivals, method)}


def rivals_of(gated: GatedNetwork) -> list[str]:
    """Names of `RIVAL_ORDERS` that this network has."""
    has_branches = any(unit.branch is not None for unit in gated.units)
    return [name for name in RIVAL_ORDERS if name != "shallower" or has_branches]


@dataclass
class ShrinkRun(Run):
    """A run without a search space: students are parts of the teacher."""

    of_space = False

    @cached_property
    def bed(self) -> Bed:
        return load_bed(
            self.configuration,
            None,
            self.directory,
            lambda step, steps, loss: self.on_progress("training the teacher", step, steps),
        )

    @cached_property
    def gated(self) -> GatedNetwork:
        """The teacher with open gates; to be left as it is."""
        return self.gated_teacher()

    def gated_teacher(self) -> GatedNetwork:
        """A copy of the teacher with gates."""
        table, network = self.configuration.shrink, self.bed.teacher.module
        assert network is not None  # else the run would have been refused
        group = table.group or granularity_of(self.target)
        return gated_copy(network, self.bed.teacher.input_shape, group=group, branches=table.branches)

    def student(self, path: Path) -> Part:
        return load_part(path, self.gated)

    def prediction(self, results: Mapping[str, Any]) -> Prediction:
        return self.predicted(mask_from_text(results["confirm"]["mask"]))

    def predicted(self, mask: np.ndarray) -> Prediction:
        """A part's latency on the target, from its ONNX."""
        path = self.written(mask, self.directory / "candidates" / "part.onnx")
        return self.latency.predict_model(path, remember=False)

    def written(self, mask: np.ndarray, path: Path) -> Path:
        """An untrained part as the target's engine reads it."""
        shape = (self.target.batch, *self.gated.graph.input_shape)
        return typed_network(quick_onnx(Part(self.gated, mask), shape, path), self.target)

    def bound_of(self, mask: np.ndarray) -> float:
        """The least budget that a part's certificate is expected to hold for, seconds."""
        return float(self.bound_s(np.array(self.predicted(mask).upper_s)))


def stages(configuration: RunConfiguration) -> dict[str, Stage]:
    """Name → stage, in order."""
    by_process: dict[str, Stage] = {"process": process} if configuration.distill.method == PROCESS else {}
    return {
        "profile": profile,
        "teacher": prepare.teacher,
        "budget": budget,
        "gates": gates,
        "confirm": confirm,
        **by_process,
        "distill": distill,
        "export": deliver.export,
        "measure": deliver.measure,
        "bundle": deliver.bundle,
    }


def shrink(
    configuration: RunConfiguration, directory: Path, *, resume: bool = False, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Shrink the run's teacher to its budget, distil, build, measure and pack; write `summary.json` and `report.html`.

    Raises:
        UsageError: `directory` holds a run and `resume` is false, or the teacher is no network that can be gated.
        InfeasibleBudgetError: one unit in every layer is over the budget.
        AkdError: any other error of the stages; what was finished stays finished.
    """
    run, results = do_stages(ShrinkRun, configuration, directory, resume, on_progress, 1, stages(configuration))
    return reported(_summary(run, results), directory)


def _whole(run: ShrinkRun) -> np.ndarray:
    return np.ones(len(run.gated.units), bool)


def _examples(run: ShrinkRun) -> list[Path]:
    """The teacher and some of its parts, whose kernels are those that parts have."""
    rng, folder, paths = run.rng("examples"), run.directory / "candidates", []
    masks = [_whole(run)]
    is_branch = np.array([unit.branch is not None for unit in run.gated.units])
    if is_branch.any():
        # What stands on both sides of a branch then meets, as nowhere else.
        masks += [~is_branch, ~is_branch | (np.cumsum(is_branch) % 2 == 0)]
    for number, share in enumerate(EXAMPLE_SHARES):
        order = uniform_width(run.gated) if number % 2 else random_order(run.gated, rng)
        masks.append(_part_of_size(run, order, share))
    for number, mask in enumerate(masks):
        paths.append(run.written(mask, folder / f"example{number}.onnx"))
    return paths


def profile(run: ShrinkRun, _results: Mapping[str, Any]) -> dict[str, Any]:
    """Use the target's table where it covers the teacher and its parts, else measure stretches of them."""
    paths = _examples(run)

    def measure(directory: Path) -> float:
        table, seed = run.configuration.profile, run.configuration.seed
        protocol = resumed_protocol(directory, replace(STRETCHES, blocks=table.blocks))
        rows = read_table(directory).rows if (directory / HEADER_NAME).is_file() else ()
        networks = given_networks(paths, run.target.batch)
        planned = plan_probes(run.target, networks, Enough(table.probes), seed, _whole_parts(run), measured=rows)
        profiled = measure_subjects(
            run.target,
            planned.subjects,
            stretches_plan(table.probes, protocol, None, seed),
            directory,
            resume=True,
            on_model=lambda done, total: run.on_progress("profiling kernels", done, total),
        )
        return profiled.seconds + planned.seconds

    return prepare.used_or_measured(run, lambda: _share_in_domain(run, paths), 1.0, measure)


def _part_of_size(run: ShrinkRun, order: np.ndarray, share: float) -> np.ndarray:
    """The part that this order gives at a share, 0 to 1, of the way from the smallest one's operations to all."""
    smallest = within_budget(run.gated, order, lambda mask: float(mask.sum()), _layers(run))
    least, most = run.gated.macs(smallest), run.gated.macs()
    return within_budget(run.gated, order, lambda mask: float(run.gated.macs(mask)), least + share * (most - least))


def _whole_parts(run: ShrinkRun) -> list[Path]:
    """Parts of any size, measured whole: what intervals are calibrated and scored on."""
    rng, paths = run.rng("whole parts"), []
    for number in range(run.configuration.profile.networks):
        mask = _part_of_size(run, random_order(run.gated, rng), float(rng.uniform()))
        paths.append(run.written(mask, run.directory / "candidates" / f"whole{number}.onnx"))
    return paths


def _share_in_domain(run: ShrinkRun, paths: Sequence[Path]) -> float:
    try:
        return float(np.mean([run.latency.predict_model(path, remember=False).in_domain for path in paths]))
    except UncoveredOperatorError:
        return 0.0


def budget(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the budget, and check that some part of the teacher meets it."""
    relative = prepare.is_relative(run.configuration)
    teacher_s = results["teacher"]["certifiable_s"] if relative else None
    budget_s = parse_latency_budget(run.configuration.budget, teacher_s)
    smallest = within_budget(run.gated, uniform_width(run.gated), lambda mask: float(mask.sum()), _layers(run))
    least_s = run.bound_of(smallest)
    if least_s > budget_s:
        raise InfeasibleBudgetError(
            asked=f"a part of the teacher within {format_seconds(budget_s)} on {run.target.name}",
            found=f"{format_seconds(least_s)} for one unit in every layer",
            next=f"Raise the budget to at least {format_seconds(least_s)}, or search another space of students.",
            fastest_s=least_s,
            budget_s=budget_s,
        )
    return {
        "budget_s": budget_s,
        "of": "teacher" if relative else None,
        "least_s": least_s,
        "whole_s": run.bound_of(_whole(run)),
    }


def _layers(run: ShrinkRun) -> float:
    """How many units one in every layer are."""
    return float(len({unit.layer for unit in run.gated.units if unit.branch is None}))


def gates(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """Search which units to keep, the penalty in proportion to what each adds to the predicted latency."""
    shares = unit_costs(run.gated, run.bound_of)
    least_s, whole_s = results["budget"]["least_s"], results["budget"]["whole_s"]
    seconds = (whole_s - least_s) * shares / shares.sum()
    table, gated = run.configuration.shrink, run.gated_teacher()
    training = settings_from(table.training, GATE_TRAINING)
    weigh: dict[str, Cost | None] = {
        "latency": None,
        "operations": lambda mask: float(gated.macs(mask)),
        "parameters": lambda mask: float(gated.parameters_left(mask)),
    }
    found = search_gates(
        gated,
        run.bed.teacher,
        run.bed.views if table.images == "student" else _of_the_teacher(run),
        lambda mask: float(least_s + (seconds * mask).sum()),
        results["budget"]["budget_s"],
        training,
        gate_settings(run.configuration),
        torch.Generator().manual_seed(run.configuration.seed),
        weigh=weigh[table.weigh],
        on_step=lambda step, steps, loss: run.on_progress("searching gates", step, steps),
    )
    return {"order": found.order.tolist(), "last_cost_s": found.costs[-1], "units": len(run.gated.units)}


def gate_settings(configuration: RunConfiguration) -> GateSearchSettings:
    """Those of a run's search for gates.

    Raises:
        UsageError: one is out of its range.
    """
    temperature = settings_from(configuration.shrink.training, GATE_TRAINING).temperature
    return replace(GateSearchSettings(temperature=temperature), **configuration.shrink.gates.given())


def _of_the_teacher(run: ShrinkRun) -> ViewBank:
    """Views of the images that teachers learn from; a search by divergence alone does not look at their labels."""
    dataset = run.bed.dataset
    return ViewBank(dataset.teacher_train, dataset.views, run.bed.views.seed)


def confirm(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """The largest part in that order whose certificate holds when measured untrained, and of each kind that a hand
    would choose the one that is measured to be as fast."""
    budget_s = results["budget"]["budget_s"]
    order, within_s = np.array(results["gates"]["order"]), budget_s
    least_s = results["budget"]["least_s"]
    tried: list[dict[str, Any]] = []
    for number in range(TRIES):
        run.on_progress("measuring parts", number, TRIES)
        mask = within_budget(run.gated, order, run.bound_of, within_s)
        found = _certified(run, mask, f"part{number}", budget_s)
        tried.append({"within_s": within_s, "mask": mask_text(mask), **found})
        if found["certificate"]["ok"]:
            break
        within_s *= TIGHTER
    rivals = {name: _rival(run, name, tried[-1], budget_s, least_s) for name in rivals_of(run.gated)}
    return {"mask": mask_text(mask), "tried": tried, **rivals, "winner": {"arch": _description(run, mask)}}


def _rival(run: ShrinkRun, name: str, part: Mapping[str, Any], budget_s: float, least_s: float) -> dict[str, Any]:
    """The part of a kind of `RIVAL_ORDERS` that is measured to be as slow as the one that was confirmed."""
    order = RIVAL_ORDERS[name](run.gated)
    return _as_slow(
        lambda within_s: within_budget(run.gated, order, run.bound_of, max(within_s, least_s)),
        lambda mask, number: _certified(run, mask, f"{name}{number}", budget_s),
        part["within_s"],
        part["measured_s"]["median"],
    )


def _as_slow(
    part_within: Callable[[float], np.ndarray],
    certified: Callable[[np.ndarray, int], dict[str, Any]],
    within_s: float,
    latency_s: float,
) -> dict[str, Any]:
    """Of parts that a hand would choose, the quickest that is measured to be no quicker than another part and whose
    certificate holds: at equal predictions it may be the quicker one by as much as predictions are off, and the smaller
    for it. Where sizes are so coarse that it would be a tenth slower, or none holds, the nearest one.

    Args:
        part_within: the largest part that is predicted within so many seconds.
        certified: a part and a number → what it takes, and its certificate.
        within_s: to begin with.
        latency_s: the other's measured median.
    """
    tried: dict[str, dict[str, Any]] = {}
    asked_s: dict[str, float] = {}
    mask = part_within(within_s)
    for number in range(RIVALS):
        text = mask_text(mask)
        asked_s[text], tried[text] = within_s, {"mask": text, **certified(mask, number)}
        median_s = tried[text]["measured_s"]["median"]
        if latency_s <= median_s <= (1 + EQUALLY_SLOW) * latency_s:
            break
        within_s *= (1 + EQUALLY_SLOW / 2) * latency_s / median_s
        mask = part_within(within_s)
        if mask_text(mask) in tried:
            # Sizes are coarse here: what is left to try is the first one above the slowest of the quicker ones.
            quicker = [one for one in tried.values() if one["measured_s"]["median"] < latency_s]
            if not quicker:
                break
            largest = max(quicker, key=lambda one: one["measured_s"]["median"])["mask"]
            mask, within_s = _next_larger(part_within, asked_s[largest], mask_from_text(largest))
            if mask_text(mask) in tried:
                break
    held = [one for one in tried.values() if one["certificate"]["ok"]] or list(tried.values())
    above = [one for one in held if latency_s <= one["measured_s"]["median"] <= (1 + NOT_SLOWER) * latency_s]
    return min(above or held, key=lambda one: abs(log(latency_s / one["measured_s"]["median"])))


def _next_larger(
    part_within: Callable[[float], np.ndarray], within_s: float, mask: np.ndarray
) -> tuple[np.ndarray, float]:
    """The first part of more units, and what it is predicted within; this one where twice the time allows no other."""
    most_s = 2 * within_s
    while within_s < most_s:
        within_s *= LARGER
        larger = part_within(within_s)
        if larger.sum() > mask.sum():
            return larger, within_s
    return mask, within_s


def _certified(run: ShrinkRun, mask: np.ndarray, name: str, budget_s: float) -> dict[str, Any]:
    """What an untrained part takes on the target, and whether that is certified to be within the budget."""
    table = run.configuration.certificate
    path = run.written(mask, run.directory / "candidates" / f"{name}.onnx")
    protocol = shipping.certificate_protocol(table)
    measured = measure_blocks(run.target, {name: path}, protocol, run.rng(f"confirm {name}"))[name].measurement
    return {
        "measured_s": measured.statistics_s(),
        "certificate": shipping.certificate_of(measured, budget_s, table).as_dict(),
    }


def _description(run: ShrinkRun, mask: np.ndarray) -> dict[str, Any]:
    """What provenance says of a part."""
    return {"part_of": run.bed.teacher.provenance.source, "kept": kept_shares(run.gated, mask), "mask": mask_text(mask)}


def process(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """The process that students are distilled by, searched on the part from fresh weights or read from a file."""
    mask = mask_from_text(results["confirm"]["mask"])
    return searched_for(run, lambda seed: Part(run.gated, mask).reset(seed))


def measured_rivals(confirmed: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Of the rivals that were measured: name → mask of those that are other networks than the part, which are trained
    beside it, and the names of those that are the part itself."""
    masks = {name: confirmed[name]["mask"] for name in RIVAL_ORDERS if name in confirmed}
    others = {name: mask for name, mask in masks.items() if mask != confirmed["mask"]}
    return others, [name for name in masks if name not in others]


def distill(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """The long trainings of the part and of its rivals, with seeds that nothing was chosen by."""
    mask = mask_from_text(results["confirm"]["mask"])
    rivals = {name: mask_from_text(text) for name, text in measured_rivals(results["confirm"])[0].items()}
    seeds = [SEED_OFFSET + run.configuration.seed * 100 + i for i in range(run.configuration.distill.seeds)]
    arms = arms_of(run.bed.method, list(rivals))
    scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for i, seed in enumerate(seeds):
        for j, (arm, method) in enumerate(arms.items()):
            run.on_progress("training students", i * len(arms) + j, len(arms) * len(seeds))
            path = run.directory / "students" / f"{arm}-{seed}.safetensors"
            if path.is_file():
                student = finished(path, run.student)
            else:
                part = Part(run.gated, rivals.get(arm, mask))
                student = part if arm == "inherited" else part.reset(seed)
                teach(run, student, method, seed)
                save_part(part, path)
            scores[arm].append({"seed": seed, "student": path.name, **run.bed.test_scores(student)})
    # The shipped one is chosen on the tuning split: the test split is only ever reported.
    rows = [{"arm": arm, **row} for arm in (run.bed.method, "inherited") for row in scores[arm]]
    return {"scores": scores, "chosen": max(rows, key=lambda row: row["tuning_accuracy"])}


def _summary(run: ShrinkRun, results: Mapping[str, Any]) -> dict[str, Any]:
    mask, test_images = mask_from_text(results["confirm"]["mask"]), len(run.bed.dataset.test)
    accuracy = accuracy_parts(results)
    per_seed = {arm: [row["accuracy"] for row in rows] for arm, rows in results["distill"]["scores"].items()}
    method = run.bed.method
    pairs = [(method, other) for other in per_seed if other not in (method, "inherited")] + [("inherited", method)]
    paired = [{"a": a, "b": b, **paired_difference(per_seed[a], per_seed[b])} for a, b in pairs]
    again = results["measure"]["measured"][run.target.name]["remeasured"]
    _, by_hand = measured_rivals(results["confirm"])
    return {
        **common_parts(run, results),
        "winner": {
            **winner_parts(run, results, run.prediction(results)),
            "kept": kept_shares(run.gated, mask),
            "kept_whole": dict(run.gated.kept_whole),
            "digest": results["confirm"]["mask"],
            "parameters": sum(parameter.numel() for parameter in Part(run.gated, mask).parameters()),
            "macs": run.gated.macs(mask),
            "teacher_macs": run.gated.macs(),
            "arm": results["distill"]["chosen"]["arm"],
            "by_hand": by_hand,
            "accuracy": accuracy,
        },
        "accuracy": {**accuracy, "per_seed": per_seed, "paired": paired, "test_images": test_images},
        "limits": [
            *limits_of(len(per_seed[method]), test_images, run.configuration, again),
            "Gates were searched once, with one seed; of the part from fresh weights and from the teacher's, the seed "
            "that is best on the tuning split is shipped.",
            *(f"What gates keep is what one would keep by hand: {BY_HAND[name]}." for name in by_hand),
        ],
    }
