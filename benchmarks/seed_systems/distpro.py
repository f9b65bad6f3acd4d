"""DistPro's claims: does a searched process of distillation beat fixed ones in short trainings, and does its course in
time matter, or only which pathways it weighs?
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.process import Process, mean_process
from akd_deploy.distill.process_training import MULTI_STEP, ProcessSearchSettings
from akd_deploy.distill.what_and_where import WhatAndWhereSettings
from akd_deploy.errors import TrainingError
from akd_deploy.models.student import student_from_architecture
from akd_deploy.recipes.distpro import (
    PathwaySettings,
    controls_of,
    distill_by_process,
    distill_by_review,
    distill_by_what_and_where,
    fixed_processes,
    pathways_between,
    searched_process,
)
from akd_deploy.recipes.paired_seeds import holm, paired
from akd_deploy.search import REWARD_PRESETS, Score, SearchSettings, search
from akd_deploy.search_space import load_space, space_of
from akd_deploy.search_space.operations import operations
from benchmarks.seed_systems.bed_tuning import TUNING, tuned, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger, Work, cpu_seconds
from benchmarks.seed_systems.students import (
    SCORED,
    dataset_of,
    load_teacher,
    scored,
    teacher_job,
    train_student,
    train_teacher,
    views_of,
)
from benchmarks.seed_systems.tables import interval, row, section, underpowered

FINAL, SEARCH, CHOOSING = 1_000, 2_000, 3_000
"""First seeds of reported trainings, of searches of a process, and of a search of architectures; those that T, λ and
weights are tuned on begin at `TUNING`."""
TOTALS = (0.5, 1.0, 2.0, 4.0)
"""Sums of weights that every fixed process is tried with on the tuning split."""
CONTROLS = ("final", "reversed")
"""Of `controls_of`, with the learned process's sum of weights; the time mean has one of its own, and of shuffles every
seed another."""
NORMALISATION = "biased-softmax"
"""Of searches: weights add up to 1 at most, as in the paper's. What they add up to in a training is tuned, as it is for
every fixed process: what a search's sum grows to says how far one step should have gone, not how much is good."""
WEIGHTED = {"ReviewKD": ("review", TOTALS), "L2T-ww": ("what_and_where", (0.02, 0.1, 0.5))}
"""Name → its key in a job, whose value is its loss's weight beside the labels', and the weights it is tried with: of
L2T-ww the paper's 0.5 and below, as half of the trainings at 1 and at 2 ended at chance on this bed."""

DIST_GRID = tuple({"temperature": t, "kd_weight": weight} for t in (1.0, 2.0, 4.0) for weight in (0.5, 0.9))
DKD_GRID = tuple({"dkd_beta": beta} for beta in (0.5, 2.0, 8.0))

