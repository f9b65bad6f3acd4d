"""Gu & Tresp's claims: is a part of the teacher chosen by gates a better student than one shrunk by hand, or by chance?

Every student is a mask over the same gated teacher, so that budgets are equal to a unit; all are trained by the same
distillation, from fresh weights and from the teacher's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from akd_deploy.configuration import CertificateTable
from akd_deploy.distill import TrainingSettings, train
from akd_deploy.latency_table import HEADER_NAME
from akd_deploy.models.gated_network import GatedNetwork, extract
from akd_deploy.models.onnx_from_module import onnx_from_module, quick_onnx
from akd_deploy.models.part import mask_from_text, mask_text
from akd_deploy.pipeline.latency import TargetLatency, target_latency
from akd_deploy.pipeline.shipping import certificate_of, certificate_protocol, measure_together
from akd_deploy.recipes.better_students import (
    Cost,
    GateSearchSettings,
    gated_copy,
    jaccard,
    kept_shares,
    norm_order,
    random_order,
    search_gates,
    slim,
    student_of,
    uniform_depth,
    uniform_width,
    unit_costs,
    within_budget,
)
from akd_deploy.recipes.paired_seeds import holm, paired
from akd_deploy.target import Target, load_target
from benchmarks.seed_systems.bed_tuning import TUNING, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger, Work, cpu_seconds
from benchmarks.seed_systems.students import (
    bank_of,
    dataset_of,
    load_teacher,
    scored,
    teacher_job,
    train_teacher,
    views_of,
)
from benchmarks.seed_systems.tables import interval, row, section, underpowered

BUDGETS, PARAMETER_BUDGETS = (0.5, 0.3, 0.15), (0.3,)
"""Shares of the teacher's operations, and of its parameters."""
TARGETS = ("cpu_onnxruntime_fp32", "cpu_openvino_fp32")
LATENCY_BUDGET = 0.6
"""Share of the teacher's predicted latency on each target."""
FINAL, SEARCH = 1_000, 2_000
CONTROLS = ("uniform width", "uniform depth", "width and depth", "batch-norm scale", "slimming", "gates by labels")


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    budgets: Sequence[float]
    parameter_budgets: Sequence[float]
    tuning_seeds: int
    final_seeds: int
    searches: int
    random_parts: int
    group: int
    data: Mapping[str, Any]
    teacher: Mapping[str, Any]
    search: Mapping[str, Any]
    student: Mapping[str, Any]
    targets: Sequence[str] = TARGETS
    probes: int = 200
    underpowered: bool = False


@dataclass
class Study:
    scale: Scale
    folder: Path
    ledger: Ledger
    tuned: dict[str, float] = field(default_factory=dict)

    def teacher_job(self) -> dict[str, Any]:
        return teacher_job(self.folder, self.scale.data, "resnet", self.scale.teacher)

    def target_job(self, target: str) -> dict[str, Any]:
        return {
            "teacher": self.teacher_job(), "group": self.scale.group, "target": target, "probes": self.scale.probes,
        }  # fmt: skip

    def alone(self, work: Work, job: Mapping[str, Any], what: str) -> Mapping[str, Any]:
        """What one job gives, nothing beside it; kept like a training, as another machine would measure otherwise."""
        (result,) = self.ledger.results(work, [job], what)
        return result

    def student_job(
        self, mask: np.ndarray, inherits: bool, seed: int, distillation: Mapping[str, float]
    ) -> dict[str, Any]:
        return {
            "teacher": self.teacher_job(), "group": self.scale.group, "mask": "".join(map(str, mask.astype(int))),
            "inherits": inherits, "seed": seed, "training": {**self.scale.student, **distillation},
        }  # fmt: skip

    def tune(self, mask: np.ndarray) -> None:
        """Choose T and λ on one student from fresh weights, before all others are trained."""

        def jobs(settings: Mapping[str, float]) -> list[dict[str, Any]]:
            seeds = range(TUNING, TUNING + self.scale.tuning_seeds)
            return [self.student_job(mask, False, seed, settings) for seed in seeds]

        self.tuned = tuned_distillation(self.ledger, train_part, jobs, "students from scratch")

    def students(self, masks: Mapping[str, Sequence[np.ndarray]], what: str) -> dict[tuple[str, bool], np.ndarray]:
        """(name, inherits) → (seeds,) test accuracies, the mean over a name's masks."""
        jobs = {
            (name, inherits, i, seed): self.student_job(mask, inherits, FINAL + seed, self.tuned)
            for name, chosen in masks.items()
            for inherits in (False, True)
            for i, mask in enumerate(chosen)
            for seed in range(self.scale.final_seeds)
        }
        results = self.ledger.results(train_part, list(jobs.values()), what)
        found: dict[tuple[str, bool], dict[int, list[float]]] = {}
        for (name, inherits, _, seed), result in zip(jobs, results, strict=True):
            found.setdefault((name, inherits), {}).setdefault(seed, []).append(result["test"])
        return {key: np.array([np.mean(values) for values in by_seed.values()]) for key, by_seed in found.items()}


