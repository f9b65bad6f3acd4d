"""Compare a network's outputs before and after a conversion, within a tolerance that depends on the precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite

import numpy as np

from akd_deploy.errors import MismatchError, ParityError, UnknownNameError, UsageError
from akd_deploy.target import PRECISIONS

Arrays = Mapping[str, np.ndarray]
RunNetwork = Callable[[Arrays], Arrays]
"""Input name → array to output name → array; `Session.run` is one."""


@dataclass(frozen=True)
class Tolerance:
    """What may differ at a precision; a bound that is None is not judged. `reason` says where they come from."""

    max_rel: float | None
    cosine: float | None
    top1_agreement: float | None
    reason: str


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        max_rel=5e-4,
        cosine=0.99999,
        top1_agreement=None,
        reason="reordered sums of 1e4 terms err by about 6e-6 a layer, 6e-5 over 100; Winograd loses a digit more",
    ),
    "tf32": Tolerance(
        max_rel=2e-2,
        cosine=0.9995,
        top1_agreement=None,
        reason="10 bits of mantissa as in float16, the range of float32, sums in float32",
    ),
    "fp16": Tolerance(
        max_rel=3e-2,
        cosine=0.999,
        top1_agreement=None,
        reason="a rounding errs by 4.9e-4; a random walk over 100 layers gives 5e-3, and deep sums a few times that",
    ),
    "bf16": Tolerance(
        max_rel=1.5e-1,
        cosine=0.99,
        top1_agreement=None,
        reason="a rounding errs by 3.9e-3, eight times float16's: 4e-2 over 100 layers, and a few times that",
    ),
    "int8": Tolerance(
        max_rel=None,
        cosine=0.95,
        top1_agreement=0.9,
        reason="single values may be off by a step of the scale, so only direction and decision are judged; by eye",
    ),
    "fp8": Tolerance(
        max_rel=None,
        cosine=0.95,
        top1_agreement=0.9,
        reason="three bits of mantissa: direction and decision are judged, as for int8; by eye",
    ),
}
"""Precision of the target → tolerance against the float32 source."""


@dataclass(frozen=True)
class OutputParity:
    """How one output differs over all samples.

    `max_rel` is max |difference| over max |reference| (element by element it would be meaningless near 0).
    `cosine` is that of the worst sample. `top1_agreement` is the share of samples whose largest value is at the same
    place, of outputs of (samples, classes); None of any other shape, whose classes, if it has any, nobody can know the
    axis of, and where there is one class or none. `non_finite` counts values that are NaN or infinite on one side
    only, or infinite with different signs.
    """

    name: str
    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float | None
    non_finite: int


@dataclass(frozen=True)
class Parity:
    """The worst over all outputs, and each output's own; `samples` counts rows of the batches compared."""

    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float | None
    samples: int
    per_output: tuple[OutputParity, ...]

    @property
    def worst_output(self) -> str:
        """The output that differs most: by non-finite values, then by relative difference."""
        return max(self.per_output, key=lambda o: (o.non_finite, o.max_rel, -o.cosine)).name

    def as_dict(self) -> dict[str, object]:
        """JSON types; a value that is not finite becomes None, and `non_finite` of its output says why."""
        fields = asdict(self)
        for part in (fields, *fields["per_output"]):
            for key, value in part.items():
                if isinstance(value, float) and not isfinite(value):
                    part[key] = None
        fields["per_output"] = list(fields["per_output"])
        return fields


def compare_outputs(
    reference: RunNetwork | Sequence[Arrays], candidate: RunNetwork, inputs: Iterable[Arrays]
) -> Parity:
    """Run both networks on the same inputs and measure how far their outputs are apart.

    Args:
        reference: the source network, or its outputs computed before, one mapping per entry of `inputs`.
        candidate: the converted network.
        inputs: feeds, each a whole batch; the first axis of an output counts samples.

    Raises:
        UsageError: no inputs, or not as many reference outputs as inputs.
        MismatchError: outputs that differ in name or shape.
    """
    feeds = list(inputs)
    if not feeds:
        raise UsageError(asked="a comparison of outputs", found="no inputs", next="Hand in at least one batch.")
    expected = [reference(feed) for feed in feeds] if callable(reference) else list(reference)
    if len(expected) != len(feeds):
        raise UsageError(
            asked=f"reference outputs of {len(feeds)} batches", found=f"{len(expected)}", next="Compute one per batch."
        )
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for feed, wanted in zip(feeds, expected, strict=True):
        got = candidate(feed)
        if set(got) != set(wanted):
            raise MismatchError(
                asked=f"outputs {sorted(wanted)}",
                found=f"outputs {sorted(got)}",
                next="Export both with one name each.",
            )
        for name in wanted:
            pairs.setdefault(name, []).append((np.asarray(wanted[name]), np.asarray(got[name])))
    per_output = tuple(output_parity(name, arrays) for name, arrays in pairs.items())
    agreements = [o.top1_agreement for o in per_output if o.top1_agreement is not None]
    first = next(iter(pairs.values()))
    return Parity(
        max_abs=max(o.max_abs for o in per_output),
        max_rel=max(o.max_rel for o in per_output),
        cosine=min(o.cosine for o in per_output),
        top1_agreement=min(agreements) if agreements else None,
        samples=sum(len(a) if a.ndim else 1 for a, _ in first),
        per_output=per_output,
    )


