"""Teachers of every source, and what is said when one does not fit."""

import pickle
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, MissingFileError, StorageError, UsageError
from akd_deploy.models.convnet import ConvNetSettings, convnet, default_widths, load_convnet, save_convnet
from akd_deploy.models.teacher import state_sha256, teacher_from_module
from akd_deploy.models.teacher_from_factory import teacher_from_factory
from akd_deploy.models.weights import read_weights
from akd_deploy.pipeline.teacher_from_onnx import teacher_from_onnx

SHAPE = (1, 4, 4)
FACTORY = """
import torch
from torch import nn

def build(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

def not_a_network():
    return 3

answer = 42
"""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(classes: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator(1))
    return net.eval()


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`module:build` in a module that lies in the working directory, under a name no other test has imported."""
    name = f"own_network_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return f"{name}:build"


def weights(tmp_path: Path, classes: int = 3) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network(classes).state_dict(), path)
    return path


IMAGES = torch.linspace(-1, 1, 7 * 16).reshape(7, *SHAPE)


def test_a_teacher_gives_the_networks_logits_in_evaluation_mode_without_gradient() -> None:
    net = network()
    expected = net(IMAGES).detach()
    teacher = teacher_from_module(net.train(), SHAPE, 3, "mine")
    logits = teacher.logits(IMAGES, batch_size=2)
    assert torch.allclose(logits, expected)
    assert not logits.requires_grad
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_provenance_counts_parameters_and_hashes_the_weights() -> None:
    one = teacher_from_module(network(), SHAPE, 3, "mine").provenance
    assert one.parameters == 16 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    assert one == teacher_from_module(network(), SHAPE, 3, "mine").provenance
    changed = network()
    with torch.no_grad():
        changed[3].bias[0] += 1
    assert state_sha256(changed) != one.sha256


def test_classes_that_do_not_match_are_refused_with_both_numbers() -> None:
    with pytest.raises(MismatchError, match=r"10 classes.*3 classes") as caught:
        teacher_from_module(network(3), SHAPE, 10, "mine")
    assert caught.value.as_dict()["dataset_classes"] == 10
    assert caught.value.as_dict()["teacher_classes"] == 3


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MismatchError, match="1×5×5"):
        teacher_from_module(network(), (1, 5, 5), 3, "mine")


def test_an_output_that_is_not_logits_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    for module, says in ((Pair(), "tuple"), (nn.Identity(), "2, 1, 4, 4")):
        with pytest.raises(MismatchError, match=says):
            teacher_from_module(module, SHAPE, 3, "mine")


def test_a_factory_in_the_working_directory_is_filled_from_safetensors(factory: str, tmp_path: Path) -> None:
    before = list(sys.path)
    teacher = teacher_from_factory(factory, weights(tmp_path), SHAPE, 3)
    assert torch.allclose(teacher.logits(IMAGES), network()(IMAGES))
    assert sys.path == before
    assert teacher.provenance.source == f"{factory} with weights.safetensors"
    assert str(tmp_path) not in teacher.provenance.source


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_only_checkpoints_are_read_as_training_scripts_save_them(
    factory: str, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + key: value for key, value in network().state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    assert torch.allclose(teacher_from_factory(factory, path, SHAPE, 3).logits(IMAGES), network()(IMAGES))


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("attacked"),)  # type: ignore[return-value]


def test_a_pickle_that_is_more_than_weights_is_refused_and_not_run(factory: str, tmp_path: Path) -> None:
    plain = tmp_path / "attack.pkl"
    plain.write_bytes(pickle.dumps(_Attack()))
    archive = tmp_path / "attack.pt"
    torch.save({"state_dict": _Attack()}, archive)
    whole = tmp_path / "network.pt"
    torch.save(network(), whole)
    for path in (plain, archive, whole):
        with pytest.raises(CorruptFileError, match=rf"{path.name}.*could run any code.*safetensors"):
            teacher_from_factory(factory, path, SHAPE, 3)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("keep", [0, 5, 200])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_weights_are_named(factory: str, tmp_path: Path, suffix: str, keep: int) -> None:
    path = weights(tmp_path)
    if suffix == "pt":
        path = tmp_path / "weights.pt"
        torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=rf"weights\.{suffix}"):
        teacher_from_factory(factory, path, SHAPE, 3)


def test_damaged_checkpoints_are_corrupt_files_whatever_torch_raises(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "weights.pt"
    for zipped in (False, True):
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 700), 5)] = rng.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes())
            with suppress(CorruptFileError):
                read_weights(path)


def test_missing_weights_are_named(factory: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.pt"):
        teacher_from_factory(factory, tmp_path / "nowhere.pt", SHAPE, 3)


@pytest.mark.parametrize(
    ("prefix", "told"), [("module.", "Take 'module.' off its keys"), ("model.net.", "'model.net.' off")]
)
def test_keys_of_a_network_in_another_one_are_told_by_their_prefix(
    factory: str, tmp_path: Path, prefix: str, told: str
) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({prefix + key: tensor for key, tensor in network().state_dict().items()}, path)
    with pytest.raises(MismatchError, match=told):
        teacher_from_factory(factory, path, SHAPE, 3)


def test_keys_that_do_not_fit_are_named(factory: str, tmp_path: Path) -> None:
    state = network().state_dict()
    state["extra.weight"] = torch.zeros(2)
    del state["1.bias"]
    state["3.bias"] = torch.zeros(4)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(
        MismatchError, match=r"missing 1\.bias; unknown extra\.weight; of another shape 3\.bias"
    ) as caught:
        teacher_from_factory(factory, path, SHAPE, 3)
    assert caught.value.as_dict()["missing"] == ["1.bias"]


def test_a_checkpoint_without_tensors_is_refused(factory: str, tmp_path: Path) -> None:
    path = tmp_path / "log.pt"
    torch.save({"epoch": 3, "loss": 0.1}, path)
    with pytest.raises(CorruptFileError, match="epoch, loss"):
        teacher_from_factory(factory, path, SHAPE, 3)


def test_factories_that_do_not_work_are_told_apart(factory: str, tmp_path: Path) -> None:
    module = factory.split(":")[0]
    path = weights(tmp_path)
    (tmp_path / "needs_more.py").write_text("import package_that_is_not_here")
    (tmp_path / "raises.py").write_text("def build():\n    raise RuntimeError('no GPU here')\n")
    (tmp_path / "raises_early.py").write_text("1 / 0\n")
    cases: list[tuple[str, dict[str, object], str]] = [
        ("no_colon", {}, "package.module:function"),
        ("no_such_module_here:build", {}, "cannot be imported.*no_such_module_here"),
        ("needs_more:build", {}, "package_that_is_not_here"),
        (f"{module}:create", {}, "no such function.*build, not_a_network"),
        (f"{module}:answer", {}, "int, which cannot be called"),
        (f"{module}:not_a_network", {}, "a torch module.*int"),
        (factory, {"depth": 3}, "depth"),
        ("raises:build", {}, r"RuntimeError: no GPU here \(raises.py, line 2\)"),
        ("raises_early:build", {}, r"ZeroDivisionError: division by zero \(raises_early.py, line 1\)"),
    ]
    for name, arguments, says in cases:
        with pytest.raises(UsageError, match=says):
            teacher_from_factory(name, path, SHAPE, 3, arguments)
    assert teacher_from_factory(factory, weights(tmp_path, 5), SHAPE, 5, {"classes": 5}).classes == 5


def classifier_onnx(path: Path, batch: int | str, classes: int = 3, side: int = 4) -> np.ndarray:
    """Flatten and Gemm, written to `path`; returns the (16, classes) weights."""
    matrix = np.random.default_rng(0).normal(size=(side * side, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return matrix


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_an_onnx_teacher_gives_its_logits_for_any_number_of_images(tmp_path: Path, batch: int | str) -> None:
    pytest.importorskip("onnxruntime")
    matrix = classifier_onnx(tmp_path / "teacher.onnx", batch)
    teacher = teacher_from_onnx(tmp_path / "teacher.onnx", SHAPE, 3)
    for n in (1, 3, 7):
        expected = IMAGES[:n].reshape(n, 16).numpy() @ matrix
        assert np.allclose(teacher.logits(IMAGES[:n]).numpy(), expected, atol=1e-5)
    assert teacher.module is None
    assert len(teacher.provenance.sha256) == 64


def test_an_onnx_teacher_can_be_run_by_a_function_of_the_callers(tmp_path: Path) -> None:
    classifier_onnx(tmp_path / "teacher.onnx", "n")
    teacher = teacher_from_onnx(
        tmp_path / "teacher.onnx", SHAPE, 2, run=lambda x: np.stack([x.sum((1, 2, 3)), x.max((1, 2, 3))], 1)
    )
    assert torch.allclose(teacher.logits(IMAGES)[:, 0], IMAGES.sum((1, 2, 3)), atol=1e-5)


def test_onnx_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "teacher.onnx"
    classifier_onnx(path, "n")
    with pytest.raises(MismatchError, match=r"10 classes.*3 classes"):
        teacher_from_onnx(path, SHAPE, 10)
    with pytest.raises(MismatchError, match=r"image.*1, 4, 4"):
        teacher_from_onnx(path, (3, 4, 4), 3)
    with pytest.raises(MissingFileError):
        teacher_from_onnx(tmp_path / "nowhere.onnx", SHAPE, 3)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AkdError, match=r"teacher\.onnx"):
        teacher_from_onnx(path, SHAPE, 3)


def test_our_own_teacher_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    settings = ConvNetSettings(in_channels=1, classes=3, widths=(4, 8), depth=1)
    net = convnet(settings, generator())
    net(IMAGES)  # moves the running statistics
    path = save_convnet(net, tmp_path / "deep" / "teacher.safetensors")
    again = load_convnet(path)
    assert again.settings == settings
    assert torch.equal(again(IMAGES), net.eval()(IMAGES))
    assert [p.name for p in path.parent.iterdir()] == ["teacher.safetensors"]


def test_other_weights_are_not_taken_for_our_own_teacher(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="without its settings"):
        load_convnet(weights(tmp_path))


def test_a_saved_teacher_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = save_convnet(convnet(ConvNetSettings(widths=(4,), depth=1), generator()), tmp_path / "t.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    del state["classifier.bias"]
    safetensors.torch.save_file(state, path, metadata=metadata)
    with pytest.raises(MismatchError, match=r"classifier\.bias"):
        load_convnet(path)


def test_one_seed_gives_one_network_whatever_the_global_state() -> None:
    settings = ConvNetSettings(widths=(4, 8), depth=2)
    one = state_sha256(convnet(settings, generator(5)))
    torch.rand(3)
    assert state_sha256(convnet(settings, generator(5))) == one
    assert state_sha256(convnet(settings, generator(6))) != one


def test_our_teacher_grows_with_the_images() -> None:
    assert default_widths(12) == (24, 48, 96)
    assert default_widths(32) == (24, 48, 96, 192)
    assert default_widths(224) == (24, 48, 96, 192, 384)
    with pytest.raises(UsageError):
        ConvNetSettings(classes=1)


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"t\.safetensors"):
        save_convnet(convnet(ConvNetSettings(widths=(4,), depth=1), generator()), tmp_path / "file" / "t.safetensors")
