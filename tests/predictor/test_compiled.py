from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by, table_of

from akd_deploy.architecture import Architecture
from akd_deploy.errors import MismatchError, UncoveredOperatorError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.predictor.cold_weights import ColdWeights
from akd_deploy.predictor.compiled import CompiledSpace, compile_space
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.search_space import Layer, load_space

pytestmark = pytest.mark.xdist_group("compiled")  # the predictor is fitted once

SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1, 2], [1, 2]]})


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return fit_predictor(table_of(SyntheticDevice(), SPACE, probes=80, networks=20, seed=0))


def kernels_of(chains: Sequence[Sequence[Layer]]) -> list[tuple[ExecutedKernel, ...]]:
    return [executed_by(tuple(chain)) for chain in chains]


def whole(predictor: Predictor, architecture: Architecture) -> float:
    return predictor.predict(executed_by(SPACE.layers(architecture))).latency_s


def compiled_by(predictor: Predictor) -> CompiledSpace:
    return compile_space(SPACE, predictor, kernels_of, lambda a: whole(predictor, a), np.random.default_rng(0))


@pytest.fixture(scope="module")
def compiled(predictor: Predictor) -> CompiledSpace:
    return compiled_by(predictor)


def test_lookups_equal_predictions_of_whole_networks_where_layers_do_not_interact(
    predictor: Predictor, compiled: CompiledSpace
) -> None:
    rng = np.random.default_rng(1)
    architectures = [SPACE.sample(rng) for _ in range(200)]
    latency_s, upper_s = compiled.predict(architectures)
    predictions = [predictor.predict(executed_by(SPACE.layers(a))) for a in architectures]
    np.testing.assert_allclose(latency_s, [p.latency_s for p in predictions], rtol=1e-9)
    np.testing.assert_allclose(upper_s, [p.upper_s for p in predictions], rtol=1e-9)
    assert compiled.slack == pytest.approx(0, abs=1e-9)


def test_cold_weights_cost_the_table_what_they_cost_whole_networks_and_widen_its_bound_as_much(
    predictor: Predictor,
) -> None:
    cold = ColdWeights(np.array([1e2, 1e4]), np.array([0.0, 1e9]), np.array([[1e-9] * 5, [1e-9] * 5]))
    cold_predictor = replace(predictor, cold_weights=cold)
    compiled = compiled_by(cold_predictor)
    architectures = [SPACE.sample(np.random.default_rng(i)) for i in range(20)]
    latency_s, upper_s = compiled.predict(architectures)
    predictions = [cold_predictor.predict(executed_by(SPACE.layers(a))) for a in architectures]
    assert predictions[0].latency_s > 1.01 * whole(predictor, architectures[0])
    np.testing.assert_allclose(latency_s, [p.latency_s for p in predictions], rtol=1e-9)
    np.testing.assert_allclose(upper_s, [p.upper_s for p in predictions], rtol=1e-9)


def test_what_layers_cost_together_widens_the_bound(predictor: Predictor) -> None:
    heavier = compile_space(
        SPACE, predictor, kernels_of, lambda a: 1.05 * whole(predictor, a), np.random.default_rng(0)
    )
    assert heavier.slack == pytest.approx(0.05, rel=1e-6)
    architecture = SPACE.sample(np.random.default_rng(2))
    _, upper_s = heavier.predict([architecture])
    assert upper_s[0] == pytest.approx(
        1.05 * predictor.predict(executed_by(SPACE.layers(architecture))).upper_s, rel=1e-6
    )


def test_a_table_above_the_whole_networks_is_never_a_reason_to_narrow(predictor: Predictor) -> None:
    lighter = compile_space(SPACE, predictor, kernels_of, lambda a: 0.9 * whole(predictor, a), np.random.default_rng(0))
    assert lighter.slack == 0


def test_an_operator_without_measurements_is_named(predictor: Predictor) -> None:
    def strange(chains: Sequence[Sequence[Layer]]) -> list[tuple[ExecutedKernel, ...]]:
        unknown = Kernel("Einsum", ((1, 4),), ((1, 4),))
        return [(ExecutedKernel(unknown, "e", (f"{chain[1].name}.x",)),) for chain in chains]

    with pytest.raises(UncoveredOperatorError, match="Einsum") as caught:
        compile_space(SPACE, predictor, strange, lambda a: 1.0, np.random.default_rng(0))
    assert caught.value.uncovered == ["Einsum"]


def test_scores_of_architectures_are_those_of_their_tokens(compiled: CompiledSpace) -> None:
    tokens = SPACE.sample_tokens(50, np.random.default_rng(4))
    architectures = [SPACE.from_tokens(row) for row in tokens]
    assert (SPACE.tokens_of(architectures) == tokens).all()
    assert SPACE.tokens_of([]).shape == (0, tokens.shape[1])
    for by_architecture, by_token in zip(compiled.predict(architectures), compiled.latencies_s(tokens), strict=True):
        assert by_architecture.tolist() == by_token.tolist()


def test_settings_left_at_their_defaults_need_not_be_written() -> None:
    spelt_out = SPACE.sample(np.random.default_rng(5))
    given = {key: spelt_out.settings[key] for key in ("widths", "strides", "layers")}
    brief = Architecture(SPACE.name, given, spelt_out.choices)
    assert SPACE.tokens(brief).tolist() == SPACE.tokens(spelt_out).tolist()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"b0.kernel": 4}, UsageError),
        ({"b0.kernel": [3]}, UsageError),
        ({"b0.kernel": None}, UsageError),
        ({"b9.kernel": 3}, UnknownNameError),
    ],
)
def test_an_architecture_of_no_such_option_is_refused_and_not_scored(
    compiled: CompiledSpace, change: dict[str, object], error: type[Exception]
) -> None:
    sound = SPACE.sample(np.random.default_rng(6))
    with pytest.raises(error, match=next(iter(change))):
        compiled.predict([sound, Architecture(SPACE.name, SPACE.settings, {**sound.choices, **change})])


def test_an_architecture_of_another_space_or_without_a_choice_is_refused_and_not_scored(
    compiled: CompiledSpace,
) -> None:
    sound = SPACE.sample(np.random.default_rng(6))
    for other in (
        Architecture("other", SPACE.settings, sound.choices),
        Architecture(SPACE.name, {**SPACE.settings, "classes": 11}, sound.choices),
    ):
        with pytest.raises(MismatchError):
            compiled.predict([sound, other])
    missing = {key: value for key, value in sound.choices.items() if key != "b0.kernel"}
    with pytest.raises(UsageError, match=r"b0\.kernel"):
        compiled.predict([sound, Architecture(SPACE.name, SPACE.settings, missing)])


def test_scoring_is_vectorised_lookups(compiled: CompiledSpace) -> None:
    tokens = SPACE.sample_tokens(100_000, np.random.default_rng(0))
    began = time.perf_counter()
    latency_s, upper_s = compiled.latencies_s(tokens)
    # Two orders of magnitude below what it does: this only tells a loop over architectures from lookups.
    assert time.perf_counter() - began < 10
    assert (latency_s > 0).all()
    assert (upper_s > latency_s).all()
