"""The protocols that predictors are compared under, and the line each of them gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.errors import AkdError, UncoveredOperatorError
from akd_deploy.latency_table import NETWORK, LatencyTable, TableRow
from akd_deploy.predictor.scores import Scores, scores_of
from akd_deploy.search_space import SPACES
from benchmarks.networks import NETWORKS, STRANGERS
from benchmarks.predictors import Contender, Predict, Predicted

UNSEEN_KINDS = "unseen kinds"
PROBES_ONLY = "probes only"
FAMILY_OUT = "leave one family out"
PROTOCOLS: Mapping[str, str] = {
    UNSEEN_KINDS: (
        "Tested on networks of kinds that no stretch is of (`benchmarks.networks.STRANGERS`). Fitted on all stretches, "
        "and predictors that learn from whole networks on the other networks."
    ),
    PROBES_ONLY: (
        "Fitted on the probes alone, among them stretches of the tested networks, and tested on every network. "
        "A second line for predictors that learn from whole networks: on all networks but the tested one."
    ),
    FAMILY_OUT: (
        "For each family its networks are predicted by what was fitted without any row of that family: neither its "
        "networks nor stretches of them. Fitted on the stretches of the other families; a second line for predictors "
        "that have use for whole networks: on stretches and networks of the other families."
    ),
}
ON_PROBES, ON_OTHER_NETWORKS = "probes", "the other networks"
ON_OTHER_PROBES, ON_OTHER_FAMILIES = "probes of other families", "the other families"

Answer = Predicted | AkdError
"""A prediction, or the reason why there is none."""
Progress = Callable[[str], None]


def is_stranger(row: TableRow) -> bool:
    """Whether a row is of a network of a kind that a general profile has no stretches of."""
    return row.family in STRANGERS


def tested_by(protocol: str, table: LatencyTable) -> list[TableRow]:
    """The networks that a protocol tests."""
    return [row for row in table.of_kind(NETWORK) if is_stranger(row) == (protocol == UNSEEN_KINDS)]


def family_of(row: TableRow) -> str:
    """The family of a published network, the search space of a row drawn from one, else the row's own."""
    if row.family in NETWORKS:
        return NETWORKS[row.family].family
    if row.family in STRANGERS:
        return STRANGERS[row.family].family
    space = row.family.partition("-")[0]
    return space if space in SPACES else row.family


def labels_of(rows: Sequence[TableRow]) -> list[str]:
    """What rows are called in results: the network's name where only one row has it, else the row's own."""
    times = Counter(row.family for row in rows)
    return [row.family if times[row.family] == 1 else row.name for row in rows]


@dataclass(frozen=True)
class Line:
    """One predictor's result on `networks`, in their order.

    Rates are shares of all networks: one that is not predicted is a miss. Errors, ranks, σ and coverage (`scores`,
    None where nothing was predicted) are of the predicted ones; `common_mape` is of those that every line predicts.
    """

    predictor: str
    fitted_on: str
    networks: tuple[str, ...]
    answers: tuple[Answer, ...]
    measured_s: tuple[float, ...]
    scores: Scores | None
    common: int
    common_mape: float | None

    @property
    def within_5(self) -> float:
        return self._share(self.scores.within_5 if self.scores else 0.0)

    @property
    def within_10(self) -> float:
        return self._share(self.scores.within_10 if self.scores else 0.0)

    @property
    def over_floor(self) -> float | None:
        """MAPE in units of what a perfect model would score on labels of this noise; None where that is unknown."""
        return self.scores.mape / self.scores.floor_mape if self.scores and self.scores.floor_mape else None

    @property
    def unpredicted(self) -> dict[str, str]:
        """Networks without a prediction and why: the operators that nothing is known of, or what was refused."""
        return {
            name: _reason(answer)
            for name, answer in zip(self.networks, self.answers, strict=True)
            if isinstance(answer, AkdError)
        }

    def _share(self, of_predicted: float) -> float:
        return of_predicted * (self.scores.items if self.scores else 0) / len(self.networks)


def _reason(error: AkdError) -> str:
    return ", ".join(error.uncovered) if isinstance(error, UncoveredOperatorError) else error.found


