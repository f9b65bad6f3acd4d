"""Oracle-KD's claims: does learning from those that are right beat the mean, and does a searched student beat its
ensemble?

Four regimes of teachers: skewed ones, which know different things; alike ones; ones that learned from noisy labels,
where being right is partly luck and the oracle is expected to fail; and, as in the paper, students of the same kind
that learned from the student's images, which are what an ensemble's growth and a search are judged by. T and λ are
chosen once in each regime, for mean KD, and β of the two methods between mean and oracle: on the tuning split, with
seeds of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.configuration import METHODS_OF_BETA
from akd_deploy.distill import TrainingSettings, ensemble_statistics
from akd_deploy.paired_accuracy import paired_accuracy_loss
from akd_deploy.recipes.oracle_kd import (
    BETAS,
    AddOnBed,
    choose_beta,
    memory_bytes,
    memory_limit,
    random_add_ons,
    search_add_ons,
    wider_backbone,
)
from akd_deploy.recipes.paired_seeds import holm, kendall, paired, unpaired
from akd_deploy.search.shared_weights import Judged, SharedSearchSettings
from akd_deploy.search_space import space_of
from akd_deploy.search_space.augmented import AugmentedSpace
from benchmarks.seed_systems.bed_tuning import TUNING, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger, cpu_seconds
from benchmarks.seed_systems.students import (
    bank_of,
    dataset_of,
    load_teacher,
    own_kind_job,
    teacher_job,
    train_student,
    train_teacher,
    views_of,
)
from benchmarks.seed_systems.tables import interval, row, section, underpowered

OWN_KIND = "of the student's kind"
REGIMES: Mapping[str, tuple[float, float]] = {
    "skewed": (0.8, 0.0), "alike": (0.0, 0.0), "noisy labels": (0.0, 0.3), OWN_KIND: (0.0, 0.0),
}  # fmt: skip
"""Regime → skew of the teachers, share of wrong labels to learn from."""
METHODS = ("ce", "kd", "mean-logit", "majority-vote", "oracle", *METHODS_OF_BETA)
SWEPT = SEARCHED = OWN_KIND
"""The regimes in which the ensemble grows, and in which add-ons are searched for."""
SEARCH_METHODS = ("ce", "kd", "oracle")
"""Of searches and of trainings, crossed."""
FINAL, SEARCH = 1_000, 2_000
"""First seeds of trainings that are reported, and of searches; those that choose T, λ and β begin at `TUNING`."""
MEMORY = 1.6
"""Most bytes of a student with add-ons, in those of its backbone."""
REVISION = 1
"""Of searches: to be raised whenever the same settings no longer give the same search, as their results are kept."""
AT_LEAST = 0.8
"""Of that, random add-ons have at least so much."""

BACKBONE = {
    "in_channels": 3, "stem_width": 8, "stem_stride": 2, "widths": [12, 24], "strides": [1, 2], "depths": [1, 2],
    "backbone": "conv",
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much is trained: `searched_seeds` of every network that a search found, `random_seeds` of those at random. A
    search trains the backbone first, then a `round` at a time; of its last candidates so many are `trained` by
    themselves, as students are, and the one with the best reward is what it found. `more_limits` are backbones and
    limits of memory, in their own, beside `MEMORY`, with `more_searches` and `more_random` networks."""

    final_seeds: int
    choosing_seeds: int
    members: int
    sweep: Sequence[int]
    data: Mapping[str, Any]
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    round: Mapping[str, Any]
    first: Mapping[str, Any]
    search: Mapping[str, int]
    trained: int
    searches: int
    searched_seeds: int
    random_add_ons: int
    random_seeds: int
    more_limits: Sequence[tuple[str, float]]
    more_searches: int
    more_random: int
    regimes: Sequence[str] = tuple(REGIMES)
    underpowered: bool = False


