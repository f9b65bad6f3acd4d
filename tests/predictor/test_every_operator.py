"""Every operator that ONNX defines is priced, named as unknown, folded away or refused by name: none costs nothing."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_models import EXAMPLES, Operator, OperatorModel, every_operator, models_of, older
from synthetic_device import header

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine, random_feeds
from akd_deploy.errors import AkdError, UncoveredOperatorError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.features import regime
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.target import Target

pytestmark = pytest.mark.xdist_group("operators")  # what every operator comes to is found out once

KERNELS_PER_REGIME = 2
"""In a table that covers an operator; its other kernels are new shapes of what is known."""
NETWORKS = 10

COMMON_REASONS = {
    "control flow": r"control flow: node '.+' \(\w+\)",
    "no tensors of numbers": r"values that are no tensors of numbers \(.+\): node '.+' \(\w+\)",
    "no tensor at its edge": r"the type (tensor\(string\)|seq\(|optional\(|map\(|sparse)|no tensor type or no shape",
}
"""What a refusal says, each of them with the operator, the node or the version that it is about."""

STRINGS = {"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "CategoryMapper"}
SEQUENCES = {"ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
             "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"}  # fmt: skip
OPTIONALS = {"Optional", "OptionalGetElement", "OptionalHasElement"}
MAPS = {"CastMap", "DictVectorizer", "ZipMap"}
CONTROL_FLOW = {"If", "Loop", "Scan"}
FOLDED = {"Constant", "Shape"}
"""Every runtime computes them once, when it loads a network of fixed shapes."""


@dataclass(frozen=True)
class Runtime:
    """What is asked for kernels.

    Of each operator `examples` are tried. `reasons` are what refusals say, `own_fault` those of them that tell that the
    runtime has no such operator; `folds` are operators that it may do without, `takes` those that it makes ones of
    numbers of. It executes `share` of all operators.
    """

    engine: Engine
    examples: int
    reasons: Mapping[str, str]
    own_fault: re.Pattern[str]
    folds: frozenset[str]
    takes: frozenset[str]
    share: float


def onnxruntime_here() -> Runtime:
    reasons = {
        "type": r"the type tensor\(\w+\)",
        "newer than the runtime": r"is not a registered function/op|IR version|till opset|"
        r"Unrecognized attribute|No Op registered",
        "not implemented": r"Could not find an implementation for \w+\(\d+\)",
        "wrong for this version": r"INVALID_GRAPH.+(operator|Op|Node|node) ?\(",
        "wrong at load or run": r"ShapeInferenceError|running \w+ node|string_normalizer",
    }
    return Runtime(
        load_engine(Target("here", device="cpu", engine="onnxruntime")),
        examples=EXAMPLES,
        reasons=COMMON_REASONS | reasons,
        own_fault=re.compile(f"{reasons['newer than the runtime']}|{reasons['not implemented']}"),
        folds=frozenset(OPTIONALS),
        takes=frozenset(),
        share=0.75,
    )


def openvino_here() -> Runtime:
    reasons = {
        "size unknown": r"the shapes of layer '.+' \(\w+\) .+ only a run tells",
        "not converted": r"No conversion rule found for operations: .+",
        "conversion failed": r"Failed operations? .+",
        "type": r"a refusal at .+ \(\w+\).*Unsupported type",
        "wrong for this version": r"a refusal at .+ \(\w+\)",
    }
    return Runtime(
        load_engine(Target("here", device="cpu", engine="openvino", engine_options={"pinning": False})),
        examples=1,
        reasons=COMMON_REASONS | reasons,
        own_fault=re.compile("|".join(reasons.values())),
        folds=frozenset({"Dropout", "EyeLike", "SequenceConstruct", "SequenceLength", "Size", "Sum"}),
        takes=frozenset({"ConcatFromSequence", "SequenceAt", "SequenceEmpty", "SequenceErase", "ZipMap"}),
        share=0.6,
    )


RUNTIMES = {"onnxruntime": onnxruntime_here, "openvino": openvino_here}


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    pytest.importorskip(request.param)
    return RUNTIMES[request.param]()


@dataclass(frozen=True)
class Tried:
    """One model of an operator: the kernels it executes, or why it has none."""

    one: OperatorModel
    executed: tuple[ExecutedKernel, ...] | None
    error: AkdError | None

    @property
    def kernels(self) -> list[Kernel]:
        return [e.kernel for e in self.executed or ()]


def tried(engine: Engine, one: OperatorModel, folder: Path) -> Tried:
    path = folder / "model.onnx"
    onnx.save_model(one.model, path)
    try:
        return Tried(one, engine.executed_kernels(path), None)
    except AkdError as error:
        return Tried(one, None, error)


@pytest.fixture(scope="module")
def outcomes(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[Operator, list[Tried]]:
    """Every operator's models, as its newest version is written and, where that is refused, by the versions before."""
    folder = tmp_path_factory.mktemp("operators")
    result: dict[Operator, list[Tried]] = {}
    for operator in every_operator():
        found = result.setdefault(operator, [])
        for one in islice(models_of(operator), runtime.examples):
            found.append(tried(runtime.engine, one, folder))
            versions = older(one)
            while found[-1].error is not None and (earlier := next(versions, None)) is not None:
                found.append(tried(runtime.engine, earlier, folder))
    return result


