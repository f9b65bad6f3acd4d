"""The zoo of published networks: the right size, the same for one seed, and skeletons that stand in for the files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from akd_deploy.errors import UsageError
from akd_deploy.models.onnx_skeleton import filled, read_skeleton, skeleton, write_skeleton
from akd_deploy.models.published import FAMILIES, skeleton_path
from benchmarks.networks import NETWORKS, STRANGERS, names
from benchmarks.networks.__main__ import main
from benchmarks.networks.export import inputs_of, seeded, write_onnx

GOLDEN = skeleton_path("any").parent

PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "resnext50_32x4d": 25_028_904,
    "regnetx_400mf": 5_160_000,
    "regnety_400mf": 4_344_144,
    "regnety_800mf": 6_260_000,
    "repvgg_a0": 8_310_000,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "squeezenet1_1": 1_235_496,
    "googlenet": 6_624_904,
    "inception_v3": 23_834_568,
    "densenet121": 7_978_856,
    "mobilenet_v1": 4_230_000,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "mnasnet_a1": 3_890_000,
    "mnasnet_b1": 4_383_312,
    "efficientnet_b0": 5_288_548,
    "efficientnet_lite0": 4_650_000,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "ghostnet": 5_180_000,
    "convnext_atto": 3_700_000,
    "convnext_tiny": 28_589_128,
    "poolformer_s12": 11_920_000,
    "mobilevit_xs": 2_320_000,
    "vit_tiny_16": 5_717_416,
    "deit_small_16": 22_050_664,
    "swin_tiny": 28_288_354,
    "mixer_small_16": 18_528_264,
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "distilbert": 66_362_880,
    "llama_15m": 15_191_712,
    "edsr_baseline_x2": 1_370_000,
}
PUBLISHED_STRANGERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "fasternet_t0": 3_910_000,
    "mobileone_s0": 2_080_000,
    "pvt_v2_b0": 3_670_000,
    "yolox_nano": 910_000,
    "style_transfer": 1_679_235,
    "pointnet": 3_480_000,
    "t5_small_encoder": 35_330_816,
}
PUBLISHED_LARGER = {
    "language:bert_base": 109_482_240,
    "language:gpt2": 124_439_808,
    "language:llama_7b": 6_738_415_616,
    "dense_prediction:unet_published": 31_040_000,
    "strangers_convolutional:xception": 22_855_952,
    "strangers_convolutional:efficientnet_v2_s": 21_458_488,
    "strangers_attention:gmlp_tiny": 5_870_000,
    "strangers_cells:darts_published": 3_350_000,
    "strangers_dense:rcan_x2": 15_440_000,
}
"""Sizes too large for the zoo, of classes that the zoo uses at smaller ones."""


def agreeing_with(published: int) -> object:
    """A figure in full must be met; one that is known to ten thousand only, to ten thousand."""
    return pytest.approx(published, rel=0, abs=5_000 if published % 10_000 == 0 else 0)


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [*PUBLISHED, *PUBLISHED_STRANGERS])
def test_a_network_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        module = {**NETWORKS, **STRANGERS}[name].build()
    assert parameters_of(module) == agreeing_with({**PUBLISHED, **PUBLISHED_STRANGERS}[name])


@pytest.mark.parametrize("name", PUBLISHED_LARGER)
def test_at_its_published_size_a_class_has_the_published_number_of_parameters(name: str) -> None:
    file, function = name.split(":")
    with torch.device("meta"):
        module = getattr(importlib.import_module(f"benchmarks.networks.{file}"), function)()
    assert parameters_of(module) == agreeing_with(PUBLISHED_LARGER[name])


def test_names_are_unique_and_of_their_family() -> None:
    assert len(NETWORKS) >= 36
    assert [network.name for network in NETWORKS.values()] == list(names())
    assert names("mobilenet") == ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
    families = {network.family for network in NETWORKS.values()}
    assert sorted(name for family in families for name in names(family)) == sorted(NETWORKS)


def test_strangers_are_of_kinds_that_no_profile_knows() -> None:
    assert len(STRANGERS) >= 24
    assert [network.name for network in STRANGERS.values()] == list(STRANGERS)
    assert not {*STRANGERS} & {*NETWORKS}
    families = {network.family for network in STRANGERS.values()}
    assert not families & {*FAMILIES, *(network.family for network in NETWORKS.values())}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_takes_the_inputs_that_it_says(name: str) -> None:
    with torch.device("meta"):
        module = STRANGERS[name].build().eval()
        outputs = module(*(torch.zeros(i, dtype=getattr(torch, dtype)) for _, i, dtype in STRANGERS[name].input_shapes))
    assert outputs.shape[0] == 1
    assert outputs.numel() > 0


def test_the_list_of_networks_imports_neither_torch_nor_nni() -> None:
    program = "import sys, benchmarks.networks; print({'torch', 'nni', 'onnx', 'numpy'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_images_have_the_size_asked_for_or_are_refused() -> None:
    assert inputs_of(NETWORKS["resnet18"], image_size=64, batch=3) == (("image", (3, 3, 64, 64), "float32"),)
    assert inputs_of(NETWORKS["vit_tiny_16"], image_size=224) == NETWORKS["vit_tiny_16"].input_shapes
    assert [shape for _, shape, _ in inputs_of(NETWORKS["bert_tiny"], image_size=64, batch=2)] == [(2, 128)] * 2
    assert inputs_of(NETWORKS["char_cnn"], image_size=64) == NETWORKS["char_cnn"].input_shapes
    with pytest.raises(UsageError, match="224, 224"):
        inputs_of(NETWORKS["vit_tiny_16"], image_size=64)
    with pytest.raises(UsageError, match="multiples of 32"):
        inputs_of(NETWORKS["resnet18"], image_size=100)


def test_weights_come_from_the_seed_and_norms_are_worth_folding() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return seeded(NETWORKS["mobilenet_v3_small"].build(), seed).state_dict()

    first, again, other = state(7), state(7), state(8)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if not key.endswith("num_batches_tracked")]
    assert not any(torch.equal(first[key], other[key]) for key in drawn)
    variances = torch.cat([value for key, value in first.items() if key.endswith("running_var")])
    assert variances.min() >= 0.5
    assert variances.std() > 0.2
    assert all(value.abs().max() > 0 for key, value in first.items() if key.endswith(("running_mean", "bias")))


@pytest.mark.skipif(importlib.util.find_spec("nni") is None, reason="NNI has wheels for x86_64 only")
def test_a_seed_draws_the_network_from_a_model_space_that_it_drew_for_the_golden_skeleton() -> None:
    module = NETWORKS["nasbench201_1"].build()
    drawn = [tuple(part.weight.shape) for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    golden = read_skeleton(GOLDEN / "nasbench201_1.onnx.gz").graph
    assert sorted(drawn) == sorted(tuple(tensor.dims) for tensor in golden.initializer if len(tensor.dims) == 4)
    assert "nni.nas.hub.pytorch" not in sys.modules, "no empty package is left for others to find"


# Skeletons


def optimised_counts(model: ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime is left with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns that a graph optimised for this machine fits no other
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("unet_small", 64),
        ("bert_tiny", None),
    ],
)
def test_a_filled_skeleton_is_optimised_as_the_original(name: str, image_size: int | None, tmp_path: Path) -> None:
    original = onnx.load(write_onnx(NETWORKS[name], tmp_path, image_size=image_size))
    path = write_skeleton(original, tmp_path / "skeleton.onnx.gz")
    again = filled(read_skeleton(path), np.random.default_rng(0))
    onnx.checker.check_model(again)
    assert path.stat().st_size < 8_000
    assert optimised_counts(again, tmp_path) == optimised_counts(original, tmp_path)


def test_the_command_writes_strangers_and_no_others_among_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path), "--strangers", "--only", "lenet5", "dlrm_small"]) == 0
    for path in sorted(tmp_path.iterdir()):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {i: np.ones(shape, dtype) for i, shape, dtype in STRANGERS[path.stem].input_shapes}
        (outputs,) = session.run(None, feeds)
        assert np.isfinite(outputs).all()
    assert {path.stem for path in tmp_path.iterdir()} == {"lenet5", "dlrm_small"}
    for arguments in (["--only", "lenet5"], ["--strangers", "--only", "resnet18"]):
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path), *arguments])
        assert "not among the" in capsys.readouterr().err


def test_one_seed_gives_one_file(tmp_path: Path) -> None:
    def written(folder: str) -> bytes:
        return write_onnx(NETWORKS["espcn_x3"], tmp_path / folder, image_size=16, seed=1).read_bytes()

    assert written("a") == written("b")


def tensor(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(values, name)


def small_model() -> ModelProto:
    """A batch norm of 32 channels, an addition of a mask, a reshape; with notes on everything."""
    rng = np.random.default_rng(3)
    initialisers = [
        tensor("scale", rng.normal(1, 0.1, 32).astype(np.float32)),
        tensor("shift", rng.normal(0, 0.1, 32).astype(np.float32)),
        tensor("mean", rng.normal(5, 0.1, 32).astype(np.float32)),
        tensor("variance", rng.uniform(1e-3, 1.0, 32).astype(np.float32)),
        tensor("mask", np.triu(np.full((32, 32), -100.0, np.float32), 1)),
        tensor("half", rng.normal(2, 0.5, (32, 32)).astype(np.float16)),
        tensor("shape", np.array([1, 32, 32], np.int64)),
        tensor("positions", np.arange(2_000)),
        tensor("positions_again", np.arange(2_000)),
    ]
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "variance"], ["normed"]),
        helper.make_node("Add", ["normed", "mask"], ["masked"]),
        helper.make_node("Reshape", ["masked", "shape"], ["y"]),
        helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["whole", "one"], ["row"]),
        helper.make_node("Add", ["positions", "positions_again"], ["sum"]),
    ]
    initialisers.append(tensor("one", np.array(1, np.int64)))
    for node in nodes:
        node.metadata_props.add(key="stack_trace", value="/some/where/on/a/machine.py")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, [1, 32, 32])],
        [
            value("y", TensorProto.FLOAT, [1, 32, 32]),
            value("row", TensorProto.FLOAT, [32]),
            value("sum", TensorProto.INT64, [2_000]),
        ],
        initialisers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def values_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_skeleton_keeps_what_is_small_masked_or_integer_and_no_notes() -> None:
    original = small_model()
    before = original.SerializeToString()
    bare = skeleton(original)
    assert original.SerializeToString() == before, "the original is left as it was"
    stripped = {tensor.name for tensor in bare.graph.initializer if not tensor.raw_data}
    assert stripped == {"scale", "shift", "mean", "variance", "half"}
    assert b"machine" not in bare.SerializeToString()
    drawn, whole = values_of(filled(bare, np.random.default_rng(0))), values_of(original)
    for name in ("mask", "shape", "one", "positions"):
        np.testing.assert_array_equal(drawn[name], whole[name])
    assert list(bare.graph.node[-1].input) == ["positions", "positions"]
    assert "positions_again" not in drawn


def test_filled_values_are_of_the_originals_size_and_variances_stay_positive() -> None:
    original = small_model()
    bare, whole = skeleton(original), values_of(original)
    for seed in range(20):
        model = filled(bare, np.random.default_rng(seed))
        drawn = values_of(model)
        assert drawn["variance"].min() >= 0.9e-3
        assert drawn["half"].dtype == np.float16
        assert drawn["half"].mean() == pytest.approx(whole["half"].mean(), abs=0.1)
        assert drawn["half"].std() == pytest.approx(whole["half"].std(), rel=0.1)
        assert not np.array_equal(drawn["half"], whole["half"])
    onnx.checker.check_model(model)
    assert model.SerializeToString() == filled(bare, np.random.default_rng(19)).SerializeToString()


# The golden skeletons


def weights_as_inputs(bare: ModelProto) -> ModelProto:
    """A skeleton that needs no weights: what was stripped is fed. (Filling the largest would take seconds each.)"""
    model = ModelProto()
    model.CopyFrom(bare)
    del model.graph.initializer[:]
    for initialiser in bare.graph.initializer:
        if initialiser.raw_data:
            model.graph.initializer.append(initialiser)
        else:
            model.graph.input.append(
                helper.make_tensor_value_info(initialiser.name, initialiser.data_type, initialiser.dims)
            )
    return model


def test_every_network_has_a_golden_skeleton() -> None:
    assert {path.name.removesuffix(".onnx.gz") for path in GOLDEN.glob("*.onnx.gz")} == set(NETWORKS)
    assert max(path.stat().st_size for path in GOLDEN.glob("*.onnx.gz")) < 30_000


@pytest.mark.parametrize("name", NETWORKS)
def test_a_golden_skeleton_is_valid_and_of_static_shapes(name: str) -> None:
    model = weights_as_inputs(read_skeleton(GOLDEN / f"{name}.onnx.gz"))
    onnx.checker.check_model(model)
    fed = [(i.name, tuple(d.dim_value for d in i.type.tensor_type.shape.dim)) for i in model.graph.input]
    assert fed[: len(NETWORKS[name].input_shapes)] == [(i, shape) for i, shape, _ in NETWORKS[name].input_shapes]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapes = {
        value.name: value.type.tensor_type.shape for value in [*inferred.graph.value_info, *inferred.graph.output]
    }
    made = [output for node in model.graph.node for output in node.output if output]
    assert set(made) <= set(shapes)
    for output in made:
        assert all(dim.dim_value > 0 for dim in shapes[output].dim), output


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "convnext_atto", "swin_tiny", "llama_15m"])
def test_a_golden_skeleton_runs_once_filled(name: str) -> None:
    model = filled(read_skeleton(GOLDEN / f"{name}.onnx.gz"), np.random.default_rng(0))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i: np.ones(shape, dtype) for i, shape, dtype in NETWORKS[name].input_shapes}
    (outputs,) = session.run(None, feeds)
    assert np.isfinite(outputs).all()
    assert outputs.std() > 1e-3, "nothing vanished on the way"


def test_a_golden_skeleton_is_what_the_exporter_writes(tmp_path: Path) -> None:
    fresh = skeleton(onnx.load(write_onnx(NETWORKS["squeezenet1_1"], tmp_path)))
    golden = read_skeleton(GOLDEN / "squeezenet1_1.onnx.gz")
    assert list(fresh.graph.node) == list(golden.graph.node)
    assert [(i.name, i.dims) for i in fresh.graph.initializer] == [(i.name, i.dims) for i in golden.graph.initializer]


def test_the_command_leaves_files_that_are_there_alone_and_names_what_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bert_tiny.onnx").write_text("already here")
    only = ["--only", "bert_tiny", "vit_tiny_16", "espcn_x3"]
    assert main(["--output", str(tmp_path), *only, "--image-size", "16"]) == 2
    named, refusal, *others = capsys.readouterr().err.splitlines()
    assert (named, others) == ("vit_tiny_16", ["espcn_x3"])
    assert "224" in refusal
    assert (tmp_path / "bert_tiny.onnx").read_text() == "already here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert_tiny.onnx", "espcn_x3.onnx"]
    onnx.checker.check_model(tmp_path / "espcn_x3.onnx")
    assert main(["--output", str(tmp_path), *only[:2], only[3], "--image-size", "16"]) == 0
    assert capsys.readouterr().err == ""
