"""Networks around operators run, and networks of batch 1 become ones of other batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.models.onnx_skeleton import filled, read_skeleton
from akd_deploy.models.operator_graphs import operator_graphs
from akd_deploy.models.operators_on_images import IMAGE_OPERATORS
from akd_deploy.models.operators_on_maps import MAP_OPERATORS
from akd_deploy.models.operators_on_sequences import SEQUENCE_OPERATORS
from akd_deploy.models.published import skeleton_path
from akd_deploy.models.rebatch import rebatched
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.listing import Lister
from akd_deploy.pipeline.probe_plan import GENERAL_STRETCHES, MOST_STRETCHES, plan_probes
from akd_deploy.target import load_target

TARGET = load_target("cpu_onnxruntime_fp32")
PROMISED = {
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization", "Gelu", "PRelu",
    "Einsum", "HardSwish", "Mish", "ConvTranspose", "Resize", "ReduceMean", "ReduceMax", "ReduceSum",
    "ReduceL2", "ArgMax", "TopK", "CumSum", "Where", "Equal", "Greater", "Less", "Gather", "Slice", "Split",
    "Concat", "Pad", "Expand", "Tile", "DepthToSpace", "Softmax", "LogSoftmax", "Erf", "Pow", "Sqrt", "Exp",
    "Log", "Reciprocal", "Neg", "Abs", "Sin", "Cos", "Cast",
}  # fmt: skip


def outputs(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Of one call on random inputs."""
    path = folder / "model.onnx"
    onnx.save_model(filled(model, np.random.default_rng(0)), path)
    rng = np.random.default_rng(1)
    with load_engine(TARGET).load(path) as session:
        feeds = {}
        for spec in session.inputs:
            is_float = spec.dtype == "float32"
            feeds[spec.name] = (
                rng.normal(size=spec.shape).astype(spec.dtype) if is_float else np.zeros(spec.shape, spec.dtype)
            )
        return session.run(feeds)


def test_every_operator_that_strangers_may_have_comes_in_two_sizes_and_any_batch() -> None:
    one, eight = operator_graphs(1), operator_graphs(8)
    assert one.keys() == eight.keys()
    recipes = len(MAP_OPERATORS) + len(SEQUENCE_OPERATORS) + len(IMAGE_OPERATORS)
    assert len(one) == 2 * recipes == GENERAL_STRETCHES - MOST_STRETCHES
    found = Counter(op for model in one.values() for op in {node.op_type for node in model.graph.node})
    assert {name for name in PROMISED if found[name] < 2} == set()
    assert len({model.SerializeToString(deterministic=True) for model in one.values()}) == len(one)
    for model in eight.values():
        assert {value.type.tensor_type.shape.dim[0].dim_value for value in model.graph.input} == {8}


@pytest.mark.parametrize("batch", [1, 2])
def test_the_runtime_takes_every_graph_and_gives_finite_numbers(tmp_path: Path, batch: int) -> None:
    for name, model in operator_graphs(batch).items():
        if batch == 1 or name.partition(" ")[0] in ("ClassToken", "RepeatedHeads", "LSTM", "GridSample", "Attention"):
            for value in outputs(model, tmp_path).values():
                if name.partition(" ")[0] not in ("SequenceReciprocal", "Reciprocal", "Sqrt"):  # of whatever there is
                    assert np.isfinite(value).all(), name


def test_activations_meet_values_of_either_sign_at_random() -> None:
    for name in ("LeakyRelu 16x96", "PRelu 96x14", "SequenceElu 64x48"):
        model = onnx.ModelProto()
        model.CopyFrom(operator_graphs(1)[name])
        activation = next(node for node in model.graph.node if node.op_type in ("LeakyRelu", "PRelu", "Elu"))
        model.graph.output.append(onnx.ValueInfoProto(name=activation.input[0]))
        session = onnxruntime.InferenceSession(filled(model, np.random.default_rng(0)).SerializeToString())
        rng = np.random.default_rng(1)
        feeds = {one.name: rng.normal(size=one.shape).astype(np.float32) for one in session.get_inputs()}
        signs = np.signbit(session.run([activation.input[0]], feeds)[0])
        assert 0.2 < signs.mean() < 0.8, name
        # Neighbours in memory often differ.
        assert (signs[..., 1:] != signs[..., :-1]).mean() > 0.2, name


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("MaxPool3", "nchwc.MaxPool"), ("MaxPool3Alone", "MaxPool"),
        ("AveragePool3", "nchwc.AveragePool"), ("AveragePool3Alone", "AveragePool"),
        ("GlobalAveragePool", "nchwc.GlobalAveragePool"), ("GlobalAveragePoolAlone", "GlobalAveragePool"),
        ("ResizeNearest", "nchwc.Upsample"), ("ResizeNearestAlone", "Resize"),
    ],
)  # fmt: skip
def test_pools_and_resizing_stand_where_channels_are_in_blocks_and_where_they_are_not(name: str, op: str) -> None:
    for size in ("16x96", "96x14"):
        assert op in {kernel.op for kernel in Lister(TARGET)(operator_graphs(1)[f"{name} {size}"])}


def test_operators_are_all_in_a_plan_with_room_and_spread_over_its_beginning() -> None:
    some = {name: model for name, model in operator_graphs(1).items() if "Norm" in name}
    networks = {"resnet18": read_skeleton(skeleton_path("resnet18"))}
    room = Enough(3 * len(some), least_gain=None)
    plan = plan_probes(TARGET, networks, room, 0, operators=some)
    families = [subject.family for subject in plan.subjects.subjects if subject.kind == "probe"]
    assert families.count("operators") == len(some)
    assert Counter(families[: len(some)])["operators"] in (len(some) // 2, len(some) // 2 + 1)
    assert "operators" not in families[2 * len(some) :]
    measured = {
        kernel.op
        for s in plan.subjects.subjects
        for kernel in Lister(TARGET)(getattr(s, "model", None) or s.window.model)
    }
    assert {"LayerNormalization", "SkipLayerNormalization", "InstanceNormalization"} <= measured
    few = plan_probes(TARGET, networks, Enough(len(some), least_gain=None), 0, operators=some)
    assert [subject.family for subject in few.subjects.subjects].count("operators") < len(some) / 2


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "bert_tiny", "shufflenet_v2_x0_5", "vit_tiny_16"])
def test_a_network_of_another_batch_gives_as_many_outputs_of_the_same_shape(tmp_path: Path, name: str) -> None:
    model = read_skeleton(skeleton_path(name))
    one = outputs(model, tmp_path)
    three = outputs(rebatched(model, 3), tmp_path)
    assert {key: (3 * value.shape[0], *value.shape[1:]) for key, value in one.items()} == {
        key: value.shape for key, value in three.items()
    }
    assert rebatched(model, 1) is model


def test_a_network_whose_batch_is_fixed_within_is_refused() -> None:
    for name in ("swin_tiny", "autoformer_tiny"):
        with pytest.raises(UsageError, match="its batch is fixed within"):
            rebatched(read_skeleton(skeleton_path(name)), 2)