@lru_cache(maxsize=2)
def _gated(job: str, group: int) -> GatedNetwork:
    import json

    teacher = load_teacher(json.loads(job))
    assert teacher.module is not None
    return gated_copy(teacher.module, teacher.input_shape, group=group)


def gated_of(job: Mapping[str, Any], group: int) -> GatedNetwork:
    """The teacher with open gates; to be left as it is."""
    import json

    return _gated(json.dumps(job, sort_keys=True), group)


def train_part(job: Mapping[str, Any]) -> dict[str, Any]:
    """Distil the part of a teacher that a mask keeps."""
    data = job["teacher"]["data"]
    mask = np.array(list(job["mask"]), dtype=int).astype(bool)
    student = student_of(gated_of(job["teacher"], job["group"]), mask, None if job["inherits"] else job["seed"])
    generator = torch.Generator().manual_seed(job["seed"])
    bank = bank_of(data, [job["teacher"]])
    result = train(student, views_of(data), TrainingSettings(**job["training"]), generator, method="kd", teacher=bank)
    return {**scored(student, dataset_of(data)), "training_s": result.seconds}


def search_part(job: Mapping[str, Any]) -> dict[str, Any]:
    """Search gates; returns the order of units, and what was kept when the search ended."""
    teacher = load_teacher(job["teacher"])
    assert teacher.module is not None
    gated = gated_copy(teacher.module, teacher.input_shape, group=job["group"])
    cost = cost_of(gated, job["cost"], job.get("unit_costs"))
    began = cpu_seconds()
    found = search_gates(
        gated, teacher, views_of(job["teacher"]["data"]), cost, job["budget"], TrainingSettings(**job["training"]),
        GateSearchSettings(**job["gates"]), torch.Generator().manual_seed(job["seed"]),
    )  # fmt: skip
    return {"order": found.order.tolist(), "cost": found.costs[-1], "seconds": cpu_seconds() - began}