def run_protocol(protocol: str, table: LatencyTable, contenders: Iterable[Contender], told: Progress) -> list[Line]:
    """The lines of one protocol, in the contenders' order; `told` hears which fit comes next."""
    tested = tested_by(protocol, table)
    known = LatencyTable(table.header, tuple(row for row in table.rows if not is_stranger(row)))
    probes = LatencyTable(table.header, tuple(row for row in known.rows if row.kind != NETWORK))
    answered: list[tuple[str, str, list[Answer]]] = []
    for contender in contenders:
        if protocol == FAMILY_OUT:
            if not contender.from_networks:
                answers = _without_each(contender, probes, tested, family_of, told)
                answered.append((contender.name, ON_OTHER_PROBES, answers))
            if contender.from_networks or contender.calibrated_on_networks:
                answers = _without_each(contender, known, tested, family_of, told)
                answered.append((contender.name, ON_OTHER_FAMILIES, answers))
            continue
        if protocol == PROBES_ONLY or not contender.from_networks:
            told(f"{contender.name}: {protocol}")
            answered.append((contender.name, ON_PROBES, _answers(contender, probes, tested)))
        if protocol == UNSEEN_KINDS and contender.from_networks:
            told(f"{contender.name}: {protocol}")
            answered.append((contender.name, ON_OTHER_NETWORKS, _answers(contender, known, tested)))
        elif contender.from_networks:
            answers = _without_each(contender, known, tested, lambda row: row.name, told)
            answered.append((contender.name, ON_OTHER_NETWORKS, answers))
    return lines_of(tested, answered)


def _without_each(
    contender: Contender,
    table: LatencyTable,
    networks: Sequence[TableRow],
    group_of: Callable[[TableRow], str],
    told: Progress,
) -> list[Answer]:
    """Every network predicted by what was fitted on the table's rows outside its group."""
    groups = list(dict.fromkeys(group_of(row) for row in networks))
    found: dict[str, Answer] = {}
    for done, group in enumerate(groups):
        told(f"{contender.name}: without {group} ({done + 1} of {len(groups)})")
        rest = LatencyTable(table.header, tuple(row for row in table.rows if group_of(row) != group))
        tested = [row for row in networks if group_of(row) == group]
        found.update(zip((row.name for row in tested), _answers(contender, rest, tested), strict=True))
    return [found[row.name] for row in networks]


def _answers(contender: Contender, table: LatencyTable, tested: Sequence[TableRow]) -> list[Answer]:
    """Fit once, predict each; a fit that is refused answers for all of them."""
    try:
        predict = contender.fit(table)
    except AkdError as error:
        return [error] * len(tested)
    return [_answer(predict, row) for row in tested]


def _answer(predict: Predict, row: TableRow) -> Answer:
    try:
        return predict(row.counts())
    except AkdError as error:
        return error


def lines_of(networks: Sequence[TableRow], answered: Iterable[tuple[str, str, Sequence[Answer]]]) -> list[Line]:
    """Score (predictor, fitted on, answer to each network) triples against the networks' measurements."""
    answered = list(answered)
    measured = np.array([row.measurement.label_s for row in networks])
    common = [
        i for i in range(len(networks)) if not any(isinstance(answers[i], AkdError) for _, _, answers in answered)
    ]
    lines = []
    for name, fitted_on, answers in answered:
        kept = [(i, answer) for i, answer in enumerate(answers) if isinstance(answer, Predicted)]
        predicted = {i: answer.latency_s for i, answer in kept}
        error = [abs(predicted[i] / measured[i] - 1) for i in common]
        lines.append(
            Line(
                name,
                fitted_on,
                tuple(labels_of(networks)),
                tuple(answers),
                tuple(measured.tolist()),
                _scores([networks[i] for i, _ in kept], [answer for _, answer in kept]),
                len(common),
                float(np.mean(error)) if error else None,
            )
        )
    return lines


def _scores(rows: Sequence[TableRow], predicted: Sequence[Predicted]) -> Scores | None:
    if not rows:
        return None
    latency = np.array([p.latency_s for p in predicted])
    measured = np.array([row.measurement.label_s for row in rows])
    intervals = [p.interval_s for p in predicted if p.interval_s is not None]
    held = None
    if len(intervals) == len(rows):
        low, high = np.array(intervals).T
        held = (low <= measured) & (measured <= high)
    sigmas = [sigma for row in rows if (sigma := row.measurement.label_sigma) is not None]
    return scores_of(latency, measured, held, float(np.median(sigmas)) if sigmas else None)