STUDENT = {
    "in_channels": 3, "stem_width": 8, "stem_stride": 2, "widths": [12, 20, 32], "strides": [1, 2, 2],
    "layers": [[1], [1], [1]], "operators": ["conv", "dw_separable"], "kernels": [3], "se_ratios": [0.0],
    "skips": ["identity"], "width_multipliers": [1.0, 1.5],
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much is trained. `shares` are of the long training's steps, of which the shorter half are trained with
    `short_seeds`; `tuning_seeds` choose settings of methods, `sum_seeds` of trainings along pathways, which are dear,
    sums of weights."""

    searches: int
    final_seeds: int
    short_seeds: int
    tuning_seeds: int
    sum_seeds: int
    shares: Sequence[float]
    steps: int
    data: Mapping[str, Any]
    transfer: Mapping[str, Any]
    teacher: Mapping[str, Any]
    search: Mapping[str, Any]
    student: Mapping[str, Any]
    trials: int = 12
    underpowered: bool = False


@dataclass
class Study:
    scale: Scale
    folder: Path
    ledger: Ledger
    tuned: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_s: dict[tuple[str, float], float] = field(default_factory=dict)
    """Of one training: by what is told of it and its share of the schedule."""

    def teacher_job(self, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return teacher_job(self.folder, data or self.scale.data, "convnet", self.scale.teacher)

    def architecture(self, operator: str = "conv", width: float = 1.0) -> Architecture:
        dataset = dataset_of(self.scale.data)
        space = load_space("mobile", {**STUDENT, "resolution": dataset.input_shape[1], "classes": dataset.classes})
        return space.architecture(
            {
                name: {"op": operator, "width": width}.get(name.split(".")[1], options[0])
                for name, options in space.choices.items()
            }
        )

    def training(self, share: float) -> dict[str, Any]:
        return {**self.scale.student, "steps": max(2, round(share * self.scale.steps))}

    def by_process(
        self, process: Process | Sequence[Process], architecture: Architecture, share: float, seeds: Sequence[int],
        what: str, score: str = "test", data: Mapping[str, Any] | None = None, *, logits: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """(seeds,) accuracies of trainings by a process, or by one for each seed; `logits` has a pathway or none."""
        each = [process] * len(seeds) if isinstance(process, Process) else process
        jobs = [
            {
                "teacher": self.teacher_job(data), "arch": architecture.as_dict(), "seed": seed,
                "training": self.training(share), "weights": by.weights.tolist(), **self.pathways(logits),
            }
            for seed, by in zip(seeds, each, strict=True)
        ]  # fmt: skip
        return self._scores(train_along, jobs, what, share, score)

    def _scores(self, work: Work, jobs: Sequence[Mapping[str, Any]], what: str, share: float, score: str) -> np.ndarray:
        results = self.ledger.results(work, jobs, f"{what} {share:g}")
        self.cpu_s[what, share] = self.ledger.cpu_s(jobs)
        return np.array([result[score] for result in results])

    def by_method(
        self, method: str, architecture: Architecture, share: float, seeds: Sequence[int], score: str = "test",
        data: Mapping[str, Any] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """(seeds,) accuracies of trainings without pathways."""
        training = self.training(share) | self.tuned.get(method, {})
        jobs = [self.student_job(method, architecture, seed, training, data) for seed in seeds]
        return self._scores(train_student, jobs, method, share, score)

    def weighted(
        self, key: str, weight: float, architecture: Architecture, share: float, seeds: Sequence[int],
        score: str = "test",
    ) -> np.ndarray:  # fmt: skip
        """(seeds,) accuracies of trainings by a method of `WEIGHTED`, its loss at a weight beside the labels'."""
        jobs = [
            {
                "teacher": self.teacher_job(), "arch": architecture.as_dict(), "seed": seed,
                "training": self.training(share), key: weight,
            }
            for seed in seeds
        ]  # fmt: skip
        return self._scores(train_along, jobs, key, share, score)

    def seeds(self, share: float) -> range:
        """Of reported trainings; of short ones, which scatter more and cost less, more."""
        shares = self.scale.shares
        is_short = list(shares).index(share) < len(shares) // 2
        return range(FINAL, FINAL + (self.scale.short_seeds if is_short else self.scale.final_seeds))

    def pathways(self, logits: bool) -> dict[str, Any]:
        """What a job says of the logits' pathway: that there is none, or the temperature that was chosen."""
        if not logits:
            return {"logits": False}
        return {name: value for name, value in self.tuned["kd"].items() if name == "temperature"}

    def tune(self, student: Architecture) -> None:
        """Choose settings of distillation without pathways, in the middle schedule. T is the logits' pathway's too."""
        training = self.training(self.scale.shares[len(self.scale.shares) // 2])

        def jobs(method: str, begun: Mapping[str, float], settings: Mapping[str, float]) -> list[dict[str, Any]]:
            return [
                self.student_job(method, student, seed, {**training, **begun, **settings})
                for seed in range(TUNING, TUNING + self.scale.tuning_seeds)
            ]

        kd = tuned_distillation(self.ledger, train_student, partial(jobs, "kd", {}), "KD, DKD and the logits' pathway")
        # Correlations do not shrink as T grows, yet T² multiplies their loss: DIST has its own.
        dist = tuned(self.ledger, train_student, DIST_GRID, partial(jobs, "dist", {}), "DIST")
        dkd = tuned(self.ledger, train_student, DKD_GRID, partial(jobs, "dkd", kd), "DKD")
        self.tuned = {"kd": kd, "dkd": {**kd, **dkd}, "dist": dist}

    def student_job(
        self, method: str, architecture: Architecture, seed: int, training: Mapping[str, Any],
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A training without pathways."""
        return {
            "data": dict(data or self.scale.data), "teachers": [] if method == "ce" else [self.teacher_job(data)],
            "arch": architecture.as_dict(), "method": method, "seed": seed, "training": dict(training),
        }  # fmt: skip


def _settings(job: Mapping[str, Any]) -> PathwaySettings:
    return PathwaySettings(
        logits=job.get("logits", True), temperature=job.get("temperature", PathwaySettings.temperature)
    )


@lru_cache(maxsize=4)
def _teacher(job: str) -> torch.nn.Module:
    module = load_teacher(json.loads(job)).module
    assert module is not None
    return module


def train_along(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train one student along pathways, by the weights of a process, by ReviewKD or by L2T-ww.

    One whose loss is no number any more has the accuracy of guessing, and `failed` says so: too great a weight is
    something to be found out, which must not end the study.
    """
    try:
        return _trained_along(job)
    except TrainingError as error:
        guessed = 1 / dataset_of(job["teacher"]["data"]).classes
        return {**dict.fromkeys(SCORED, guessed), "failed": error.found}


def _trained_along(job: Mapping[str, Any]) -> dict[str, Any]:
    data, seed = job["teacher"]["data"], job["seed"]
    teacher, dataset, views = _teacher(json.dumps(job["teacher"], sort_keys=True)), dataset_of(data), views_of(data)
    student = student_from_architecture(architecture_from_dict(job["arch"], "a job"), seed)
    training = TrainingSettings(**job["training"])
    if "review" in job:
        result = distill_by_review(student, teacher, dataset, views, job["review"], training, seed)
    elif "what_and_where" in job:
        matching = WhatAndWhereSettings(weight=job["what_and_where"])
        result, _ = distill_by_what_and_where(student, teacher, dataset, views, matching, training, seed)
    else:
        settings = _settings(job)
        names = [p.name for p in pathways_between(teacher, student, dataset.input_shape, settings, seed).pathways]
        process = Process(np.array(job["weights"]), tuple(names))
        result = distill_by_process(student, teacher, dataset, views, process, settings, training, seed)
    return {**scored(student, dataset), "training_s": result.seconds}


def search_once(job: Mapping[str, Any]) -> dict[str, Any]:
    """One search of a process."""
    data = job["teacher"]["data"]
    architecture = architecture_from_dict(job["arch"], "a job")
    began = cpu_seconds()
    process, _ = searched_process(
        lambda seed: student_from_architecture(architecture, seed),
        _teacher(json.dumps(job["teacher"], sort_keys=True)),
        dataset_of(data),
        views_of(data),
        _settings(job),
        TrainingSettings(**job["training"]),
        ProcessSearchSettings(**job["search"]),
        [job["seed"]],
    )
    return {
        "weights": process.weights.tolist(),
        "pathways": list(process.pathways),
        "seconds": cpu_seconds() - began,
    }


def run(scale: Scale, folder: Path, processes: int) -> dict[str, Any]:
    """Do what is not done yet, print the tables, and return what they say."""
    began = time.perf_counter()
    study = Study(scale, folder, Ledger(folder / "trainings.jsonl", processes))
    (teacher,) = study.ledger.results(train_teacher, [study.teacher_job()], "teacher")
    student = study.architecture()
    section(f"DistPro: {scale.searches} searches, {scale.final_seeds} seeds"
            + underpowered(scale.underpowered))  # fmt: skip
    row("teacher on the test images", f"{teacher['test']:.2%}")
    row("intervals", "over training seeds, of the mean of these searches: others would give another one")
    study.tune(student)
    each, found = _searched(study, student, logits=True)
    process = mean_process(each)
    section("A search that looks four steps further")
    ahead, found["further"] = _searched(study, student, logits=True, gradient=MULTI_STEP)
    further = mean_process(ahead)
    found["schedules"], fixed = _print_schedules(study, student, process, {"looking further": further})
    process = fixed["learned"]
    found["searches"] = _print_single_searches(study, student, each, float(process.weights.sum(axis=1).mean()))
    found["features"] = _print_features(study, student)
    found["transfer"] = _print_transfer(study, fixed)
    found["factorial"] = _print_factorial(study, process)
    print(f"\n{study.ledger.seconds / 3600:.2f} core-hours of training; {time.perf_counter() - began:.0f} s now")
    return found


def _searched(
    study: Study, student: Architecture, *, logits: bool, gradient: str = "exact"
) -> tuple[list[Process], dict[str, Any]]:
    """The process of each of the study's searches."""
    search = {"normalisation": NORMALISATION, **({} if gradient == "exact" else {"gradient": gradient})}
    jobs = [
        {
            "teacher": study.teacher_job(), "arch": student.as_dict(), "seed": SEARCH + number,
            "training": dict(study.scale.search), "search": search, **study.pathways(logits),
        }
        for number in range(study.scale.searches)
    ]  # fmt: skip
    results = study.ledger.results(search_once, jobs, "searches of a process")
    searched = [Process(np.array(result["weights"]), tuple(result["pathways"])) for result in results]
    process = mean_process(searched)
    row("a search takes", f"{np.mean([r['seconds'] for r in results]):.0f} s, of {study.scale.search['steps']} steps")
    spread = np.std([one.time_mean().weights[0] for one in searched], axis=0)
    for i, (name, mean) in enumerate(zip(process.pathways, process.time_mean().weights[0], strict=True)):
        told = f"begins {process.weights[0][i]:.3f}, ends {process.weights[-1][i]:.3f}"
        row(f"weight of {name}", f"{mean:.3f} ± {spread[i]:.3f} over searches; {told}")
    return searched, {"process": {"pathways": process.pathways, "weights": process.weights.tolist()}}


def _tuned(
    study: Study, student: Architecture, searched: Mapping[str, Process], *, logits: bool = True
) -> tuple[dict[str, Process], dict[str, float]]:
    """Every searched process and every fixed one, each with the sum of weights that is best on the tuning split in the
    middle schedule; and the weights of `WEIGHTED`, where the logits have a pathway."""
    share = study.scale.shares[len(study.scale.shares) // 2]
    seeds = range(TUNING, TUNING + study.scale.sum_seeds)
    teacher, settings = _teacher(json.dumps(study.teacher_job(), sort_keys=True)), PathwaySettings(logits=logits)
    space = space_of(student)
    between = pathways_between(teacher, student_from_architecture(student, 0), space.input_shape, settings, 0)
    assert all(process.pathways == tuple(p.name for p in between.pathways) for process in searched.values())
    best: dict[str, tuple[float, Process]] = {}
    for total in TOTALS:
        scaled = {name: process.scaled_to(total) for name, process in searched.items()}
        for name, one in {**scaled, **fixed_processes(between.pathways, total)}.items():
            scores = study.by_process(one, student, share, seeds, f"tuning {name}", "tuning", logits=logits)
            if name not in best or float(scores.mean()) > best[name][0]:
                best[name] = (float(scores.mean()), one)
    chosen = {}
    for name, (key, offered) in WEIGHTED.items() if logits else ():
        means = {w: float(study.weighted(key, w, student, share, seeds, "tuning").mean()) for w in offered}
        chosen[name] = max(means, key=lambda weight: means[weight])
    sums = {name: float(one.weights.sum(axis=1).mean()) for name, (_, one) in best.items()}
    row(
        "sums of weights chosen on the tuning split",
        ", ".join(f"{name} {total:g}" for name, total in {**sums, **chosen}.items()),
    )
    return {name: one for name, (_, one) in best.items()}, chosen


def _print_schedules(
    study: Study, student: Architecture, process: Process, more: Mapping[str, Process]
) -> tuple[dict[str, Any], dict[str, Process]]:
    """Every arm at every length of training; and the processes with their tuned sums of weights, by name.

    `more` are other searched processes by their names.
    """
    scale = study.scale
    searched = {"learned": process, **more, "time mean": process.time_mean()}
    fixed, weights = _tuned(study, student, searched)
    process = fixed["learned"]
    found: dict[str, Any] = {}
    for share in scale.shares:
        seeds = study.seeds(share)
        rngs = [np.random.default_rng([5, seed]) for seed in seeds]
        controls = [controls_of(process, rng) for rng in rngs]
        arms = {
            **{name: study.by_method(name.lower(), student, share, seeds) for name in ("CE", "KD", "DKD", "DIST")},
            **{name: study.weighted(key, weights[name], student, share, seeds) for name, (key, _) in WEIGHTED.items()},
            **{
                name: study.by_process(one, student, share, seeds, name)
                for name, one in {**fixed, **{name: controls[0][name] for name in CONTROLS}}.items()
            },
            # Of each seed another one: a single shuffle would be one pathway's story.
            "shuffled": study.by_process([each["shuffled"] for each in controls], student, share, seeds, "shuffled"),
            "random": study.by_process([process.at_random(rng) for rng in rngs], student, share, seeds, "random"),
        }
        section(f"Schedule × {share:g} ({study.training(share)['steps']} steps, {len(seeds)} seeds)")
        found[f"{share}"] = _print_against_learned(arms)
    _print_steps_to_target(study, found, ["learned", *more, "time mean", *CONTROLS])
    return found, fixed


def _print_single_searches(study: Study, student: Architecture, each: Sequence[Process], total: float) -> list[float]:
    """What intervals over seeds leave out: each search's own process, all with one sum of weights."""
    share, seeds = study.scale.shares[1], range(FINAL, FINAL + study.scale.final_seeds)
    means = [
        float(study.by_process(one.scaled_to(total), student, share, seeds, f"search {number}").mean())
        for number, one in enumerate(each)
    ]
    row(f"each search's own process, schedule × {share:g}", ", ".join(f"{mean:.2%}" for mean in means))
    return means


def _print_features(study: Study, student: Architecture) -> dict[str, Any]:
    """The same without the logits' pathway, as in the paper, where what is learned competes with nothing so near the
    labels; by searches of its own."""
    section("Features alone, the logits no pathway")
    each, found = _searched(study, student, logits=False)
    process = mean_process(each)
    fixed, _ = _tuned(study, student, {"learned": process, "time mean": process.time_mean()}, logits=False)
    more = {"reversed": fixed["learned"].reversed()}
    for share in study.scale.shares:
        seeds = study.seeds(share)
        arms = {
            name: study.by_process(one, student, share, seeds, f"features, {name}", logits=False)
            for name, one in {**fixed, **more}.items()
        }
        section(f"Features alone, schedule × {share:g} ({study.training(share)['steps']} steps)")
        found[f"{share}"] = _print_against_learned(arms)
    return found


def _print_against_learned(arms: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    differences = {name: paired(arms["learned"], values) for name, values in arms.items() if name != "learned"}
    adjusted = holm({name: one.p for name, one in differences.items()})
    row("learned", f"{arms['learned'].mean():.2%}")
    for name, one in differences.items():
        row(name, f"{arms[name].mean():.2%}, learned less this {interval(one)}, Holm p {adjusted[name]:.3f}")
    return {name: values.tolist() for name, values in arms.items()}


def _print_steps_to_target(
    study: Study, found: Mapping[str, Mapping[str, Sequence[float]]], searched: Collection[str]
) -> None:
    """The shortest schedule by which each arm is, on average, as good as plain KD is after the longest, and what a step
    of it takes; of those that follow a search's process what its searches took besides, in steps."""
    scale = study.scale
    last = scale.shares[-1]
    target = float(np.mean(found[f"{last}"]["KD"]))
    section(f"Share of the schedule until {target:.2%}, which KD has after the whole")
    searching = scale.searches * scale.search["steps"] / scale.steps
    keys = {name: key for name, (key, _) in WEIGHTED.items()} | {
        name: name.lower() for name in ("CE", "KD", "DKD", "DIST")
    }
    for name in found[f"{scale.shares[0]}"]:
        reached = [share for share in scale.shares if np.mean(found[f"{share}"][name]) >= target]
        step_s = study.cpu_s[keys.get(name, name), last] / study.training(last)["steps"]
        told = (f"{min(reached):g}" if reached else "not reached") + f", {step_s * 1e3:.0f} ms of CPU a step"
        besides = f", and {searching:.2g} of searching, of dearer steps, once for all trainings that follow"
        row(name, told + (besides if name in searched else ""))


def _print_transfer(study: Study, processes: Mapping[str, Process]) -> dict[str, Any]:
    """The process for another student and for other images, beside fixed ones with the sums of weights of its own."""
    scale, share = study.scale, study.scale.shares[1]
    seeds = range(FINAL, FINAL + scale.final_seeds)
    other = {**scale.data, **scale.transfer}
    study.ledger.results(train_teacher, [study.teacher_job(other)], "teacher of other images")
    section(f"The process elsewhere, schedule × {share:g}")
    found: dict[str, Any] = {}
    for name, architecture, data in (
        ("its own student", study.architecture(), None),
        ("a depthwise student", study.architecture("dw_separable", 1.5), None),
        ("other images", study.architecture(), other),
    ):
        arms = {
            **{
                label: study.by_process(processes[label], architecture, share, seeds, f"{label}, {name}", data=data)
                for label in ("learned", "time mean", "uniform", "logits")
            },
            "KD": study.by_method("kd", architecture, share, seeds, data=data),
            "CE": study.by_method("ce", architecture, share, seeds, data=data),
        }
        row(name, ", ".join(f"{arm} {values.mean():.2%}" for arm, values in arms.items())
            + "".join(f"; learned less {arm} {interval(paired(arms['learned'], arms[arm]))}"
                      for arm in ("KD", "uniform", "time mean")))  # fmt: skip
        found[name] = {arm: values.tolist() for arm, values in arms.items()}
    return found


def _searched_student(study: Study) -> Architecture:
    """What a search of architectures finds within half of the space's operations, rewarded as AKD is."""
    scale, space = study.scale, space_of(study.architecture())

    def macs(architecture: Architecture) -> float:
        return float(sum(step.macs for step in operations(space.layers(architecture))))

    def predict(architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        cost = np.array([macs(architecture) for architecture in architectures])
        return cost, cost

    def score(architecture: Architecture, seed: int) -> Score:
        (reward,) = study.by_method("kd", architecture, scale.shares[1], [CHOOSING + seed % 1_000], "reward")
        return Score(float(reward))

    drawn = [macs(space.sample(np.random.default_rng(seed))) for seed in range(200)]
    settings = SearchSettings(scale.trials, float(np.median(drawn)), REWARD_PRESETS["hard"], seed=0)
    return search(space, "constrained_evolution", predict, score, settings).best.architecture


def _print_factorial(study: Study, process: Process) -> dict[str, Any]:
    """Architecture × process: the study's student and one that a search has just found, each by the process that was
    searched on it, by the other's, and by KD."""
    scale, found_student = study.scale, _searched_student(study)
    section("Searched student × searched process (" + ", ".join(f"{v}" for v in found_student.choices.values()) + ")")
    searched, _ = _searched(study, found_student, logits=True)
    its = mean_process(searched)
    total = float(process.weights.sum(axis=1).mean())
    processes = {"process of the study's": process, "process of the searched one's": its.scaled_to(total)}
    seeds = range(FINAL, FINAL + scale.final_seeds)
    found: dict[str, Any] = {}
    for share in scale.shares[1:3]:
        for name, architecture in (("the study's student", study.architecture()), ("the searched", found_student)):
            arms = {
                label: study.by_process(one, architecture, share, seeds, f"{label}, {name}")
                for label, one in processes.items()
            }
            arms |= {"KD": study.by_method("kd", architecture, share, seeds)}
            own, other = list(arms.values())[:2] if name == "the study's student" else list(arms.values())[1::-1]
            row(f"{name}, schedule × {share:g}",
                ", ".join(f"{label} {values.mean():.2%}" for label, values in arms.items())
                + f"; own less other's {interval(paired(own, other))}")  # fmt: skip
            found[f"{name} {share:g}"] = {label: values.tolist() for label, values in arms.items()}
    return found
