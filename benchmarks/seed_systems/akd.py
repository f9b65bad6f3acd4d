"""AKD's claims on a space small enough to train all of: does the KD reward choose better students, and other ones?

T and λ are chosen first, for brief and for full trainings each, on the tuning split. Every network of the space is
trained briefly with labels alone and with each teacher (selection seeds), and fully with the teacher (scoring seeds, of
which selection knows nothing). Searches are then replayed on these tables, so that each
strategy's regret to the true optimum is known, and the winners are trained anew with seeds of their own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.latency_table import HEADER_NAME
from akd_deploy.pipeline.latency import profile_target, target_latency
from akd_deploy.profiling.profile import ProfilePlan
from akd_deploy.recipes.akd import compare_akd_with_nas
from akd_deploy.recipes.paired_seeds import holm, kendall, paired, preference_shift, rank_agreement
from akd_deploy.search import REWARD_PRESETS, Score, SearchSettings, search
from akd_deploy.search.strategies import STRATEGIES
from akd_deploy.search_space import SearchSpace, load_space
from akd_deploy.target import load_target
from benchmarks.seed_systems.bed_tuning import TUNING, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger, Work
from benchmarks.seed_systems.students import dataset_of, teacher_job, train_student, train_teacher
from benchmarks.seed_systems.tables import interval, points, row, section, underpowered
from benchmarks.seed_systems.verification import FALSE_ACCEPTS, verify_student

TARGETS = ("cpu_onnxruntime_fp32", "cpu_openvino_fp32")
QUANTILES = (0.2, 0.4, 0.6, 0.8)
"""Of the space's latencies on each target, where students are chosen."""
FINAL_QUANTILES = (0.2, 0.5, 0.8)
"""Where winners are trained anew."""
STRATEGY = "constrained_evolution"
"""By which AKD and NAS are searched for in earnest."""
TOP = 0.15
"""Share of the networks whose choices are compared between rewards."""
SELECTION, SCORING, FINAL = 0, 100, 1_000
"""First seeds of the three kinds of training; those that choose T and λ begin at `TUNING`."""
TUNED_ON = (0.1, 0.5, 0.9)
"""The networks that choose T and λ, by their place in the space."""
TRANSFER_TASK = {"shapes": 2, "textures": 3, "orientations": 2, "colours": 2}
"""Another task of as many classes: other textures and fewer shapes."""

