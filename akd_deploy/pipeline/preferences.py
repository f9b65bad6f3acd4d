"""Do two runs prefer different students? The best of what each trained, choice by choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.recipes.paired_seeds import jensen_shannon, marginals, shared_shift

BEST = 0.25
"""Share of a run's trained students, by reward, that count as what it prefers."""
LEAST = 4
"""So many at least, of each run."""
LEAST_SHARED = 8
"""So many students that both runs trained tell whether a difference is chance: of fewer there are too few exchanges."""
DRAWS = 2_000

Fields = Mapping[str, Any]


def compare_preferences(one: Fields, other: Fields, seed: int = 0) -> dict[str, Any]:
    """What the better students of two runs' searches chose, such as under another teacher or another reward.

    `runs` names both and how many students of each are compared; `kinds` has, for each kind of choice ("op" of every
    block together), its `options` and the `shares` of them in either; `distance` is the mean Jensen–Shannon distance of
    the shares by choice, those `by_choice`.

    Two searches' best differ by chance alone, as a search's candidates descend from each other. What the runs prefer is
    told by the `students` that both trained, `in_common`: their `distance`, `null` and `p` are those of `shared_shift`,
    None where there are less than `LEAST_SHARED`. Two runs of one seed by strategy random have all in common.

    Args:
        one: a run's summary.
        other: another one's, of the same space.

    Raises:
        MismatchError: the runs searched different spaces.
        UsageError: a run without a search, or with too few trained students.
    """
    choices = [_choices_of(summary) for summary in (one, other)]
    if choices[0] != choices[1]:
        raise MismatchError(
            asked="two runs of the same search space",
            found=f"other choices in {one['run_dir']} than in {other['run_dir']}",
            next="Compare runs whose [space] is the same.",
        )
    names, options = zip(*choices[0], strict=True)
    best = [_best(summary) for summary in (one, other)]
    sizes = [len(known) for known in options]
    shares = [marginals(tokens, sizes) for tokens in best]
    distances = [jensen_shannon(p, q) for p, q in zip(*shares, strict=True)]
    kinds: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        kind = kinds.setdefault(name.rpartition(".")[2], {"options": [], "counts": [{}, {}]})
        for option in map(str, options[i]):
            if option not in kind["options"]:
                kind["options"].append(option)
        for side in range(2):
            for option, share in zip(map(str, options[i]), shares[side][i].tolist(), strict=True):
                kind["counts"][side][option] = kind["counts"][side].get(option, 0.0) + share
    return {
        "runs": [
            {
                "name": summary["name"],
                "run_dir": summary["run_dir"],
                "method": summary["winner"]["method"],
                "teacher": (summary.get("teacher") or {}).get("source"),
                "students": len(tokens),
            }
            for summary, tokens in zip((one, other), best, strict=True)
        ],
        "kinds": {
            kind: {
                "options": known["options"],
                "shares": [
                    [counts.get(option, 0.0) / sum(counts.values()) for option in known["options"]]
                    for counts in known["counts"]
                ],
            }
            for kind, known in kinds.items()
        },
        "distance": float(np.mean(distances)),
        "by_choice": dict(zip(names, distances, strict=True)),
        "in_common": _in_common(one, other, sizes, np.random.default_rng(seed)),
    }


def _choices_of(summary: Fields) -> list[tuple[str, list[Any]]]:
    """Name and options of each choice, in the order of the trials' tokens."""
    choices = (summary.get("search") or {}).get("choices")
    if not choices:
        raise UsageError(
            asked=f"what the search of {summary.get('run_dir', summary['name'])} chose from",
            found="nothing in its summary",
            next="Give runs with a search, of this version of akd-deploy.",
        )
    return [(name, options) for name, options in choices]


def _trained(summary: Fields) -> dict[str, Any]:
    """Network → trial of a run's trained students."""
    return {trial["network"]: trial for trial in summary["search"]["trials"] if trial["state"] == "done"}


def _in_common(one: Fields, other: Fields, sizes: list[int], rng: np.random.Generator) -> dict[str, Any]:
    """Whether two runs put other students first, of those that both trained."""
    first, second = _trained(one), _trained(other)
    # By one run's encodings: choices that change nothing of a network are no preference.
    both = [(trial, second[network]) for network, trial in first.items() if network in second]
    if len(both) < LEAST_SHARED:
        return {"students": len(both), "distance": None, "null": None, "p": None}
    a, b = np.array([[trial["reward"] for trial in pair] for pair in both]).T
    tokens = np.array([trial["tokens"] for trial, _ in both])
    shift = shared_shift(a, b, tokens, sizes, rng, DRAWS)
    return {"students": len(both), "distance": shift.distance, "null": shift.null, "p": shift.p}


def _best(summary: Fields) -> np.ndarray:
    """(students, choices) tokens of the best share of a run's trained students, each network once."""
    ranked = sorted(_trained(summary).values(), key=lambda trial: -trial["reward"])
    count = max(LEAST, round(BEST * len(ranked)))
    if len(ranked) < count:
        raise UsageError(
            asked=f"at least {LEAST} trained students in {summary['run_dir']}",
            found=str(len(ranked)),
            next="Search with more trials.",
        )
    return np.array([trial["tokens"] for trial in ranked[:count]])
