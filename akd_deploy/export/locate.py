"""A comparison that failed, with the first tensor that differs: what stands in the error says where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from akd_deploy.errors import AkdError, MismatchError, ParityError
from akd_deploy.export.divergence import Divergence, Evaluate, first_divergence
from akd_deploy.export.parity import Arrays, Parity, RunNetwork, Tolerance, check_parity, compare_outputs


def failing_batch(
    reference: RunNetwork, candidate: RunNetwork, inputs: Sequence[Arrays], tolerance: Tolerance
) -> Arrays | None:
    """The first batch that fails by itself. Where all fail together one does: a bound that parts keep, all keep."""
    for feeds in inputs:
        try:
            check_parity(compare_outputs(reference, candidate, [feeds]), tolerance)
        except ParityError:
            return feeds
    return None


def locate(
    source: Path,
    variant: Path,
    feeds: Arrays,
    tolerance: Tolerance,
    evaluators: Mapping[str, tuple[Evaluate, Evaluate]],
) -> tuple[Divergence | None, str]:
    """The first tensor outside the tolerance, and in words who looked or why there is none.

    Args:
        source, variant: ONNX files.
        feeds: one batch with which their outputs differ.
        evaluators: who runs the two files, by name; the first that can run them looks.
    """
    why = "nobody could run the networks"
    for name, (evaluate, evaluate_b) in evaluators.items():
        try:
            found = first_divergence(
                source,
                variant,
                feeds,
                tolerance.max_rel,
                evaluate,
                min_cosine=tolerance.cosine,
                evaluate_b=evaluate_b,
            )
        except MismatchError as error:
            return None, error.found
        except AkdError as error:
            why = f"{name} could not: {error.found}"
            continue
        return found, name if found else f"no tensor by itself is outside the tolerance, as {name} computes them"
    return None, why


def located(error: ParityError, divergence: Divergence | None, how: str) -> ParityError:
    """The error with the first node that diverges, in its words and as `first_divergence` in its details."""
    if divergence is None:
        found, next_step = f"{error.found}; {how}", error.next
    else:
        found = f"{error.found}; first at {divergence}"
        correct = "the scale of what it puts out" if divergence.by_quantising else "it"
        next_step = f"Keep node {divergence.node!r} in a higher precision, or correct {correct}."
    told = divergence.as_dict() if divergence else None
    details = {**error.details, "first_divergence": told, "looked_for_by": how}
    return ParityError(error.asked, found, next_step, **details)


def check_located(
    parity: Parity,
    tolerance: Tolerance,
    reference: RunNetwork,
    candidate: RunNetwork,
    inputs: Sequence[Arrays],
    source: Path,
    variant: Path,
    evaluators: Mapping[str, tuple[Evaluate, Evaluate]],
) -> None:
    """Return where every output is within the tolerance.

    Raises:
        ParityError: it is not; with the first tensor in which the two ONNX files differ.
    """
    try:
        check_parity(parity, tolerance)
    except ParityError as error:
        feeds = failing_batch(reference, candidate, inputs, tolerance)
        if feeds is None:
            raise
        raise located(error, *locate(source, variant, feeds, tolerance, evaluators)) from error