@pytest.fixture(scope="module")
def models(outcomes: dict[Operator, list[Tried]]) -> list[Tried]:
    """Those that execute something."""
    return [t for found in outcomes.values() for t in found if t.executed]


# --- tables ---------------------------------------------------------------------------------------------------------


def half(kernel: Kernel) -> int:
    """0 or 1, by the operator's name alone."""
    return hashlib.sha256(kernel.op.encode()).digest()[0] % 2


def seconds(kernel: Kernel) -> float:
    return 1e-6 + 1e-9 * kernel.traffic_bytes


def row(name: str, kind: str, counts: Counter[Kernel], latency_s: float) -> TableRow:
    measurement = Measurement(name, (latency_s,) * 6, (0, 0, 0, 1, 1, 1))
    return TableRow(kind, "operators", tuple(sorted(counts.items())), measurement)


def table_of(kernels: Sequence[Kernel], latencies_s: Sequence[float] | None = None) -> LatencyTable:
    """Each kernel alone as a probe, and networks of many of them."""
    cost_s = dict(zip(kernels, latencies_s or [seconds(kernel) for kernel in kernels], strict=True))
    rows = [row(f"probe-{i}", PROBE, Counter([kernel]), 2e-6 + s) for i, (kernel, s) in enumerate(cost_s.items())]
    rng = np.random.default_rng(0)
    for i in range(NETWORKS):
        counts = Counter(kernels[j] for j in rng.integers(0, len(kernels), 30))
        rows.append(row(f"network-{i}", NETWORK, counts, 2e-6 + sum(n * cost_s[k] for k, n in counts.items())))
    return LatencyTable(header(), tuple(rows))


@pytest.fixture(scope="module")
def known(models: list[Tried]) -> list[Kernel]:
    """A few kernels of every regime that is executed."""
    by_regime: dict[str, list[Kernel]] = {}
    for kernel in dict.fromkeys(kernel for t in models for kernel in t.kernels):
        by_regime.setdefault(regime(kernel), []).append(kernel)
    return [kernel for kernels in by_regime.values() for kernel in kernels[:KERNELS_PER_REGIME]]


@pytest.fixture(scope="module")
def covering(known: list[Kernel]) -> Predictor:
    """A predictor that knows every operator."""
    return fit_predictor(table_of(known))


@pytest.fixture(scope="module")
def halves(known: list[Kernel]) -> tuple[Predictor, Predictor]:
    """Two predictors; each knows nothing of the other's operators."""
    first, second = (fit_predictor(table_of([k for k in known if half(k) == side])) for side in (0, 1))
    return first, second


# --- what every operator comes to -----------------------------------------------------------------------------------


def test_every_operator_executes_kernels_is_folded_away_or_is_refused(
    runtime: Runtime, outcomes: dict[Operator, list[Tried]]
) -> None:
    assert all(outcomes.values())
    executed = {name for (_, name), found in outcomes.items() if any(t.executed for t in found)}
    folded = {name for (_, name), found in outcomes.items() if any(t.executed == () for t in found)} - executed
    refused = {name for (_, name), found in outcomes.items() if all(t.error is not None for t in found)}
    assert executed | folded | refused == {name for _, name in outcomes}
    assert FOLDED <= folded <= FOLDED | runtime.folds
    foreign = STRINGS | SEQUENCES | OPTIONALS | MAPS | CONTROL_FLOW
    assert foreign & executed == runtime.takes
    assert foreign - runtime.folds - runtime.takes <= refused
    unsupported = {
        name for (_, name), found in outcomes.items() if any(runtime.own_fault.search(str(t.error)) for t in found)
    }
    assert refused - foreign <= unsupported
    assert len(executed) > runtime.share * len(outcomes)