@dataclass
class Study:
    scale: Scale
    folder: Path
    ledger: Ledger
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    tuned: dict[str, dict[str, float]] = field(default_factory=dict)

    def data(self, regime: str) -> dict[str, Any]:
        return {**self.scale.data, "label_noise": REGIMES[regime][1]}

    def teachers(self, regime: str, members: int | None = None) -> list[dict[str, Any]]:
        skew = REGIMES[regime][0]
        total, data, training = self.scale.members, self.data(regime), self.scale.teacher
        if regime == OWN_KIND:
            backbone = self.space().backbone()
            return [
                own_kind_job(self.folder, data, backbone, self.scale.student, member)
                for member in range(members or total)
            ]
        return [
            teacher_job(self.folder, data, "convnet", training, member, total, skew)
            for member in range(members or total)
        ]

    def space(self, backbone: str = "conv") -> AugmentedSpace:
        dataset = dataset_of(self.data("alike"))
        return AugmentedSpace(
            {**BACKBONE, "backbone": backbone, "resolution": dataset.input_shape[1], "classes": dataset.classes}
        )

    def training(self, regime: str, method: str, lengths: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings of trainings by a method: those of labels alone have no T and λ."""
        return dict(lengths or self.scale.student) | ({} if method == "ce" else self.tuned[regime])

    def tune(self, regime: str, architecture: Architecture) -> None:
        """Choose T and λ for a regime, before anything else is trained in it."""

        def jobs(settings: Mapping[str, float]) -> list[dict[str, Any]]:
            return [
                {
                    "data": self.data(regime), "teachers": self.teachers(regime), "arch": architecture.as_dict(),
                    "method": "kd", "seed": seed, "training": {**self.scale.student, **settings},
                }
                for seed in range(TUNING, TUNING + self.scale.choosing_seeds)
            ]  # fmt: skip

        self.tuned[regime] = tuned_distillation(self.ledger, train_student, jobs, f"{regime} teachers")

    def scores(
        self,
        regime: str,
        architecture: Architecture,
        method: str,
        what: str,
        *,
        members: int | None = None,
        beta: float | None = None,
        seeds: int | None = None,
        predictions: bool = False,
    ) -> list[Mapping[str, Any]]:
        """Results of the reported seeds, or of so many of them."""
        training = self.training(regime, method) | ({"oracle_beta": beta} if beta is not None else {})
        jobs = [
            {
                "data": self.data(regime), "teachers": self.teachers(regime, members) if method != "ce" else [],
                "arch": architecture.as_dict(), "method": method, "seed": FINAL + seed, "training": training,
                **({"predictions": True} if predictions else {}),
            }
            for seed in range(seeds or self.scale.final_seeds)
        ]  # fmt: skip
        return self.ledger.results(train_student, jobs, what)

    def beta(self, regime: str, method: str, architecture: Architecture) -> tuple[float, dict[float, float]]:
        """A method's, chosen on the tuning split, with seeds that nothing reported uses."""

        def job(beta: float, seed: int) -> dict[str, Any]:
            return {
                "data": self.data(regime), "teachers": self.teachers(regime), "arch": architecture.as_dict(),
                "method": method, "seed": seed,
                "training": {**self.training(regime, method), "oracle_beta": beta},
            }  # fmt: skip

        def score(settings: TrainingSettings, seed: int) -> float:
            jobs = [job(settings.oracle_beta, seed)]
            return float(self.ledger.results(train_student, jobs, f"β of {method}, {regime}")[0]["tuning"])

        seeds = range(TUNING, TUNING + self.scale.choosing_seeds)
        # All at once beforehand: one after the other would leave processes idle.
        self.ledger.results(train_student, [job(beta, seed) for beta in BETAS for seed in seeds], f"β of {method}")
        return choose_beta(score, TrainingSettings(**self.training(regime, method)), seeds)


def run(scale: Scale, folder: Path, processes: int) -> dict[str, Any]:
    """Do what is not done yet, print the tables, and return what they say."""
    began = time.perf_counter()
    study = Study(scale, folder, Ledger(folder / "trainings.jsonl", processes))
    space = study.space()
    section(f"Oracle-KD: {scale.members} teachers, {scale.final_seeds} paired seeds"
            + underpowered(scale.underpowered))  # fmt: skip
    row("intervals", "over training seeds, of these teachers, searches and add-ons")
    found: dict[str, Any] = {"regimes": {}}
    for regime in scale.regimes:
        study.ledger.results(train_teacher, study.teachers(regime), f"teachers, {regime}")
        found["regimes"][regime] = _print_regime(study, space, regime)
    found["sweep"] = _print_sweep(study, space)
    found["search"] = _print_search(study, space)
    found["memory"] = _print_memory(study)
    print(f"\n{study.ledger.seconds / 3600:.2f} core-hours of training; {time.perf_counter() - began:.0f} s now")
    return found


def _ensemble_logits(study: Study, regime: str, members: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(teachers, images, classes) logits of the test split, and its labels."""
    test = dataset_of(study.data(regime)).test
    images = torch.tensor(test.images)
    logits = torch.stack([load_teacher(job).logits(images) for job in study.teachers(regime, members)])
    return logits, torch.tensor(test.labels)


def _print_regime(study: Study, space: AugmentedSpace, regime: str) -> dict[str, Any]:
    section(f"Teachers: {regime}")
    bank = bank_of(study.data(regime), study.teachers(regime))
    assert bank is not None
    views = views_of(study.data(regime))
    labels = torch.tensor(np.tile(views.split.labels, views.views))
    on_views = ensemble_statistics(torch.tensor(bank.logits).flatten(1, 2).float(), labels)
    on_test = ensemble_statistics(*_ensemble_logits(study, regime))
    row("members alone on test images", ", ".join(f"{share:.1%}" for share in on_test.members))
    row(
        "together: mean probability, mean logit, vote; some member right",
        f"{on_test.mean_probability:.1%}, {on_test.mean_logit:.1%}, {on_test.majority_vote:.1%}; {on_test.oracle:.1%}",
    )
    row(
        "of the training views exactly 0, 1, … members are right", ", ".join(f"{share:.1%}" for share in on_views.right)
    )
    backbone = space.backbone()
    study.tune(regime, backbone)
    betas: dict[str, float] = {}
    for method in METHODS_OF_BETA:
        betas[method], means = study.beta(regime, method, backbone)
        told = ", ".join(f"{beta:g}: {mean:.2%}" for beta, mean in means.items())
        row(f"β of {method}", f"{betas[method]:g} (tuning accuracy {told})")
    scores = {
        method: [
            result["test"]
            for result in study.scores(regime, backbone, method, f"{method}, {regime}", beta=betas.get(method))
        ]
        for method in METHODS
    }
    differences = {method: paired(scores[method], scores["kd"]) for method in METHODS if method != "kd"}
    adjusted = holm({method: one.p for method, one in differences.items()})
    for method in METHODS:
        told = f"{np.mean(scores[method]):.2%}"
        if method != "kd":
            told += f", less mean KD {interval(differences[method])}, Holm p {adjusted[method]:.3f}"
        row(method, told)
    best = max(("kd", "oracle"), key=lambda method: float(np.mean(scores[method])))
    for method in METHODS_OF_BETA:
        row(f"{method} less the better of both ({best})", interval(paired(scores[method], scores[best])))
    return {
        "betas": betas, "on_views": on_views.as_dict(), "on_test": on_test.as_dict(),
        "scores": {method: list(map(float, values)) for method, values in scores.items()},
    }  # fmt: skip


def _print_sweep(study: Study, space: AugmentedSpace) -> dict[int, Any]:
    """The gap between teacher and student as the ensemble grows, of members of the student's kind that differ by chance
    alone."""
    regime, backbone, found = SWEPT, space.backbone(), {}
    study.ledger.results(train_teacher, study.teachers(regime), f"teachers, {regime}")
    section(f"As the ensemble grows ({regime})")
    if regime not in study.tuned:
        study.tune(regime, backbone)
    for members in study.scale.sweep:
        teacher = ensemble_statistics(*_ensemble_logits(study, regime, members)).mean_probability
        accuracy = {
            method: np.array(
                [r["test"] for r in study.scores(regime, backbone, method, f"{members} teachers", members=members)]
            )
            for method in ("kd", "oracle")
        }
        gaps = {method: paired(0 * values + teacher, values) for method, values in accuracy.items()}
        told = [f"by {m} {accuracy[m].mean():.2%} (behind it by {interval(gap)})" for m, gap in gaps.items()]
        row(f"{members} teachers", f"ensemble {teacher:.2%}; student {', '.join(told)}")
        found[members] = {"teacher": teacher, **{method: values.tolist() for method, values in accuracy.items()}}
    least, most = (found[members] for members in (study.scale.sweep[0], study.scale.sweep[-1]))
    for method in ("kd", "oracle"):
        gaps = [one["teacher"] - np.array(one[method]) for one in (most, least)]
        row(f"the gap grows from the fewest teachers to the most, {method}", interval(paired(*gaps)))
    return found


def search_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """One search of add-ons in a process of its own; returns what it found and what it took."""
    space = AugmentedSpace(job["space"])
    bank = bank_of(job["data"], job["teachers"])
    assert bank is not None
    bed = AddOnBed(views_of(job["data"]), bank, dataset_of(job["data"]).reward_val)
    limits = [memory_limit(space, job["most_bytes"])]
    began = cpu_seconds()
    result, _ = search_add_ons(
        space,
        bed,
        job["method"],
        TrainingSettings(**job["training"]),
        limits,
        SharedSearchSettings(**job["search"]),
        job["seed"],
        backbone=TrainingSettings(**job["first"]),
    )
    last: dict[str, Judged] = {}
    for one in sorted(result.last, key=lambda one: -one.reward):
        last.setdefault(space.network_digest(one.architecture), one)
    own = {"data": job["data"], "teachers": job["teachers"] if job["method"] != "ce" else [], "method": job["method"]}
    tried = [
        (train_student({**own, "arch": one.architecture.as_dict(), "seed": job["seed"], "training": job["own"]}), one)
        for one in list(last.values())[: job["trained"]]
    ]
    trained, best = max(tried, key=lambda pair: float(pair[0]["reward"]))
    return {
        "arch": best.architecture.as_dict(), "reward": trained["reward"], "shared": best.reward,
        "refused": result.refused, "bytes": best.costs["memory"], "seconds": cpu_seconds() - began,
        "rewards": [[one["reward"], other.reward] for one, other in tried],
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Searched:
    """What searches by each method found within so many bytes, what they took, and controls of equal memory."""

    space: AugmentedSpace
    most: float
    found: Mapping[str, Sequence[Architecture]]
    controls: Mapping[str, Sequence[Architecture]]
    results: Sequence[Mapping[str, Any]]

    @property
    def networks(self) -> dict[str, Sequence[Architecture]]:
        return {**{f"searched by {method}": each for method, each in self.found.items()}, **self.controls}


RANDOM = "random add-ons"


def _searched(
    study: Study, space: AugmentedSpace, times: float, methods: Sequence[str], searches: int, at_random: int
) -> _Searched:
    """Searches within `times` the backbone's memory."""
    scale, regime = study.scale, SEARCHED
    most = times * memory_bytes(space, space.backbone())
    jobs = [
        {
            "space": dict(space.settings), "data": study.data(regime), "teachers": study.teachers(regime),
            "method": method, "most_bytes": most, "training": study.training(regime, method, scale.round),
            "first": study.training(regime, method, scale.first), "trained": scale.trained,
            "own": study.training(regime, method), "search": dict(scale.search), "seed": SEARCH + number,
            "revision": REVISION,
        }
        for method in methods
        for number in range(searches)
    ]  # fmt: skip
    results = study.ledger.results(search_job, jobs, f"searches of add-ons, {space.settings['backbone']} × {times:g}")
    found: dict[str, list[Architecture]] = {}
    for result, job in zip(results, jobs, strict=True):
        found.setdefault(job["method"], []).append(architecture_from_dict(result["arch"], "a search's result"))
    controls = {
        "backbone": [space.backbone()],
        "uniformly wider": [wider_backbone(space, most)],
        RANDOM: random_add_ons(space, [memory_limit(space, most)], AT_LEAST, at_random, study.rng),
    }
    return _Searched(space, most, found, controls, results)


def _accuracies(study: Study, searched: _Searched, methods: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """(name, method) → test accuracies: of a network alone (seeds,), of several (networks,) means over their seeds; a
    row is printed for each name."""
    accuracy: dict[tuple[str, str], np.ndarray] = {}
    for name, networks in searched.networks.items():
        alone = name in ("backbone", "uniformly wider")
        seeds = None if alone else study.scale.random_seeds if name == RANDOM else study.scale.searched_seeds
        for method in methods:
            each = [
                [
                    result["test"]
                    for result in study.scores(
                        SEARCHED, network, method, f"{name}, {method}", seeds=seeds, predictions=method == "oracle"
                    )
                ]
                for network in networks
            ]
            accuracy[name, method] = np.array(each[0]) if alone else np.mean(each, axis=1)
        size = np.mean([memory_bytes(space_of(network), network) for network in networks])
        row(
            f"{name} ({size / 1024:.1f} KiB)",
            ", ".join(f"{method} {accuracy[name, method].mean():.2%}" for method in methods),
        )
    return accuracy


def _print_against_controls(accuracy: Mapping[tuple[str, str], np.ndarray], controls: Sequence[str]) -> None:
    """Searches and random networks scatter from one to the next, single controls from seed to seed."""
    kdas = accuracy["searched by oracle", "oracle"]
    differences = {name: unpaired(kdas, accuracy[name, "oracle"]) for name in controls}
    adjusted = holm({name: one.p for name, one in differences.items()})
    for name, one in differences.items():
        row(f"searched and trained by oracle less {name}", f"{interval(one)}, Holm p {adjusted[name]:.3f}")


def _print_searches(searched: _Searched) -> None:
    """What searches took, and how far shared weights and own trainings agree on their last candidates."""
    row("a search takes", f"{np.mean([result['seconds'] for result in searched.results]):.0f} s")
    agreement = [kendall(*np.array(result["rewards"]).T) for result in searched.results if len(result["rewards"]) > 2]
    known = [one for one in agreement if not np.isnan(one)]
    if known:
        row("Kendall τ of shared weights and own trainings among a search's best", f"{np.mean(known):.2f}")


def _print_search(study: Study, space: AugmentedSpace) -> dict[str, Any]:
    """Search loss × training loss at a limit of memory, with controls of equal memory."""
    scale = study.scale
    searched = _searched(study, space, MEMORY, SEARCH_METHODS, scale.searches, scale.random_add_ons)
    section(f"Add-ons within {MEMORY:g} × the backbone's memory ({searched.most / 1024:.0f} KiB), teachers {SEARCHED}")
    row("intervals", "over searches and networks at random, each the mean of its seeds; single networks over seeds")
    _print_searches(searched)
    accuracy = _accuracies(study, searched, SEARCH_METHODS)
    _print_against_controls(accuracy, list(searched.controls))
    found: dict[str, Any] = {
        name: {method: accuracy[name, method].tolist() for method in SEARCH_METHODS} for name in searched.networks
    }
    found["against_ensemble"] = _against_ensemble(study, SEARCHED, searched.found["oracle"][0])
    return found


def _print_memory(study: Study) -> dict[str, Any]:
    """What add-ons are worth at other limits of memory and on other backbones, all by the oracle."""
    found: dict[str, Any] = {}
    for backbone, times in study.scale.more_limits:
        scale = study.scale
        searched = _searched(study, study.space(backbone), times, ("oracle",), scale.more_searches, scale.more_random)
        section(f"Add-ons to a backbone of {backbone} within {times:g} × its memory ({searched.most / 1024:.0f} KiB)")
        _print_searches(searched)
        accuracy = _accuracies(study, searched, ("oracle",))
        _print_against_controls(accuracy, list(searched.controls))
        found[f"{backbone} {times:g}"] = {name: accuracy[name, "oracle"].tolist() for name in searched.networks}
    return found


def _against_ensemble(study: Study, regime: str, architecture: Architecture) -> dict[str, Any]:
    """A student against its own ensemble, image by image."""
    logits, labels = _ensemble_logits(study, regime)
    ensemble = (logits.softmax(-1).mean(0).argmax(-1) == labels).numpy()
    results = study.scores(
        regime, architecture, "oracle", "student", seeds=study.scale.searched_seeds, predictions=True
    )
    students = [np.array(result["predicted"]) == labels.numpy() for result in results]
    found = [paired_accuracy_loss(ensemble, student) for student in students]
    for seed, one in enumerate(found):
        row(
            f"seed {seed} less the ensemble on {one.samples} images",
            f"{-100 * one.loss:+.2f} [{-100 * one.high:+.2f}, {-100 * one.low:+.2f}], McNemar p {one.p_value:.3g}",
        )
    return {"ensemble": float(ensemble.mean()), "students": [float(student.mean()) for student in students]}
