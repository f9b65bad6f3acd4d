"""The rules against the runtime itself."""

import importlib.util

import numpy as np
import onnx
import pytest
from fusion.fusion_networks import (
    LEVELS,
    NETWORKS,
    agreement,
    counted,
    network,
    of_runtime,
    parameters,
    quantised,
    skeleton,
    with_zeros,
)
from fusion.random_graphs import convolutional, rearranging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akd_deploy.device import cpu_fingerprint
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.fusion.onnxruntime_cpu import kernels_of
from akd_deploy.fusion.onnxruntime_tested import doubtful
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.search_space import SPACES, load_space

ISA = cpu_fingerprint().facts.get("isa", "").split()
BLOCK = 16 if "avx512f" in ISA else 8
"""Channels that the runtime's convolutions block by on this machine."""

if importlib.util.find_spec("onnxruntime") is None or "avx2" not in ISA:
    pytest.skip("needs ONNX Runtime on a CPU with AVX2", allow_module_level=True)

MOST_PARAMETERS = 4_000_000
"""Larger networks take long to start; golden lists stand for them."""

LEAST_AGREEMENT = 0.99
"""What is promised for any network; those here agree in every kernel as far as is known."""

ARCHITECTURES = 6
"""Random ones per space and activation."""

SMALL = [name for name in NETWORKS if parameters(skeleton(name)) <= MOST_PARAMETERS]

relaxed = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_enough_networks_are_compared():
    assert len(SMALL) >= 20


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("name", SMALL)
def test_published_network(name, level, tmp_path):
    model = with_zeros(skeleton(name))
    assert agreement(kernels_of(model, level, nchwc_block=BLOCK), of_runtime(model, level, tmp_path)) >= LEAST_AGREEMENT


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize("space", sorted(SPACES))
def test_random_architectures(space, activation, level, tmp_path):
    rng = np.random.default_rng(7)
    chosen = load_space(space, {"activation": activation} if space.startswith("mobile") else {})
    for _ in range(ARCHITECTURES):
        architecture = chosen.architecture(
            {name: options[rng.integers(len(options))] for name, options in chosen.choices.items()}
        )
        model = onnx_from_architecture(architecture, rng)
        assert counted(kernels_of(model, level, nchwc_block=BLOCK)) == counted(of_runtime(model, level, tmp_path)), (
            architecture.text
        )


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "nasbench201_1", "vit_tiny_16", "bert_tiny"]
)
def test_quantised_network(name, level, tmp_path):
    model = with_zeros(network(f"{name}.int8"))
    assert counted(kernels_of(model, level, nchwc_block=BLOCK)) == counted(of_runtime(model, level, tmp_path))


@pytest.mark.parametrize("space", sorted(SPACES))
def test_what_the_exporter_quantises(space, tmp_path):
    rng = np.random.default_rng(3)
    chosen = load_space(space, {})
    architecture = chosen.architecture({name: options[0] for name, options in chosen.choices.items()})
    model = onnx_from_architecture(architecture, rng)
    path, integers = tmp_path / "float.onnx", tmp_path / "integers.onnx"
    path.write_bytes(model.SerializeToString())
    (image,) = model.graph.input
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    quantize_onnx(path, "int8", [{image.name: rng.standard_normal(shape, np.float32)}], integers)
    model = onnx.load(integers)
    assert counted(kernels_of(model, "all", nchwc_block=BLOCK)) == counted(of_runtime(model, "all", tmp_path))


@pytest.mark.parametrize("level", ["disabled", "basic"])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "bert_tiny", "mobilenet_v3_small"])
def test_lower_levels(name, level, tmp_path):
    model = with_zeros(skeleton(name))
    assert counted(kernels_of(model, level, nchwc_block=BLOCK)) == counted(of_runtime(model, level, tmp_path))


# Where outputs equal each other, which of them a copy belongs to is arbitrary: here kernels alone are compared.


@relaxed
@given(model=convolutional(), level=st.sampled_from(LEVELS[1:]))
def test_any_small_convolutional_network(model, level, tmp_path):
    assert agreement(kernels_of(model, level, nchwc_block=BLOCK), of_runtime(model, level, tmp_path)) == 1


@relaxed
@given(model=rearranging(), level=st.sampled_from(LEVELS[1:3]))
def test_any_small_network_of_products_and_transposes(model, level, tmp_path):
    assert agreement(kernels_of(model, level), of_runtime(model, level, tmp_path)) == 1


@relaxed
@given(data=st.data(), level=st.sampled_from(LEVELS[1:]))
def test_any_small_quantised_network(data, level, tmp_path):
    model = data.draw(st.one_of(convolutional(), rearranging()))
    model = with_zeros(quantised(model, lambda options: data.draw(st.sampled_from(options))))
    found = agreement(kernels_of(model, level, nchwc_block=BLOCK), of_runtime(model, level, tmp_path))
    assert found == 1 or doubtful(model)