SPACE = {
    "in_channels": 3, "stem_width": 12, "stem_stride": 2, "widths": [16, 32], "strides": [1, 2], "layers": [[1], [1]],
    "operators": ["conv", "dw_separable", "mbconv3"], "kernels": [3, 5], "se_ratios": [0.0], "skips": ["none"],
    "width_multipliers": [0.5, 1.0],
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much is trained: the space, as it differs from `SPACE`, and how many seeds of each kind; `label_seeds` are of
    full trainings by labels alone. `mixer` is how the training of the other teacher differs from the first one's."""

    tuning_seeds: int
    selection_seeds: int
    scoring_seeds: int
    label_seeds: int
    final_seeds: int
    data: Mapping[str, Any]
    teacher: Mapping[str, Any]
    mixer: Mapping[str, Any]
    short: Mapping[str, Any]
    long: Mapping[str, Any]
    space: Mapping[str, Any] = field(default_factory=dict)
    search_seeds: int = 40
    trials: int = 16
    draws: int = 500
    underpowered: bool = False


@dataclass
class Study:
    """One run of the study: what it trains on, and its tables."""

    scale: Scale
    folder: Path
    ledger: Ledger
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.space = space_for(self.scale)
        self.architectures = networks_of(self.space)
        self.teachers = {kind: [self._teacher_job(kind)] for kind in ("convnet", "mixer")}
        self.teachers["ensemble"] = [*self.teachers["convnet"], *self.teachers["mixer"]]
        self.tuned: dict[int, dict[str, float]] = {}
        self.cpu_s: dict[str, float] = {}

    def _teacher_job(self, kind: str) -> dict[str, Any]:
        training = self.scale.teacher if kind == "convnet" else {**self.scale.teacher, **self.scale.mixer}
        return teacher_job(self.folder, self.scale.data, kind, training)

    def tune(self, lengths: Mapping[str, Any], what: str) -> None:
        """Choose T and λ for trainings of these lengths, before any other such training by distillation."""
        chosen = [self.architectures[int(place * len(self.architectures))] for place in TUNED_ON]

        def jobs(settings: Mapping[str, float]) -> list[dict[str, Any]]:
            return [
                self.student_job(architecture, "kd", "convnet", TUNING + seed, {**lengths, **settings})
                for architecture in chosen
                for seed in range(self.scale.tuning_seeds)
            ]

        self.tuned[lengths["steps"]] = tuned_distillation(self.ledger, train_student, jobs, what)

    def training(self, method: str, lengths: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of trainings by a method: those of labels alone have no T and λ."""
        return {**lengths, **({} if method == "ce" else self.tuned[lengths["steps"]])}

    def student_job(
        self, architecture: Architecture, method: str, teacher: str, seed: int, training: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        return {
            "data": dict(self.scale.data), "teachers": self.teachers[teacher] if method != "ce" else [],
            "arch": architecture.as_dict(), "method": method, "seed": seed,
            "training": dict(training), **more,
        }  # fmt: skip

    def latencies(self, target: str) -> np.ndarray:
        """(networks,) predicted seconds on a target."""
        job = {"folder": str(self.folder), "space": dict(self.space.settings), "target": target}
        (found,) = self.ledger.results(latencies, [job], f"latencies on {target}")
        return np.array(found["seconds"])

    def table(
        self, what: str, method: str, teacher: str, first: int, seeds: int, lengths: Mapping[str, Any], score: str
    ) -> np.ndarray:
        """(networks, seeds) accuracies."""
        jobs = [
            self.student_job(architecture, method, teacher, first + seed, self.training(method, lengths))
            for seed in range(seeds)
            for architecture in self.architectures
        ]
        found = self.ledger.results(train_student, jobs, what)
        self.cpu_s[what] = self.ledger.cpu_s(jobs)
        return np.array([result[score] for result in found]).reshape(seeds, -1).T


def space_for(scale: Scale) -> SearchSpace:
    """The study's space for images of the bed."""
    dataset = dataset_of(scale.data)
    sizes = {"resolution": dataset.input_shape[1], "classes": dataset.classes}
    return load_space("mobile", {**SPACE, **scale.space, **sizes})


def networks_of(space: SearchSpace) -> list[Architecture]:
    """Every different network of the space."""
    every = itertools.product(*(range(len(options)) for options in space.choices.values()))
    return list({space.network_digest(a): a for a in (space.from_tokens(tokens) for tokens in every)}.values())


def latencies(job: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted seconds of every network of a space on a target, whose table of the space is measured first."""
    target, space = load_target(job["target"]), load_space("mobile", job["space"])
    directory = Path(job["folder"]) / "latency_tables" / target.name
    if not (directory / HEADER_NAME).is_file():
        print(f"profiling {target.name} …")
        plan = ProfilePlan(probes=160, networks=24, seed=0)
        profile_target(target, space, plan, directory, resume=directory.is_dir(), on_model=lambda done, total: None)
    compiled = target_latency(target, directory).compile(space)
    return {"seconds": compiled.predict(networks_of(space))[0].tolist()}


def run(scale: Scale, folder: Path, processes: int) -> dict[str, Any]:
    """Do what is not done yet, print the tables, and return what they say."""
    began = time.perf_counter()
    study = Study(scale, folder, Ledger(folder / "trainings.jsonl", processes))
    found: dict[str, Any] = {"networks": len(study.architectures)}
    # First of all, while nothing is being trained beside what is measured; kept, as another machine would differ.
    latency_s = {name: study.latencies(name) for name in TARGETS}
    taught = study.ledger.results(train_teacher, study.teachers["ensemble"], "teachers")
    short, long = scale.short, scale.long
    section(f"AKD: {len(study.architectures)} networks, every one trained" + underpowered(scale.underpowered))
    study.tune(short, f"{short['steps']} steps")
    study.tune(long, f"{long['steps']} steps")
    tables = {
        "ce": study.table("short, labels alone", "ce", "convnet", SELECTION, scale.selection_seeds, short, "reward"),
        "kd": study.table("short, convnet", "kd", "convnet", SELECTION, scale.selection_seeds, short, "reward"),
        "kd-mixer": study.table("short, mixer", "kd", "mixer", SELECTION, scale.selection_seeds, short, "reward"),
        "long": study.table("full, convnet", "kd", "convnet", SCORING, scale.scoring_seeds, long, "test"),
        "long-ce": study.table("full, labels alone", "ce", "convnet", SCORING, scale.label_seeds, long, "test"),
    }
    found["bed"] = _print_bed(taught, tables)
    _print_costs(study)
    found["ranking"] = _print_ranking(study, tables)
    found["gain"] = _print_gain(tables, latency_s)
    found["controllers"] = _print_controllers(study, tables, latency_s)
    found["teachers"] = _print_teachers(study, tables)
    winners = _winners(tables, latency_s)
    found["two_by_two"] = _print_two_by_two(study, winners)
    found["searched"] = _print_searched(study, tables, latency_s)
    found["transfer"] = _print_transfer(study, winners)
    print(f"\n{study.ledger.seconds / 3600:.2f} core-hours of training; {time.perf_counter() - began:.0f} s now")
    return found


def _print_bed(taught: Sequence[Mapping[str, Any]], tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    accuracies = dict(zip(("convnet", "mixer"), (one["test"] for one in taught), strict=True))
    row("teachers on the test images", ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items()))
    for name, what in (("ce", "labels alone"), ("kd", "convnet teaches"), ("kd-mixer", "mixer teaches")):
        table = tables[name]
        seed_sd = float(table.std(axis=1, ddof=1).mean()) if table.shape[1] > 1 else float("nan")
        row(f"short trainings, {what}", f"mean {table.mean():.2%}, over seeds ± {seed_sd:.2%}, over networks "
            f"± {table.mean(axis=1).std(ddof=1):.2%}")  # fmt: skip
    for name, what in (("long", "convnet teaches"), ("long-ce", "labels alone")):
        row(f"full trainings, {what}", f"mean {tables[name].mean():.2%}, over networks "
            f"± {tables[name].mean(axis=1).std(ddof=1):.2%}")  # fmt: skip
    return {"teachers": accuracies, "means": {name: float(table.mean()) for name, table in tables.items()}}


def _print_costs(study: Study) -> None:
    """What trainings take; and so what a search by either reward does, its teacher aside."""
    for what, seconds in study.cpu_s.items():
        row(f"a training takes, {what}", f"{seconds:.1f} s of CPU")
    jobs = dict(zip(("convnet", "mixer"), study.teachers["ensemble"], strict=True))
    row("a teacher takes", ", ".join(f"{name} {study.ledger.cpu_s([job]):.0f} s" for name, job in jobs.items()))
    trials = study.scale.trials
    row(
        f"a search of {trials} trainings takes",
        f"by labels {trials * study.cpu_s['short, labels alone']:.0f} s, by distillation "
        f"{trials * study.cpu_s['short, convnet']:.0f} s and the teacher",
    )


def _print_ranking(study: Study, tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Is the KD reward the better proxy, of full trainings by either, and do CE and KD rank differently at all?"""
    section("Ranking")
    found: dict[str, Any] = {}
    for truth_name, what in (("long", "distillation"), ("long-ce", "labels")):
        truth = tables[truth_name].mean(axis=1)
        by_seed = {
            name: [kendall(tables[name][:, r], truth) for r in range(tables[name].shape[1])] for name in ("kd", "ce")
        }
        better = paired(by_seed["kd"], by_seed["ce"])
        draws = []
        for _ in range(study.scale.draws):
            rows = study.rng.integers(len(truth), size=len(truth))
            draws.append(
                np.mean([kendall(tables["kd"][rows, r], truth[rows]) - kendall(tables["ce"][rows, r], truth[rows])
                         for r in range(tables["kd"].shape[1])])
            )  # fmt: skip
        low, high = np.nanquantile(draws, [0.025, 0.975])
        row(
            f"Kendall τ of a short training with the full one by {what}",
            f"KD {np.mean(by_seed['kd']):.3f}, CE {np.mean(by_seed['ce']):.3f}, difference {interval(better, 1)} over "
            f"seeds, [{low:+.3f}, {high:+.3f}] with networks drawn again",
        )
        if tables[truth_name].shape[1] > 1:
            pairs = [kendall(tables[truth_name][:, i], tables[truth_name][:, j])
                     for i in range(tables[truth_name].shape[1]) for j in range(i)]  # fmt: skip
            row(f"  two full trainings by {what} agree by", f"{np.mean(pairs):.3f}")
        found[truth_name] = {"proxy": better.as_dict(), "proxy_bootstrap": [float(low), float(high)]}
    alike = rank_agreement(tables["ce"], tables["kd"], study.rng, study.scale.draws)
    row(
        "τ between CE and KD, noise ceiling, gap",
        f"{alike.tau:.3f}, {alike.ceiling:.3f}, {alike.gap:+.3f} [{alike.low:+.3f}, {alike.high:+.3f}]",
    )
    return {**found, "ce_kd": alike.as_dict()}


def _chosen(scores: np.ndarray, latency_s: np.ndarray, quantile: float) -> int:
    """The network with the best score among the fastest share of the space."""
    within = latency_s <= np.quantile(latency_s, quantile)
    return int(np.flatnonzero(within)[np.argmax(scores[within])])


def regret(scores: np.ndarray, chosen: int, within: np.ndarray) -> float:
    """How far a network is below the best of those `within`, by (networks, seeds) scores.

    The best is found by all seeds but one and judged by that one, as the network is, each seed in turn: the greatest of
    noisy means would be the luckiest as well. So a network may be better than what is found to be best.

    Raises:
        ValueError: one seed, which would judge what it has found.
    """
    places, seeds = np.flatnonzero(within), range(scores.shape[1])
    if len(seeds) < 2:
        raise ValueError("regret to a best that is judged by what found it")
    differences = []
    for seed in seeds:
        others = np.delete(scores, seed, axis=1).mean(axis=1)
        best = places[np.argmax(others[places])]
        differences.append(scores[best, seed] - scores[chosen, seed])
    return float(np.mean(differences))


def _print_gain(tables: Mapping[str, np.ndarray], latency_s: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Chosen by KD minus chosen by CE at equal latency, both scored by full distillation with other seeds."""
    truth, found = tables["long"].mean(axis=1), {}
    replicas = range(tables["kd"].shape[1])
    section("Chosen by the KD reward minus chosen by CE, at equal latency (scored by full distillation, other seeds)")
    for target, seconds in latency_s.items():

        def chosen(name: str, replica: int, quantile: float, seconds: np.ndarray = seconds) -> int:
            return _chosen(tables[name][:, replica], seconds, quantile)

        def chosen_by(scores: np.ndarray, quantile: float, seconds: np.ndarray = seconds) -> int:
            return _chosen(scores, seconds, quantile)

        by_seed = [
            np.mean([truth[chosen("kd", r, q)] - truth[chosen("ce", r, q)] for q in QUANTILES]) for r in replicas
        ]
        noisy = [tables["kd"][[chosen("kd", r, q), chosen("ce", r, q)], r] for q in QUANTILES for r in replicas]
        naive = float(np.mean([kd - ce for kd, ce in noisy]))
        regrets = {
            name: float(np.mean([
                regret(tables["long"], chosen(name, r, q), seconds <= np.quantile(seconds, q))
                for q in QUANTILES for r in replicas
            ]))
            for name in ("kd", "ce")
        }  # fmt: skip
        difference = paired(by_seed, np.zeros(len(by_seed)))
        told = f"{interval(difference)}; regret KD {points(regrets['kd'])}, CE {points(regrets['ce'])}"
        row(target, f"{told}; on the same noisy score {points(naive)}")
        low, high = _over_networks(tables, truth, seconds)
        row("  networks, seeds and truths drawn again", f"[{low:+.2f}, {high:+.2f}]")
        front = {name: [chosen_by(tables[name].mean(axis=1), q) for q in QUANTILES] for name in ("kd", "ce")}
        for name, networks in front.items():
            told = ", ".join(f"{seconds[i] * 1e6:.0f} µs {truth[i]:.1%}" for i in dict.fromkeys(networks))
            row(f"  front over budgets, by {name.upper()}", told)
        found[target] = {**difference.as_dict(), "naive": naive, "regret": regrets, "bootstrap": [low, high],
                         "front": front}  # fmt: skip
    return found


def _over_networks(
    tables: Mapping[str, np.ndarray], truth: np.ndarray, seconds: np.ndarray, draws: int = 500
) -> tuple[float, float]:
    """95 % interval of the gain, in points, over spaces of networks drawn from this one, replicas of the rewards and
    replicas of the truth drawn with them."""
    rng, gains = np.random.default_rng(17), []
    replicas, truths = tables["kd"].shape[1], tables["long"].shape[1]
    for _ in range(draws):
        rows = np.unique(rng.integers(len(truth), size=len(truth)))
        picked = rng.integers(replicas, size=replicas)
        real = tables["long"][rows][:, rng.integers(truths, size=truths)].mean(axis=1)
        gain = [
            real[_chosen(tables["kd"][rows, r], seconds[rows], q)]
            - real[_chosen(tables["ce"][rows, r], seconds[rows], q)]
            for q in QUANTILES
            for r in picked
        ]
        gains.append(100 * float(np.mean(gain)))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Replay:
    """Searches on a table of scores instead of trainings."""

    study: Study
    scores: np.ndarray
    index: Mapping[str, int]
    seconds: np.ndarray
    budget_s: float

    def of(self, architecture: Architecture) -> int:
        return self.index[self.study.space.network_digest(architecture)]

    def predict(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        seconds = self.seconds[[self.of(one) for one in architectures]]
        return seconds, seconds

    def found(self, strategy: str, seed: int) -> int:
        """The network that a search of this seed ends with; its scores are one replica's."""
        replica = seed % self.scores.shape[1]

        def score(architecture: Architecture, _: int) -> Score:
            return Score(float(self.scores[self.of(architecture), replica]))

        settings = SearchSettings(self.study.scale.trials, self.budget_s, REWARD_PRESETS["hard"], seed=seed)
        return self.of(search(self.study.space, strategy, self.predict, score, settings).best.architecture)


def _print_controllers(
    study: Study, tables: Mapping[str, np.ndarray], latency_s: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Searches replayed on the table: how far what each strategy finds is below the best within the budget, at equal
    evaluations: by the reward that it saw, of which the best is known, and by full trainings."""
    scale, found = study.scale, {}
    index = {study.space.network_digest(a): i for i, a in enumerate(study.architectures)}
    section(
        f"Strategies, {scale.trials} evaluations each, mean over {scale.search_seeds} searches on "
        f"{tables['kd'].shape[1]} replicas of the reward (regret in points; intervals over searches)"
    )
    for target, seconds in latency_s.items():
        budget_s = float(np.quantile(seconds, 0.5))
        replay = _Replay(study, tables["kd"], index, seconds, budget_s)
        within = seconds <= budget_s

        def regrets(strategy: str, replay: _Replay = replay, within: np.ndarray = within) -> dict[str, list[float]]:
            networks = [replay.found(strategy, seed) for seed in range(scale.search_seeds)]
            seen = [tables["kd"][:, seed % tables["kd"].shape[1]] for seed in range(scale.search_seeds)]
            return {
                "reward": [float(s[within].max() - s[i]) for s, i in zip(seen, networks, strict=True)],
                "full training": [regret(tables["long"], i, within) for i in networks],
            }

        values = {strategy: regrets(strategy) for strategy in STRATEGIES}
        found[target] = {}
        for kind in ("reward", "full training"):
            random = values["random"][kind]
            row(f"{target}, by {kind}: random", points(float(np.mean(random))))
            differences = {
                strategy: paired(values[strategy][kind], random) for strategy in STRATEGIES if strategy != "random"
            }
            adjusted = holm({name: one.p for name, one in differences.items()})
            for name, one in differences.items():
                told = f"{points(float(np.mean(values[name][kind])))}, less random {interval(one)}"
                row(f"{target}, by {kind}: {name}", f"{told}, Holm p {adjusted[name]:.3f}")
            found[target][kind] = {
                "random": float(np.mean(random)), **{name: one.as_dict() for name, one in differences.items()},
            }  # fmt: skip
    return found


def _print_teachers(study: Study, tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Do other teachers prefer other students, and do the rewards choose other kinds of network?"""
    section("Do teachers, and rewards, prefer different students?")
    alike = rank_agreement(tables["kd"], tables["kd-mixer"], study.rng, study.scale.draws)
    row(
        "τ between teachers, noise ceiling, gap",
        f"{alike.tau:.3f}, {alike.ceiling:.3f}, {alike.gap:+.3f} [{alike.low:+.3f}, {alike.high:+.3f}]",
    )
    tokens = study.space.tokens_of(study.architectures)
    sizes = [len(options) for options in study.space.choices.values()]
    count = max(4, round(TOP * len(tokens)))
    top = {name: np.argsort(-tables[name].mean(axis=1))[:count] for name in ("kd", "ce", "kd-mixer")}
    found: dict[str, Any] = {"ranking": alike.as_dict()}
    for a, b, what in (("kd", "ce", "KD against CE"), ("kd", "kd-mixer", "convnet against mixer")):
        shift = preference_shift(tables[a], tables[b], tokens, sizes, count, study.rng, study.scale.draws)
        common = len(set(top[a].tolist()) & set(top[b].tolist()))
        names = list(study.space.choices)
        most = sorted(zip(shift.by_choice, names, strict=True), reverse=True)[:2]
        row(f"best {count} by {what}",
            f"{common} in common; Jensen–Shannon {shift.distance:.3f}, at random {shift.null:.3f}, "
            f"p {shift.p:.3f}; most in " + " and ".join(f"{name} {value:.2f}" for value, name in most))  # fmt: skip
        found[what] = {**shift.as_dict(), "common": common, "of": count}
    return found


def _winners(
    tables: Mapping[str, np.ndarray], latency_s: Mapping[str, np.ndarray]
) -> dict[tuple[str, float, str], int]:
    """(target, quantile, reward) → the network chosen by the mean over selection seeds."""
    return {
        (target, q, name): _chosen(tables[name].mean(axis=1), seconds, q)
        for target, seconds in latency_s.items()
        for q in FINAL_QUANTILES
        for name in ("ce", "kd")
    }


def _print_two_by_two(study: Study, winners: Mapping[tuple[str, float, str], int]) -> dict[str, Any]:
    """{searched by CE, by KD} × {trained by CE, by KD}, seeds no search has used."""
    scale = study.scale
    jobs = {
        (i, method, seed): study.student_job(
            study.architectures[i], method, "convnet", FINAL + seed, study.training(method, scale.long)
        )
        for i in sorted(set(winners.values()))
        for method in ("ce", "kd")
        for seed in range(scale.final_seeds)
    }
    results = study.ledger.results(train_student, list(jobs.values()), "winners")
    test = {key: result["test"] for key, result in zip(jobs, results, strict=True)}
    section(f"Searched by × trained by ({scale.final_seeds} seeds, test accuracy)")
    found: dict[str, Any] = {}
    cells: dict[tuple[str, float], dict[tuple[str, str], list[float]]] = {}
    for target, q in itertools.product(TARGETS, FINAL_QUANTILES):
        cells[target, q] = {
            (searched, trained): [test[winners[target, q, searched], trained, s] for s in range(scale.final_seeds)]
            for searched in ("ce", "kd")
            for trained in ("ce", "kd")
        }
    # The same two networks at several budgets, or on both targets, are one comparison.
    pairs = {
        f"{winners[target, q, 'kd']} {winners[target, q, 'ce']}": paired(one["kd", "kd"], one["ce", "kd"])
        for (target, q), one in cells.items()
        if winners[target, q, "kd"] != winners[target, q, "ce"]
    }
    adjusted = holm({name: one.p for name, one in pairs.items()})
    for (target, q), one in cells.items():
        told = ", ".join(f"{s.upper()}→{t.upper()} {np.mean(values):.2%}" for (s, t), values in one.items())
        name = f"{winners[target, q, 'kd']} {winners[target, q, 'ce']}"
        if name in pairs:
            told += f"; AKD − NAS after KD {interval(pairs[name])}, Holm p {adjusted[name]:.3f}"
        else:
            told += "; both choose the same network"
        told += f"; KD − CE of AKD's {interval(paired(one['kd', 'kd'], one['kd', 'ce']))}"
        row(f"{target}, fastest {q:.0%}", told)
        found[f"{target} {q}"] = {
            **{f"{s}-{t}": list(map(float, values)) for (s, t), values in one.items()},
            "same": name not in pairs,
        }
    differing = sum(winners[TARGETS[0], q, "kd"] != winners[TARGETS[1], q, "kd"] for q in FINAL_QUANTILES)
    row("AKD's winners differ between the targets", f"at {differing} of {len(FINAL_QUANTILES)} budgets")
    found["targets_differ"] = differing
    return found


def _print_searched(
    study: Study, tables: Mapping[str, np.ndarray], latency_s: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The same for what searches end with, which see one replica of their reward and a part of the networks."""
    scale, found = study.scale, {}
    index = {study.space.network_digest(a): i for i, a in enumerate(study.architectures)}
    section(f"AKD and NAS as searches of {scale.trials} evaluations ({STRATEGY}), at half of the space's latencies")
    for target, seconds in latency_s.items():
        budget_s = float(np.quantile(seconds, 0.5))
        replay = _Replay(study, tables["kd"], index, seconds, budget_s)

        def score(architecture: Architecture, _: int, method: str, replay: _Replay = replay) -> Score:
            return Score(float(tables[method][replay.of(architecture), 0]))

        def train(architecture: Architecture, seed: int, method: str) -> float:
            job = study.student_job(architecture, method, "convnet", seed, study.training(method, scale.long))
            (result,) = study.ledger.results(train_student, [job], "what searches found")
            return float(result["test"])

        seeds = range(FINAL, FINAL + scale.final_seeds)
        settings = SearchSettings(scale.trials, budget_s, REWARD_PRESETS["hard"], seed=0)
        compared = compare_akd_with_nas(study.space, STRATEGY, replay.predict, score, train, settings, seeds)
        told = ", ".join(
            f"{arm.upper()} by {method.upper()} {np.mean(values):.2%}"
            for arm, by_method in compared.accuracies.items()
            for method, values in by_method.items()
        )
        after = paired(compared.accuracies["akd"]["kd"], compared.accuracies["nas"]["kd"])
        row(target, f"{told}; AKD − NAS after KD {interval(after)}")
        found[target] = compared.as_dict()["accuracies"]
    return found


def _print_transfer(study: Study, winners: Mapping[tuple[str, float, str], int]) -> dict[str, Any]:
    """AKD's and NAS's winners at the middle budget under another teacher, an ensemble, on other images, and judging
    pairs of images of classes that they have not seen."""
    scale, middle = study.scale, FINAL_QUANTILES[1]
    arms = {name: study.architectures[winners[TARGETS[0], middle, name]] for name in ("kd", "ce")}
    task = {**scale.data, **TRANSFER_TASK}
    its_teacher = [{**study.teachers["convnet"][0], "data": task}]
    study.ledger.results(train_teacher, its_teacher, "teacher of other images")
    section("Winners of the middle budget elsewhere")
    found: dict[str, Any] = {}
    for name, changes in (
        ("the other teacher", {"teachers": study.teachers["mixer"]}),
        ("an ensemble of both", {"teachers": study.teachers["ensemble"]}),
        ("other images", {"data": task, "teachers": its_teacher}),
    ):
        found[name] = _print_arms(study, arms, name, train_student, "test", changes)
    for score, name in (("auc", "pairs of unseen classes, area under the curve"),
                        ("accepted", f"the same, accepted with {FALSE_ACCEPTS:.0%} of others")):  # fmt: skip
        found[name] = _print_arms(study, arms, name, verify_student, score, {"task": "verification"})
    return found


def _print_arms(
    study: Study, arms: Mapping[str, Architecture], name: str, work: Work, score: str, changes: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Scores of AKD's and NAS's winners trained by KD, with other jobs than the study's."""
    scale = study.scale
    scores = {}
    for arm, architecture in arms.items():
        jobs = [
            {
                **study.student_job(architecture, "kd", "convnet", FINAL + seed, study.training("kd", scale.long)),
                **changes,
            }
            for seed in range(scale.final_seeds)
        ]
        scores[arm] = [float(result[score]) for result in study.ledger.results(work, jobs, name)]
    told = f"AKD's {np.mean(scores['kd']):.2%}, NAS's {np.mean(scores['ce']):.2%}"
    row(name, f"{told}, difference {interval(paired(scores['kd'], scores['ce']))}")
    return scores
