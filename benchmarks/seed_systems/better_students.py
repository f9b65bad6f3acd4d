"""Gu & Tresp's claims: is a part of the teacher chosen by gates a better student than one shrunk by hand, or by chance?

Every student is a mask over the same gated teacher, so that budgets are equal to a unit; all are trained by the same
distillation, from fresh weights, from the teacher's, and from what a search left them with.
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
from akd_deploy.models.teacher import teacher_from_module
from akd_deploy.models.weights import read_weights
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
from akd_deploy.storage import write_atomically
from akd_deploy.target import Target, load_target
from benchmarks.seed_systems.bed_tuning import TUNING, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger, Work, cpu_seconds, key_of
from benchmarks.seed_systems.residual_network import residual_network
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
FRESH, TEACHERS, SEARCHED = "from scratch", "from the teacher's weights", "from the search's weights"
"""What a student begins with."""
REVISION = 1
"""Of searches: to be raised whenever the same settings no longer give the same search, as their results are kept."""
RANDOM, NONSENSE = "random parts", "a teacher of nonsense"


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
        self,
        mask: np.ndarray,
        begins: str,
        seed: int,
        distillation: Mapping[str, float],
        search: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            "teacher": self.teacher_job(), "group": self.scale.group, "mask": "".join(map(str, mask.astype(int))),
            "begins": begins, "seed": seed, "training": {**self.scale.student, **distillation},
            **({} if search is None else {"search": dict(search)}),
        }  # fmt: skip

    def tune(self, mask: np.ndarray) -> None:
        """Choose T and λ on one student from fresh weights, before all others are trained."""

        def jobs(settings: Mapping[str, float]) -> list[dict[str, Any]]:
            seeds = range(TUNING, TUNING + self.scale.tuning_seeds)
            return [self.student_job(mask, FRESH, seed, settings) for seed in seeds]

        self.tuned = tuned_distillation(self.ledger, train_part, jobs, "students from scratch")

    def students(
        self,
        masks: Mapping[str, Sequence[np.ndarray]],
        searches: Mapping[str, Sequence[Mapping[str, Any]]],
        what: str,
    ) -> dict[tuple[str, str], np.ndarray]:
        """(name, what it begins with) → (seeds,) test accuracies, the mean over a name's masks.

        Random parts are shared out among the seeds, so that intervals have their scatter in them.

        Args:
            searches: name → the search of each of its masks.
        """
        seeds, jobs = self.scale.final_seeds, {}
        for name, chosen in masks.items():
            for i, mask in enumerate(chosen):
                for seed in [i % seeds] if name == RANDOM else range(seeds):
                    for begins in (FRESH, TEACHERS):
                        jobs[name, begins, i, seed] = self.student_job(mask, begins, FINAL + seed, self.tuned)
                    if name in searches:
                        jobs[name, SEARCHED, i, seed] = self.student_job(
                            mask, SEARCHED, FINAL + seed, self.tuned, searches[name][i]
                        )
        results = self.ledger.results(train_part, list(jobs.values()), what)
        found: dict[tuple[str, str], dict[int, list[float]]] = {}
        for (name, begins, _, seed), result in zip(jobs, results, strict=True):
            found.setdefault((name, begins), {}).setdefault(seed, []).append(result["test"])
        return {key: np.array([np.mean(by_seed[seed]) for seed in sorted(by_seed)]) for key, by_seed in found.items()}


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
    gated = _searched(job["search"]) if job["begins"] == SEARCHED else gated_of(job["teacher"], job["group"])
    student = student_of(gated, mask, job["seed"] if job["begins"] == FRESH else None)
    generator = torch.Generator().manual_seed(job["seed"])
    bank = bank_of(data, [job["teacher"]])
    result = train(student, views_of(data), TrainingSettings(**job["training"]), generator, method="kd", teacher=bank)
    return {**scored(student, dataset_of(data)), "training_s": result.seconds}


def _weights_path(job: Mapping[str, Any]) -> Path:
    return Path(job["teacher"]["folder"]) / "searches" / f"{key_of(job)}.safetensors"


def _searched(job: Mapping[str, Any]) -> GatedNetwork:
    """The gated network as a search left it; searched again if its weights are not there."""
    path = _weights_path(job)
    if not path.is_file():
        (slim_part if "slim" in job else search_part)(job)
    gated = _copy_of(job)
    gated.load_state_dict(read_weights(path))
    return gated


def _copy_of(job: Mapping[str, Any]) -> GatedNetwork:
    module = load_teacher(job["teacher"]).module
    assert module is not None
    return gated_copy(module, load_teacher(job["teacher"]).input_shape, group=job["group"])


def _left(job: Mapping[str, Any], gated: GatedNetwork, mask: np.ndarray) -> float:
    """Keep a search's weights, and say what the part scores on the tuning images as it was left."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in gated.state_dict().items()}
    write_atomically(_weights_path(job), save(tensors))
    return float(scored(student_of(gated, mask, None), dataset_of(job["teacher"]["data"]))["tuning"])