def slim_part(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the teacher as network slimming does; returns the order of units."""
    teacher = load_teacher(job["teacher"])
    assert teacher.module is not None
    gated = gated_copy(teacher.module, teacher.input_shape, group=job["group"])
    began = cpu_seconds()
    generator = torch.Generator().manual_seed(job["seed"])
    slim(gated, views_of(job["teacher"]["data"]), TrainingSettings(**job["training"]), generator)
    return {"order": norm_order(gated).tolist(), "seconds": cpu_seconds() - began}


def cost_of(gated: GatedNetwork, kind: str, unit_seconds: Sequence[float] | None = None) -> Cost:
    """Operations, parameters, or seconds as the sum of what units were found to cost."""
    if kind == "operations":
        return lambda mask: float(gated.macs(mask))
    if kind == "parameters":
        return lambda mask: float(gated.parameters_left(mask))
    seconds = np.array(unit_seconds)
    return lambda mask: float(seconds[0] + (seconds[1:] * mask).sum())


def run(scale: Scale, folder: Path, processes: int) -> dict[str, Any]:
    """Do what is not done yet, print the tables, and return what they say."""
    began = time.perf_counter()
    study = Study(scale, folder, Ledger(folder / "trainings.jsonl", processes))
    (teacher,) = study.ledger.results(train_teacher, [study.teacher_job()], "teacher")
    gated = gated_of(study.teacher_job(), scale.group)
    section(f"Better students: parts of a ResNet of {gated.macs() / 1e6:.1f} MMACs ({len(gated.units)} units), "
            f"{scale.final_seeds} seeds{underpowered(scale.underpowered)}")  # fmt: skip
    row("teacher on the test images", f"{teacher['test']:.2%}")
    row("intervals", "over training seeds, of the parts that are named here: other searches would give others")
    row("kept whole", "; ".join(f"{why} ({count})" for why, count in gated.kept_whole.items()))
    found: dict[str, Any] = {"teacher": teacher["test"]}
    # Before parts are trained, so that nothing else is done beside what is measured.
    units = {target: study.alone(unit_latencies, study.target_job(target), f"{target}") for target in scale.targets}
    middle = scale.budgets[len(scale.budgets) // 2] * gated.macs()
    study.tune(within_budget(gated, uniform_width(gated), lambda mask: float(gated.macs(mask)), middle))
    for kind, shares in (("operations", scale.budgets), ("parameters", scale.parameter_budgets)):
        for share in shares:
            found[f"{kind} {share}"] = _print_budget(study, gated, kind, share)
    for target in scale.targets:
        found[target] = _print_latency(study, gated, target, units[target])
    print(f"\n{study.ledger.seconds / 3600:.2f} core-hours of training; {time.perf_counter() - began:.0f} s now")
    return found


def _searches(
    study: Study, kind: str, budget: float, gates: Mapping[str, Any], unit_seconds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    scale = study.scale
    return [
        {
            "teacher": study.teacher_job(), "group": scale.group, "cost": kind, "budget": budget,
            "training": dict(scale.search), "gates": dict(gates), "seed": SEARCH + number,
            **({} if unit_seconds is None else {"unit_costs": list(unit_seconds)}),
        }
        for number in range(scale.searches)
    ]  # fmt: skip


def _print_budget(study: Study, gated: GatedNetwork, kind: str, share: float) -> dict[str, Any]:
    """Every student within a share of the teacher's operations or parameters."""
    cost = cost_of(gated, kind)
    whole = cost(np.ones(len(gated.units), bool))
    budget, what = share * whole, f"{share:.0%} of {kind}"
    by_kl = study.ledger.results(search_part, _searches(study, kind, budget, {}), f"gates, {what}")
    by_labels = study.ledger.results(
        search_part, _searches(study, kind, budget, {"kd_weight": 0.0, "ce_weight": 1.0}), f"gates by labels, {what}"
    )
    slimmed = study.ledger.results(
        slim_part,
        [
            {
                "teacher": study.teacher_job(), "group": study.scale.group, "training": dict(study.scale.search),
                "seed": SEARCH + number, "slim": True,
            }
            for number in range(study.scale.searches)
        ],
        "network slimming",
    )  # fmt: skip
    rng = np.random.default_rng(11)
    width, depth = uniform_width(gated), uniform_depth(gated)
    # Half of what must go by dropping branches, the rest by width.
    between = within_budget(gated, depth, cost, (whole + budget) / 2)
    both = np.concatenate([width[between[width]], width[~between[width]]])
    masks = {
        "gates (KL)": [within_budget(gated, r["order"], cost, budget) for r in by_kl],
        "gates by labels": [within_budget(gated, r["order"], cost, budget) for r in by_labels],
        "uniform width": [within_budget(gated, width, cost, budget)],
        "uniform depth": [within_budget(gated, depth, cost, budget)],
        "width and depth": [within_budget(gated, both, cost, budget)],
        "batch-norm scale": [within_budget(gated, norm_order(gated), cost, budget)],
        "slimming": [within_budget(gated, np.array(r["order"]), cost, budget) for r in slimmed],
        "random parts": [
            within_budget(gated, random_order(gated, rng), cost, budget) for _ in range(study.scale.random_parts)
        ],
    }
    accuracy = study.students(masks, f"students, {what}")
    section(f"At {share:.0%} of the teacher's {kind} (test accuracy from scratch | with inherited weights)")
    for name, chosen in masks.items():
        kept = np.mean([cost(mask) for mask in chosen]) / whole
        row(f"{name} ({kept:.1%})", f"{accuracy[name, False].mean():.2%} | {accuracy[name, True].mean():.2%}")
    found: dict[str, Any] = {
        f"{n} {'inherited' if i else 'scratch'}": values.tolist() for (n, i), values in accuracy.items()
    }
    for inherits in (False, True):
        differences = {
            name: paired(accuracy["gates (KL)", inherits], accuracy[name, inherits])
            for name in (*CONTROLS, "random parts")
        }
        adjusted = holm({name: one.p for name, one in differences.items()})
        for name, one in differences.items():
            row(
                f"gates less {name}, {'inherited' if inherits else 'from scratch'}",
                f"{interval(one)}, Holm p {adjusted[name]:.3f}",
            )
    chosen = masks["gates (KL)"]
    if len(chosen) > 1:
        pairs = [jaccard(gated, chosen[i], chosen[j]) for i in range(len(chosen)) for j in range(i)]
        row(
            "searches alike (Jaccard of what they keep)",
            f"{np.mean(pairs):.2f}; random parts {_random_alike(gated, masks['random parts']):.2f}",
        )
    shares = kept_shares(gated, chosen[0])
    row("kept of each layer by the first search", ", ".join(f"{layer} {kept:.0%}" for layer, kept in shares.items()))
    return found


def _random_alike(gated: GatedNetwork, masks: Sequence[np.ndarray]) -> float:
    pairs = [jaccard(gated, masks[i], masks[j]) for i in range(len(masks)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else float("nan")


def predicted_s(latency: TargetLatency, gated: GatedNetwork, mask: np.ndarray) -> float:
    """The part's predicted latency on a target, seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        return latency.predict_model(_written(latency.target, gated, mask, Path(scratch)), remember=False).latency_s


def _written(target: Target, gated: GatedNetwork, mask: np.ndarray, folder: Path) -> Path:
    return quick_onnx(extract(gated, mask), (target.batch, *gated.graph.input_shape), folder / "part.onnx")


def _latency(job: Mapping[str, Any], gated: GatedNetwork) -> TargetLatency:
    """A target's predictor; its table of the teacher's parts is measured first where there is none."""
    directory = Path(job["teacher"]["folder"]) / "latency_tables" / job["target"]
    if not (directory / HEADER_NAME).is_file():
        _profile(gated, job["target"], directory, job["probes"])
    return target_latency(load_target(job["target"]), directory)


def unit_latencies(job: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted seconds of the whole teacher and of a unit in every layer; the units' shares of what is between."""
    gated = gated_of(job["teacher"], job["group"])
    latency = _latency(job, gated)

    def cost(mask: np.ndarray) -> float:
        return predicted_s(latency, gated, mask)

    layers = float(len({unit.layer for unit in gated.units}))
    least = within_budget(gated, uniform_width(gated), lambda mask: float(mask.sum()), layers)
    shares = unit_costs(gated, cost)
    return {
        "whole_s": cost(np.ones(len(gated.units), bool)),
        "least_s": cost(least),
        "shares": (shares / shares.sum()).tolist(),
    }


def parts_within(job: Mapping[str, Any]) -> dict[str, Any]:
    """The largest part that each order of units gives within a latency budget, all measured together and certified."""
    gated = gated_of(job["teacher"], job["group"])
    latency, table = _latency(job, gated), CertificateTable()

    def cost(mask: np.ndarray) -> float:
        return predicted_s(latency, gated, mask)

    # A certificate is about what is slower than the median: the budget of predictions is so much less.
    within_s = job["budget_s"] / latency.certificate_factor(table)
    masks = [within_budget(gated, np.array(order), cost, within_s) for order in job["orders"]]
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for number, mask in enumerate(masks):
            (Path(scratch) / str(number)).mkdir()
            paths[f"{number}"] = (latency.target, _written(latency.target, gated, mask, Path(scratch) / f"{number}"))
        measured = measure_together(paths, certificate_protocol(table), np.random.default_rng(0))
    found = [measured[name].measurement for name in paths]
    return {
        "masks": [mask_text(mask) for mask in masks],
        "predicted_s": [cost(mask) for mask in masks],
        "measured_s": [one.statistics_s() for one in found],
        "certified": [certificate_of(one, job["budget_s"], table).ok for one in found],
    }


def _print_latency(study: Study, gated: GatedNetwork, target: str, units: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the penalty in proportion to predicted latency, on one target."""
    budget_s = LATENCY_BUDGET * units["whole_s"]
    seconds = ((units["whole_s"] - units["least_s"]) * np.array(units["shares"])).tolist()
    searches = _searches(study, "latency", budget_s, {}, [units["least_s"], *seconds])
    results = study.ledger.results(search_part, searches, f"gates for {target}")
    rng = np.random.default_rng(13)
    chance = [random_order(gated, rng).tolist() for _ in range(study.scale.searches)]
    orders = [*(r["order"] for r in results), uniform_width(gated).tolist(), uniform_depth(gated).tolist(), *chance]
    parts = study.alone(
        parts_within, {**study.target_job(target), "budget_s": budget_s, "orders": orders}, f"parts for {target}"
    )
    kept = [mask_from_text(text) for text in parts["masks"]]
    searched = len(results)
    names = {
        "gates (KL), latency": slice(0, searched),
        "uniform width": slice(searched, searched + 1),
        "uniform depth": slice(searched + 1, searched + 2),
        "random parts": slice(searched + 2, None),
    }
    accuracy = study.students({name: kept[which] for name, which in names.items()}, f"students for {target}")
    section(f"Within {budget_s * 1e6:.0f} µs, {LATENCY_BUDGET:.0%} of the teacher's predicted latency on {target}")
    for name, which in names.items():
        share = np.mean([gated.macs(mask) for mask in kept[which]]) / gated.macs()
        medians = [one["median"] for one in parts["measured_s"][which]]
        row(
            f"{name} ({share:.0%} of operations)",
            f"predicted {np.mean(parts['predicted_s'][which]) * 1e6:.0f} µs, measured {np.mean(medians) * 1e6:.0f}, "
            f"{sum(parts['certified'][which])} of {len(medians)} certified; "
            f"{accuracy[name, False].mean():.2%} | {accuracy[name, True].mean():.2%}",
        )
    for inherits in (False, True):
        for name in list(names)[1:]:
            difference = paired(accuracy["gates (KL), latency", inherits], accuracy[name, inherits])
            row(f"gates less {name}, {'inherited' if inherits else 'from scratch'}", interval(difference))
    scores = {f"{n} {'inherited' if i else 'scratch'}": values.tolist() for (n, i), values in accuracy.items()}
    return {"budget_s": budget_s, **parts, **scores}


def _profile(gated: GatedNetwork, target: str, directory: Path, probes: int) -> None:
    """Measure stretches of the teacher and of some of its parts on a target."""
    from akd_deploy.pipeline.expected_error import Enough
    from akd_deploy.pipeline.probe_plan import STRETCHES, given_networks, plan_probes, stretches_plan
    from akd_deploy.profiling.profile import measure_subjects

    rng, loaded = np.random.default_rng(3), load_target(target)
    print(f"profiling {target} …")
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for number, share in enumerate((1.0, 0.6, 0.4, 0.25, 0.15)):
            order = uniform_width(gated) if number % 2 == 0 else random_order(gated, rng)
            mask = within_budget(gated, order, lambda mask: float(gated.macs(mask)), share * gated.macs())
            path = Path(scratch) / f"part{number}.onnx"
            paths.append(onnx_from_module(extract(gated, mask), (loaded.batch, *gated.graph.input_shape), path))
        planned = plan_probes(loaded, given_networks(paths, loaded.batch), Enough(probes), 0, paths)
        plan = stretches_plan(probes, STRETCHES, None, 0)
        measure_subjects(
            loaded, planned.subjects, plan, directory, resume=directory.is_dir(), on_model=lambda done, total: None
        )
