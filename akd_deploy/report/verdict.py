"""The headline: whether the student meets the budget, and how that is known, in words."""

from __future__ import annotations

from dataclasses import dataclass

from akd_deploy.report.quantities import count, latency, latency_range, number, percent, percentile, rounded, time_unit
from akd_deploy.report.summary import Fields

SLOWED = 1.08
"""A median so much above the latency at full speed is worth a sentence."""


@dataclass(frozen=True)
class Verdict:
    """`tone` is "good" (certified), "bad" (budget not met) or "open" (not shown either way)."""

    tone: str
    headline: str
    sentences: tuple[str, ...]


def verdict_of(summary: Fields) -> Verdict:
    """Judge what the summary holds; what it lacks is said, never assumed."""
    winner, budget = summary.get("winner"), summary.get("budget") or {}
    if not winner:
        return Verdict("open", "No student was chosen in this run.", ("There is nothing to hold against the budget.",))
    certificate, measured = winner.get("certificate"), winner.get("measured_s")
    budget_s = winner.get("budget_s", budget.get("budget_s"))
    sentences = (
        *_measured_sentences(measured, budget_s, budget.get("percentile")),
        *_prediction_sentences(winner, budget_s, summary.get("predictor") or {}),
    )
    if not measured and not certificate:
        return Verdict(
            "open",
            "Predicted only: the student was not measured in this run.",
            (*sentences, "Without a measurement there is no certificate."),
        )
    if not certificate:
        return Verdict(
            "open", "Measured, but not certified.", (*sentences, "No certificate was made from the samples.")
        )
    held_s = certificate.get("budget_s")
    if None not in (held_s, budget_s) and abs(held_s - budget_s) > 1e-9 * budget_s:
        return Verdict(
            "bad",
            "The certificate is for another budget.",
            (*sentences, f"It tests {latency(held_s)}; the budget is {latency(budget_s)}."),
        )
    if certificate.get("ok") is True:
        return Verdict(
            "good", "The student meets the budget: the certificate holds.", (*sentences, _evidence(certificate))
        )
    return Verdict("bad", _failed_headline(certificate), (*sentences, _evidence(certificate)))


def _failed_headline(certificate: Fields) -> str:
    """A certificate fails because the budget is exceeded, or because the samples cannot show that it is not."""
    exceeding, samples, asked = (certificate.get(key) for key in ("exceeding", "samples", "percentile"))
    if exceeding is None or asked is None or not samples:
        return "The certificate does not hold."
    if exceeding / samples > 1 - asked / 100:
        return "The student exceeds the budget: the certificate does not hold."
    return "The budget is not proven: the certificate does not hold."


def _evidence(certificate: Fields) -> str:
    confidence = percent(certificate.get("confidence"), 0)
    asked = certificate.get("percentile")
    share = "the stated share" if asked is None else f"{number(asked):g}\u00a0%"
    claim = (
        f"With {confidence} confidence at least {share} of calls take no longer than the budget"
        if certificate.get("ok") is True
        else f"It would have to show with {confidence} confidence that at least {share} of calls are within the budget"
    )
    return (
        f"{claim}: {count(certificate.get('exceeding'))} of {count(certificate.get('samples'))} samples from "
        f"{count(certificate.get('blocks'))} fresh processes exceeded it, and {count(certificate.get('allowed'))} may. "
        f"In the worst process {percent(certificate.get('worst_block_exceeding'))} did."
        f"{_over_processes(certificate)}"
    )


def _over_processes(certificate: Fields) -> str:
    """What the test that minds differences between processes says; earlier certificates have none."""
    ok, upper_s = certificate.get("clustered_ok"), certificate.get("clustered_upper_s")
    if not isinstance(ok, bool):
        return ""
    bound = "has no bound" if upper_s is None else f"is at most {latency(upper_s)}"
    asked = percentile(certificate.get("percentile"))
    told = f" In processes to come, which differ as these do, {asked} {bound}: {'' if ok else 'not '}within the budget."
    if certificate.get("failing_share_upper") is None:
        return told
    failing, most = count(certificate.get("failing_blocks")), percent(certificate.get("failing_share_upper"))
    return f"{told} Whatever else there is, as a second speed: {failing} of these missed it, at most {most} do."


def _measured_sentences(measured: Fields | None, budget_s: float | None, asked: float | None) -> list[str]:
    if not measured or budget_s is None or asked is None:
        return []
    name = percentile(asked)
    if measured.get(name) is None:
        return [f"{name} of the measured calls is not recorded; the budget for it is {latency(budget_s)}."]
    unit = time_unit([budget_s])
    return [
        f"{name} of the measured calls is {latency(measured[name], unit)}; its budget is {latency(budget_s, unit)}."
    ]


def _prediction_sentences(winner: Fields, budget_s: float | None, predictor: Fields) -> list[str]:
    interval, predicted = winner.get("interval_s"), winner.get("predicted_s")
    median, full_speed = (winner.get("measured_s") or {}).get("median"), winner.get("full_speed_s")
    measured = median if full_speed is None else full_speed
    sentences = []
    if predicted is not None and interval and measured is not None:
        unit = time_unit([predicted, measured])
        inside = interval[0] <= measured <= interval[1]
        what = "median" if full_speed is None else "latency at full speed"
        sentences.append(
            f"The measured {what}, {latency(measured, unit)}, lies {'inside' if inside else 'OUTSIDE'} the predicted "
            f"interval of {latency_range(interval, unit)}."
        )
        if full_speed is not None and median is not None and median > SLOWED * full_speed:
            sentences.append(
                f"Half of the calls took longer than {latency(median, unit)}: something else slowed the machine, and "
                f"the certificate counts it."
            )
    if winner.get("in_domain") is False:
        sentences.append("Some of its kernels are outside the profiled range, so the interval was widened.")
    asked = predictor.get("certificate_factor")
    if interval and asked is not None and budget_s is not None:
        unit = time_unit([budget_s])
        sentences.append(
            f"Before training, the interval's upper end × {rounded(asked)}, which is what a certificate asks here, was "
            f"{latency(interval[1] * asked, unit)}, against a budget of {latency(budget_s, unit)}."
        )
    return sentences