def search_part(job: Mapping[str, Any]) -> dict[str, Any]:
    """Search gates; returns the order of units, and what was kept when the search ended. A teacher that is "nonsense"
    has fresh weights."""
    teacher, data = load_teacher(job["teacher"]), job["teacher"]["data"]
    gated = _copy_of(job)
    cost = cost_of(gated, job["cost"], job.get("unit_costs"))
    if job.get("nonsense"):
        network = residual_network(teacher.classes, job["seed"]).eval()
        teacher = teacher_from_module(network, teacher.input_shape, teacher.classes, "nonsense")
    began = cpu_seconds()
    found = search_gates(
        gated, teacher, views_of(data), cost, job["budget"], TrainingSettings(**job["training"]),
        GateSearchSettings(**job["gates"]), torch.Generator().manual_seed(job["seed"]),
    )  # fmt: skip
    seconds = cpu_seconds() - began
    mask = within_budget(gated, found.order, cost, job["budget"])
    return {
        "order": found.order.tolist(), "cost": found.costs[-1], "seconds": seconds,
        "as_left": _left(job, gated, mask),
    }  # fmt: skip


def slim_part(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the teacher as network slimming does; returns the order of units."""
    gated = _copy_of(job)
    began = cpu_seconds()
    generator = torch.Generator().manual_seed(job["seed"])
    slim(gated, views_of(job["teacher"]["data"]), TrainingSettings(**job["training"]), generator)
    seconds = cpu_seconds() - began
    _left(job, gated, np.ones(len(gated.units), bool))
    return {"order": norm_order(gated).tolist(), "seconds": seconds}


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
    study: Study,
    kind: str,
    budget: float,
    gates: Mapping[str, Any],
    unit_seconds: Sequence[float] | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    scale = study.scale
    return [
        {
            "teacher": study.teacher_job(), "group": scale.group, "cost": kind, "budget": budget,
            "training": dict(scale.search), "gates": dict(gates), "seed": SEARCH + number,
            "revision": REVISION, **more, **({} if unit_seconds is None else {"unit_costs": list(unit_seconds)}),
        }
        for number in range(scale.searches)
    ]  # fmt: skip


def _print_budget(study: Study, gated: GatedNetwork, kind: str, share: float) -> dict[str, Any]:
    """Every student within a share of the teacher's operations or parameters."""
    cost, scale = cost_of(gated, kind), study.scale
    whole = cost(np.ones(len(gated.units), bool))
    budget, what = share * whole, f"{share:.0%} of {kind}"
    slimming = [
        {
            "teacher": study.teacher_job(), "group": scale.group, "training": dict(scale.search),
            "seed": SEARCH + number, "slim": REVISION,
        }
        for number in range(scale.searches)
    ]  # fmt: skip
    searches = {
        "gates (KL)": _searches(study, kind, budget, {}),
        "gates by labels": _searches(study, kind, budget, {"kd_weight": 0.0, "ce_weight": 1.0}),
        "slimming": slimming,
    }
    if (kind, share) == ("operations", scale.budgets[len(scale.budgets) // 2]):
        searches[NONSENSE] = _searches(study, kind, budget, {}, nonsense=True)
    left = {
        name: study.ledger.results(slim_part if name == "slimming" else search_part, jobs, f"{name}, {what}")
        for name, jobs in searches.items()
    }
    rng = np.random.default_rng(11)
    width, depth = uniform_width(gated), uniform_depth(gated)
    # Half of what must go by dropping branches, the rest by width.
    between = within_budget(gated, depth, cost, (whole + budget) / 2)
    orders: dict[str, Sequence[Any]] = {
        **{name: [result["order"] for result in results] for name, results in left.items()},
        "uniform width": [width],
        "uniform depth": [depth],
        "width and depth": [np.concatenate([width[between[width]], width[~between[width]]])],
        "batch-norm scale": [norm_order(gated)],
        "cheapest first": [np.argsort(unit_costs(gated, cost), kind="stable")],
        RANDOM: [random_order(gated, rng) for _ in range(scale.random_parts)],
    }
    masks = {
        name: [within_budget(gated, np.asarray(order), cost, budget) for order in each] for name, each in orders.items()
    }
    accuracy = study.students(masks, searches, f"students, {what}")
    section(f"At {share:.0%} of the teacher's {kind} (test accuracy {FRESH} | {TEACHERS} | {SEARCHED})")
    for name, results in left.items():
        told = f"{np.mean([result['seconds'] for result in results]):.0f} s"
        if name != "slimming":
            told += f"; the part as it leaves it, tuning accuracy {np.mean([one['as_left'] for one in results]):.2%}"
        row(f"a search by {name} takes", told)
    for name, chosen in masks.items():
        kept = np.mean([cost(mask) for mask in chosen]) / whole
        told = [
            f"{accuracy[name, begins].mean():.2%}"
            for begins in (FRESH, TEACHERS, SEARCHED)
            if (name, begins) in accuracy
        ]
        row(f"{name} ({kept:.1%})", " | ".join(told))
    _print_against_gates(accuracy, [name for name in masks if name != "gates (KL)"])
    chosen = masks["gates (KL)"]
    if len(chosen) > 1:
        row(
            "parts alike (Jaccard of what they keep)",
            f"by gates {_alike(gated, chosen):.2f}, at random {_alike(gated, masks[RANDOM]):.2f}"
            + (
                f"; by gates and by a teacher of nonsense {_alike(gated, chosen, masks[NONSENSE]):.2f}"
                if NONSENSE in masks
                else ""
            ),
        )
    shares = kept_shares(gated, chosen[0])
    row("kept of each layer by the first search", ", ".join(f"{layer} {kept:.0%}" for layer, kept in shares.items()))
    return {f"{name} {begins}": values.tolist() for (name, begins), values in accuracy.items()}


def _print_against_gates(accuracy: Mapping[tuple[str, str], np.ndarray], others: Sequence[str]) -> None:
    for begins in (FRESH, TEACHERS, SEARCHED):
        differences = {
            name: paired(accuracy["gates (KL)", begins], accuracy[name, begins])
            for name in others
            if (name, begins) in accuracy
        }
        adjusted = holm({name: one.p for name, one in differences.items()})
        for name, one in differences.items():
            row(f"gates less {name}, {begins}", f"{interval(one)}, Holm p {adjusted[name]:.3f}")


def _alike(gated: GatedNetwork, masks: Sequence[np.ndarray], others: Sequence[np.ndarray] | None = None) -> float:
    """Mean likeness of all pairs of masks, or of every one with every other's."""
    if others is None:
        pairs = [jaccard(gated, masks[i], masks[j]) for i in range(len(masks)) for j in range(i)]
    else:
        pairs = [jaccard(gated, one, other) for one in masks for other in others]
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
    """Predicted seconds of the whole teacher and of a unit in every layer; the units' shares of what is between; and so
    many times a prediction a certificate asks for."""
    gated = gated_of(job["teacher"], job["group"])
    latency = _latency(job, gated)

    def cost(mask: np.ndarray) -> float:
        return predicted_s(latency, gated, mask)

    layers = float(len({unit.layer for unit in gated.units if unit.branch is None}))
    least = within_budget(gated, uniform_width(gated), lambda mask: float(mask.sum()), layers)
    shares = unit_costs(gated, cost)
    return {
        "whole_s": cost(np.ones(len(gated.units), bool)),
        "least_s": cost(least),
        "shares": (shares / shares.sum()).tolist(),
        "factor": latency.certificate_factor(CertificateTable()),
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
    # A certificate is about what is slower than the median: gates aim at a prediction that is so much less.
    searches = _searches(study, "latency", budget_s / units["factor"], {}, [units["least_s"], *seconds])
    results = study.ledger.results(search_part, searches, f"gates for {target}")
    rng = np.random.default_rng(13)
    chance = [random_order(gated, rng).tolist() for _ in range(study.scale.random_parts)]
    orders = [*(r["order"] for r in results), uniform_width(gated).tolist(), uniform_depth(gated).tolist(), *chance]
    parts = study.alone(
        parts_within, {**study.target_job(target), "budget_s": budget_s, "orders": orders}, f"parts for {target}"
    )
    kept = [mask_from_text(text) for text in parts["masks"]]
    searched = len(results)
    names = {
        "gates (KL)": slice(0, searched),
        "uniform width": slice(searched, searched + 1),
        "uniform depth": slice(searched + 1, searched + 2),
        RANDOM: slice(searched + 2, None),
    }
    masks = {name: kept[which] for name, which in names.items()}
    # The part that the predictor lets in may have a few more or less units than the search ended with.
    accuracy = study.students(masks, {}, f"students for {target}")
    section(f"Within {budget_s * 1e6:.0f} µs, {LATENCY_BUDGET:.0%} of the teacher's predicted latency on {target}")
    for name, which in names.items():
        share = np.mean([gated.macs(mask) for mask in kept[which]]) / gated.macs()
        medians = [one["median"] for one in parts["measured_s"][which]]
        row(
            f"{name} ({share:.0%} of operations)",
            f"predicted {np.mean(parts['predicted_s'][which]) * 1e6:.0f} µs, measured {np.mean(medians) * 1e6:.0f}, "
            f"{sum(parts['certified'][which])} of {len(medians)} certified; "
            f"{accuracy[name, FRESH].mean():.2%} | {accuracy[name, TEACHERS].mean():.2%}",
        )
    _print_against_gates(accuracy, list(names)[1:])
    scores = {f"{name} {begins}": values.tolist() for (name, begins), values in accuracy.items()}
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
