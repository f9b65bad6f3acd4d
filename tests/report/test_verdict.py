"""The headline says exactly what the evidence allows."""

from __future__ import annotations

from typing import Any

import pytest
from example_summary import BUDGET_S, example_summary, minimal_summary

from akd_deploy.report.verdict import verdict_of


def with_certificate(**changes: Any) -> dict[str, Any]:
    summary = example_summary()
    summary["winner"]["certificate"] = {**summary["winner"]["certificate"], **changes}
    return summary


def test_held_certificate_is_the_only_good_news():
    verdict = verdict_of(example_summary())
    assert verdict.tone == "good"
    assert verdict.headline == "The student meets the budget: the certificate holds."
    assert "With 99\u00a0% confidence at least 90\u00a0% of calls" in verdict.sentences[-1]
    assert "of 1,200 samples from 12 fresh processes" in verdict.sentences[-1]


def test_many_slow_samples_are_an_exceeded_budget():
    verdict = verdict_of(with_certificate(ok=False, exceeding=140))
    assert verdict.tone == "bad"
    assert "exceeds the budget" in verdict.headline


def test_too_little_evidence_is_not_called_exceeding():
    # 8.9 % of samples are slow, below the 10 % that p90 leaves, yet above the 95 of 1,200 that the test allows
    verdict = verdict_of(with_certificate(ok=False, exceeding=107))
    assert verdict.tone == "bad"
    assert "not proven" in verdict.headline
    assert "would have to show" in verdict.sentences[-1]


@pytest.mark.parametrize("ok", [None, "true", 1])
def test_only_true_is_a_held_certificate(ok):
    assert verdict_of(with_certificate(ok=ok)).tone == "bad"


def test_certificate_of_another_budget_proves_nothing():
    verdict = verdict_of(with_certificate(budget_s=2 * BUDGET_S))
    assert verdict.tone == "bad"
    assert "another budget" in verdict.headline


def test_measured_without_certificate_and_unmeasured_stay_open():
    summary = example_summary()
    del summary["winner"]["certificate"]
    assert (verdict_of(summary).tone, verdict_of(summary).headline) == ("open", "Measured, but not certified.")
    del summary["winner"]["measured_s"]
    assert verdict_of(summary).headline.startswith("Predicted only")
    assert verdict_of(minimal_summary()).headline == "No student was chosen in this run."


def test_measurement_outside_the_predicted_interval_is_said_loudly():
    summary = example_summary()
    summary["winner"]["interval_s"] = [1e-4, 2e-4]
    summary["winner"]["in_domain"] = False
    sentences = " ".join(verdict_of(summary).sentences)
    assert "The measured median, " in sentences
    assert "lies OUTSIDE the predicted interval of 100 to 200\u00a0µs" in sentences
    assert "outside the profiled range" in sentences


def test_what_is_predicted_is_held_against_the_latency_at_full_speed_and_a_slowed_machine_is_named():
    summary = example_summary()
    low, high = summary["winner"]["interval_s"]
    summary["winner"]["full_speed_s"] = (low + high) / 2
    summary["winner"]["measured_s"]["median"] = 2 * high
    sentences = " ".join(verdict_of(summary).sentences)
    assert "The measured latency at full speed, " in sentences
    assert "lies inside the predicted interval" in sentences
    assert "something else slowed the machine" in sentences
    summary["winner"]["measured_s"]["median"] = (low + high) / 2
    assert "slowed the machine" not in " ".join(verdict_of(summary).sentences)


def test_measured_percentile_is_the_budgets_own():
    summary = example_summary()
    summary["budget"]["percentile"] = 99
    assert verdict_of(summary).sentences[0].startswith("p99 of the measured calls is")
    summary["budget"]["percentile"] = 95
    assert "p95 of the measured calls is not recorded" in verdict_of(summary).sentences[0]