def output_parity(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> OutputParity:
    """How one output differs: pairs of (reference, candidate) batches of one shape, the first axis counting samples.

    Raises:
        MismatchError: a pair's shapes differ.
    """
    max_abs = peak = 0.0
    cosines, hits, decisions, non_finite = [], 0, 0, 0
    for reference, candidate in pairs:
        if reference.shape != candidate.shape:
            raise MismatchError(
                asked=f"output {name!r} of shape {reference.shape}",
                found=f"{candidate.shape}",
                next="Export both for one batch size.",
            )
        a, b = (np.atleast_1d(array.astype(np.float64)) for array in (reference, candidate))
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # equal infinities and masks agree
        broken = ~same & ~(np.isfinite(a) & np.isfinite(b))
        non_finite += int(broken.sum())
        plain = np.isfinite(a) & np.isfinite(b)
        difference = np.abs(np.where(plain, a, 0) - np.where(plain, b, 0))
        max_abs = inf if broken.any() else max(max_abs, float(difference.max(initial=0.0)))
        peak = max(peak, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
        for sample_a, sample_b, sample_plain in zip(a, b, plain, strict=True):
            cosines.append(
                _cosine(np.where(sample_plain, sample_a, 0).ravel(), np.where(sample_plain, sample_b, 0).ravel())
            )
        if a.ndim == 2 and a.shape[-1] > 1:
            hits += int((a.argmax(-1) == b.argmax(-1)).sum())
            decisions += a.argmax(-1).size
    if non_finite:
        max_abs = inf
    return OutputParity(
        name=name,
        max_abs=max_abs,
        max_rel=max_abs / peak if peak > 0 else (0.0 if max_abs == 0 else inf),
        cosine=min(cosines, default=1.0),
        top1_agreement=hits / decisions if decisions else None,
        non_finite=non_finite,
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors; two zero vectors agree, a zero and another do not."""
    scale_a, scale_b = np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)
    if scale_a == 0 or scale_b == 0:
        return 1.0 if scale_a == scale_b else 0.0
    a, b = a / scale_a, b / scale_b  # so that no square overflows
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def tolerance_for(precision: str) -> Tolerance:
    """The tolerance of a target's precision.

    Raises:
        UnknownNameError: not one of the precisions.
    """
    if precision not in TOLERANCES:
        raise UnknownNameError("precision", precision, PRECISIONS)
    return TOLERANCES[precision]


def is_within(parity: Parity, tolerance: Tolerance) -> bool:
    """Whether every output is within the tolerance."""
    return not any(_complaints(output, tolerance) for output in parity.per_output)


def check_parity(parity: Parity, tolerance: Tolerance) -> None:
    """Return where every output is within the tolerance.

    Raises:
        ParityError: it is not; the message names the worst output and what it exceeds.
    """
    complaints = {o.name: _complaints(o, tolerance) for o in parity.per_output}
    failed = {name: found for name, found in complaints.items() if found}
    if failed:
        worst = parity.worst_output if parity.worst_output in failed else next(iter(failed))
        others = sorted(failed.keys() - {worst})
        raise ParityError(
            asked=f"output {worst!r} as its source's over {parity.samples} samples",
            found="; ".join(failed[worst]) + (f" (and {len(others)} more: {', '.join(others)})" if others else ""),
            next="Find the first tensor that diverges, and keep its node in a higher precision.",
            output=worst,
            parity=parity.as_dict(),
        )


def _complaints(output: OutputParity, tolerance: Tolerance) -> list[str]:
    found = []
    if output.non_finite:
        found.append(f"{output.non_finite} values not finite")
    if tolerance.max_rel is not None and not output.max_rel <= tolerance.max_rel:
        found.append(
            f"max |difference| {output.max_abs:.3g} is {output.max_rel:.3g} of the output, over {tolerance.max_rel:g}"
        )
    if tolerance.cosine is not None and not output.cosine >= tolerance.cosine:
        found.append(f"cosine {output.cosine:.6f} below {tolerance.cosine:g}")
    if tolerance.top1_agreement is not None and output.top1_agreement is not None:  # noqa: SIM102 - one bound, one block
        if output.top1_agreement < tolerance.top1_agreement:
            found.append(f"top-1 agreement {output.top1_agreement:.3f} below {tolerance.top1_agreement:g}")
    return found
