"""Finding the student: searches, confirmation on the device, baselines, the long trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.distill.methods import PROCESS
from akd_deploy.distill.process import load_process
from akd_deploy.errors import CorruptFileError, MismatchError
from akd_deploy.models.student import load_student, save_student, student_from_architecture
from akd_deploy.pipeline import shipping
from akd_deploy.pipeline.by_process import PROCESS_NAME, found_process, teach_by_process
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.experiment import in_experiment
from akd_deploy.pipeline.latency import write_model
from akd_deploy.pipeline.oracle_beta import chosen_beta, with_beta
from akd_deploy.pipeline.shared_search import candidates_by_shared_weights, within_memory
from akd_deploy.pipeline.training import SEED_OFFSET
from akd_deploy.profiling.blocks import measure_blocks
from akd_deploy.search import SearchResult, SearchSettings, Trial, reward_shape, search
from akd_deploy.search.strategies import StrategyFactory

N = TypeVar("N", bound=nn.Module)

CONFIRMED = 4
"""So many of the best candidates are measured, untrained, before the one to ship is chosen among those in budget."""
BETAS, PROCESSES = "betas", "processes"
"""Folders of a run, of what its trainings for β and its searches of a process found."""
HAND_SHRUNK = 2
"""So many of the best hand-shrunk networks are measured in turn with them; the best within budget is the baseline."""


def search_students(run: Run, results: Mapping[str, Any], strategy: str) -> dict[str, Any]:
    """One strategy's search, its trials in the run's journal under the strategy's name."""
    table = run.configuration.search
    budget_s = results["budget"]["budget_s"]
    settings = SearchSettings(
        trials=table.trials,
        budget_s=budget_s,
        shape=reward_shape(table.reward),
        constraint=table.constraint,
        seed=run.configuration.seed,
        strategy_settings=table.settings_of(strategy),
    )

    def screen(architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """By table lookup, for strategies that look thousands of candidates over."""
        latency_s, upper_s = run.compiled.predict(architectures)
        return latency_s, run.bound_s(upper_s)

    def predict(architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """From the kernels that whole networks execute, for candidates about to be trained."""
        found = [run.latency.predict_architecture(architecture) for architecture in architectures]
        return np.array([p.latency_s for p in found]), run.bound_s(np.array([p.upper_s for p in found]))

    done = 0

    def on_trial(trial: Trial) -> None:
        nonlocal done
        done += trial.state in ("done", "failed")
        run.on_progress(f"searching ({strategy})", done, table.trials)

    from akd_deploy.search.strategies.given import given_candidates  # NNI's, which a run without a search need not have

    asked: str | StrategyFactory = strategy
    shared: dict[str, Any] = {}
    if table.weights == "shared":
        candidates, shared = candidates_by_shared_weights(run, strategy, budget_s, screen)
        chosen = [dict(candidate.choices) for candidate in candidates]
        asked = given_candidates(chosen, f"{strategy} with shared weights")
    trainings = in_experiment(run, strategy) if table.driver == "nni" else run.bed.score
    result = search(run.space, asked, predict, trainings, settings, run.journal.of_search(strategy), on_trial, screen)
    seconds = {**result.seconds, "shared weights": shared["seconds"]} if shared else dict(result.seconds)
    return {
        "trials": [_trial_row(trial) for trial in result.trials],
        "counts": result.counts,
        "seconds": seconds,
        "shared": shared or None,
        "best_reward": _best_reward(result),
        "stopped": result.stopped,
    }


def _best_reward(result: SearchResult) -> float | None:
    rewards = [trial.reward for trial in result.trials if trial.state == "done" and trial.reward is not None]
    return max(rewards, default=None)


def _trial_row(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "strategy": trial.strategy,
        "state": trial.state,
        "arch": trial.architecture.as_dict(),
        "digest": trial.architecture.digest,
        "network": trial.network,
        "latency_s": trial.latency_s,
        "upper_s": trial.upper_s,
        "reward": trial.reward,
        "accuracy": trial.accuracy,
        "seconds": trial.seconds,
    }


def trained(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every trained candidate of every strategy, best reward first, each network once."""
    rows = [
        row
        for name, result in results.items()
        if name.startswith("search-")
        for row in result["trials"]
        if row["state"] == "done"
    ]
    rows.sort(key=lambda row: -row["reward"])
    return list({row["network"]: row for row in reversed(rows)}.values())[::-1]


def front(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trained students that no other one beats in both latency and accuracy, fastest first."""
    rows = sorted(trained(results), key=lambda row: (row["latency_s"], -row["accuracy"]))
    best: list[dict[str, Any]] = []
    for row in rows:
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append({key: row[key] for key in ("arch", "digest", "latency_s", "reward", "accuracy")})
    return best


def hand_shrunk(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The widest hand-shrunk network of each kind within the budget, each after a short training.

    Where none of any kind is bound to meet the budget, the narrowest ones stand in (`bound_to_fit` is then false):
    the baseline is shown with whatever its own certificate says.
    """
    budget_s = results["budget"]["budget_s"]
    families = run.space.hand_shrunk()
    widest = (_widest_within(run, family, budget_s) for family in families)
    entered = [found for found in widest if found is not None]
    bound_to_fit = bool(entered)
    if not bound_to_fit:
        narrowest = [family[0] for family in families]
        entered = [(one, run.latency.predict_architecture(one).latency_s) for one in narrowest]
    rows = []
    for i, (architecture, latency_s) in enumerate(entered):
        run.on_progress("training hand-shrunk students", i, len(entered))
        score = run.bed.score(architecture, run.configuration.seed)
        rows.append({"arch": architecture.as_dict(), "latency_s": latency_s, "accuracy": score.accuracy})
    return {"bound_to_fit": bound_to_fit, "considered": rows}


def _widest_within(run: Run, family: Sequence[Architecture], budget_s: float) -> tuple[Architecture, float] | None:
    """The last architecture of a family, narrowest first, that is bound to meet the budget, and the limit of memory
    that candidates have, and its latency; by bisection, so an earlier one could be missed only where a wider network is
    predicted to be faster."""
    found = None
    low, high = 0, len(family)
    while low < high:
        middle = (low + high) // 2
        prediction = run.latency.predict_architecture(family[middle])
        if float(run.bound_s(np.array(prediction.upper_s))) <= budget_s and within_memory(run, family[middle]):
            found, low = (family[middle], prediction.latency_s), middle + 1
        else:
            high = middle
    return found


def confirm(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the best candidates and hand-shrunk networks, untrained and in turn; of either the best whose certificate
    holds is chosen, or the best of all where none does."""
    budget_s, table = results["budget"]["budget_s"], run.configuration.certificate
    folder = run.directory / "candidates"
    folder.mkdir(exist_ok=True)
    best = trained(results)[:CONFIRMED]
    plain = sorted(results["hand-shrunk"]["considered"], key=lambda row: -row["accuracy"])[:HAND_SHRUNK]
    rivals = {row["network"]: row["arch"] for row in best} | {
        f"hand-shrunk {i}": row["arch"] for i, row in enumerate(plain)
    }
    models = {name: write_model(run.target, architecture_from_dict(arch), folder) for name, arch in rivals.items()}
    measured = measure_blocks(
        run.target,
        models,
        shipping.certificate_protocol(table),
        run.rng("confirm"),
        lambda done, total: run.on_progress("measuring the best candidates", done, total),
    )
    found = {
        name: {
            "measured_s": one.measurement.statistics_s(),
            "certificate": shipping.certificate_of(one.measurement, budget_s, table).as_dict(),
        }
        for name, one in measured.items()
    }
    rows = [{**row, **found[row["network"]]} for row in best]
    baselines = [{**row, **found[f"hand-shrunk {i}"]} for i, row in enumerate(plain)]
    return {"candidates": rows, "winner": _best_within(rows), "hand_shrunk": _best_within(baselines)}


def _best_within(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first whose certificate holds; the first of all where none does."""
    return next((row for row in rows if row["certificate"]["ok"]), rows[0])


def finished(path: Path, load: Callable[[Path], N]) -> N:
    """A student that an earlier process trained."""
    try:
        return load(path)
    except (CorruptFileError, MismatchError) as error:
        raise CorruptFileError(error.asked, error.found, f"Delete {path}: --resume trains it again.") from error


def process(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The process that finalists are distilled by, searched on the winner or read from the user's file."""
    winner = architecture_from_dict(results["confirm"]["winner"]["arch"])
    return searched_for(run, lambda seed: student_from_architecture(winner, seed))


def searched_for(run: Run, student_of: Callable[[int], nn.Module]) -> dict[str, Any]:
    """The process of such students, kept in the run's folder."""
    found, facts = found_process(run.configuration, run.bed, student_of, run.on_progress, run.directory / PROCESSES)
    found.save(run.directory / PROCESS_NAME)
    return {**facts, **found.as_dict()}


def beta(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The β of a soft or relative oracle, chosen on the winner."""
    winner = architecture_from_dict(results["confirm"]["winner"]["arch"])
    return chosen_beta(
        run.configuration,
        run.bed,
        run.bed.method,
        lambda seed: student_from_architecture(winner, seed),
        run.on_progress,
        run.directory / BETAS,
    )


def teach(run: Run, student: nn.Module, method: str, seed: int, beta: dict[str, Any] | None = None) -> None:
    """Train a finalist in place by a method, a process among them; `beta` is what the stage of this name chose."""
    if method == PROCESS:
        teach_by_process(run.configuration, run.bed, student, load_process(run.directory / PROCESS_NAME), seed)
    else:
        run.bed.teach(student, seed, method, with_beta(run.bed.long, beta))


def distill(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """The long trainings, with seeds no search used: the winner by the run's method, by plain KD and on labels alone,
    and the hand-shrunk student by the run's method."""
    winner = results["confirm"]["winner"]["arch"]
    arms = {method: (winner, method) for method in dict.fromkeys(("kd", "ce", run.bed.method))}
    arms["hand_shrunk"] = (results["confirm"]["hand_shrunk"]["arch"], run.bed.method)
    seeds = [SEED_OFFSET + run.configuration.seed * 100 + i for i in range(run.configuration.distill.seeds)]
    scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    total = len(arms) * len(seeds)
    for i, seed in enumerate(seeds):
        for j, (arm, (fields, method)) in enumerate(arms.items()):
            run.on_progress("training finalists", i * len(arms) + j, total)
            path = run.directory / "students" / f"{arm}-{seed}.safetensors"
            if path.is_file():
                student = finished(path, load_student)
            else:
                student = student_from_architecture(architecture_from_dict(fields), seed)
                teach(run, student, method, seed, results.get("beta"))
                save_student(student, path)
            scores[arm].append({"seed": seed, "student": path.name, **run.bed.test_scores(student)})
    # The shipped seed is chosen on the tuning split: the test split is only ever reported.
    chosen = max(scores[run.bed.method], key=lambda row: row["tuning_accuracy"])
    return {"scores": scores, "chosen": chosen}