def test_what_is_folded_away_is_nowhere_computed(
    runtime: Runtime, outcomes: dict[Operator, list[Tried]], tmp_path: Path
) -> None:
    folded = [t for found in outcomes.values() for t in found if t.executed == ()]
    assert {t.one.operator[1] for t in folded} >= FOLDED
    path = tmp_path / "model.onnx"
    for t in folded:
        onnx.save_model(t.one.model, path)
        assert is_computed_nowhere(runtime.engine, path), t.one.name


def is_computed_nowhere(engine: Engine, path: Path) -> bool:
    """Whether every output is the same for any input, or is an input."""
    with engine.load(path) as session:
        feeds = []
        for seed in (0, 1):
            noise = random_feeds(session, np.random.default_rng(seed))
            feeds.append({n: a if a.dtype.kind == "f" else np.full_like(a, seed) for n, a in noise.items()})
        first, second = (session.run(feed) for feed in feeds)
    return all(
        np.array_equal(first[name], second[name])
        or any(np.array_equal(first[name], array) for array in feeds[0].values())
        for name in first
    )


def test_every_refusal_says_why(runtime: Runtime, outcomes: dict[Operator, list[Tried]]) -> None:
    unclear = [
        (t.one.name, str(t.error))
        for found in outcomes.values()
        for t in found
        if t.error is not None and not any(re.search(reason, str(t.error)) for reason in runtime.reasons.values())
    ]
    assert unclear == []


# --- what an unknown and a known operator cost ----------------------------------------------------------------------


def test_an_operator_that_the_table_knows_nothing_of_stops_the_prediction_and_is_named(
    models: list[Tried], halves: tuple[Predictor, Predictor]
) -> None:
    named: set[str] = set()
    for t in models:
        for side, predictor in enumerate(halves):
            unknown = sorted({kernel.op for kernel in t.kernels if half(kernel) != side})
            if unknown:
                with pytest.raises(UncoveredOperatorError) as caught:
                    predictor.predict(t.executed or ())
                assert caught.value.uncovered == unknown, t.one.name
                assert caught.value.exit_code == 2
                named |= set(unknown)
    assert named == {kernel.op for t in models for kernel in t.kernels}


def test_no_kernel_that_is_executed_costs_nothing(models: list[Tried], covering: Predictor) -> None:
    for t in models:
        prediction = covering.predict(t.executed or ())
        assert [layer.kernel for layer in prediction.layers] == t.kernels
        assert all(layer.latency_s > 0 for layer in prediction.layers), t.one.name
        assert prediction.latency_s == pytest.approx(
            prediction.overhead_s + sum(layer.latency_s for layer in prediction.layers)
        )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_kernel_costs_nothing_whatever_a_table_says(known: list[Kernel], data: st.DataObject) -> None:
    """Latencies that have nothing to do with sizes, or are all the overhead's, leave no operator without a cost."""
    start = data.draw(st.integers(0, len(known) - 40))
    chosen = known[start : start + 40]
    latencies_s = data.draw(
        st.one_of(
            st.just([1e-9] * len(chosen)),
            st.lists(st.floats(1e-9, 1e-2), min_size=len(chosen), max_size=len(chosen)),
        )
    )
    predictor = fit_predictor(table_of(chosen, latencies_s))
    for kernel in chosen:
        costs = predictor.costs([kernel, larger(kernel, 64)])
        assert all(cost.mean_s > 0 for cost in costs), kernel.signature


def larger(kernel: Kernel, factor: int) -> Kernel:
    """Its tensors so many times as large in every dimension that is not 1."""

    def grown(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(n * factor if n > 1 else n for n in shape) for shape in shapes)

    return replace(kernel, inputs=grown(kernel.inputs), outputs=grown(kernel.outputs))


def test_a_known_operator_outside_the_measured_range_widens_the_interval_and_says_so(
    known: list[Kernel], covering: Predictor
) -> None:
    def width(kernel: Kernel) -> tuple[float, bool]:
        """The interval's upper half beside the latency, and whether it is said to be within the range."""
        prediction = covering.predict([ExecutedKernel(kernel, "k")])
        return prediction.upper_s / prediction.latency_s - 1, prediction.in_domain

    tested = 0
    for kernel in known:
        grown = larger(kernel, 2**14)
        if kernel.output_elements < 2:
            continue
        (inside, is_in), (outside, is_out_in) = width(kernel), width(grown)
        assert is_in, kernel.signature
        assert not is_out_in, kernel.signature
        assert outside > inside, kernel.signature
        tested += 1
    assert tested > 0.8 * len(known)
