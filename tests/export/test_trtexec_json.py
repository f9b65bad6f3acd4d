"""What is written as trtexec's files is read back by their importer."""

import json
from pathlib import Path

import pytest

from akd_deploy.engines.tensorrt_inspect import executed_kernels_from_layers, layers_from_inspector
from akd_deploy.errors import UsageError
from akd_deploy.export.tensor_types import types_from_layer, unknown_types
from akd_deploy.export.trtexec_json import layers_json, profile_json, write_trtexec
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.profiling.importers.trtexec import rows_from_trtexec
from akd_deploy.target import Target

SHAPE = (1, 16, 8, 8)
CONV = Kernel(
    "Conv",
    (SHAPE, (16, 16, 3, 3), (16,), SHAPE),
    (SHAPE,),
    "float16",
    (
        ("kernel_size", (3, 3)), ("strides", (1, 1)), ("dilations", (1, 1)), ("groups", 1), ("activation", "relu"),
        ("residual", 1),
    ),
)  # fmt: skip
POOL = Kernel(
    "MaxPool", (SHAPE,), ((1, 16, 4, 4),), "float16", (("groups", 1), ("kernel_size", (2, 2)), ("strides", (2, 2)))
)
RAN = (
    ExecutedKernel(CONV, "conv1", ("conv1", "add", "relu")),
    ExecutedKernel(POOL, "pool", ("pool",)),
    ExecutedKernel(CONV, "conv2", ()),
)
TYPES = tuple(unknown_types(ran.kernel) for ran in RAN)
FOLDER = Path(__file__).parents[1] / "golden" / "importers"


def test_kernels_come_back_as_they_were():
    layers = layers_from_inspector(json.dumps(layers_json(RAN, TYPES)))
    assert executed_kernels_from_layers(layers, {}) == RAN
    assert [types_from_layer(layer).known for layer in layers] == [True] * 3


def test_the_importer_of_trtexecs_files_reads_kernels_and_times(tmp_path):
    times_s = [2e-5, 1e-5, 3e-5]
    files = write_trtexec(tmp_path / "new", "student", RAN, TYPES, times_s)
    assert [path.name for path in files] == ["layers_student.json", "profile_student.json"]
    imported = rows_from_trtexec(files, Target("t", "rtx", "tensorrt-rtx", "fp16"))
    found = {row.name: row for row in imported.rows if row.kind == "probe" and len(row.kernels) == 1}
    for ran, seconds in zip(RAN, times_s, strict=True):
        row = found[f"layers_student/{ran.name}"]
        assert row.kernels == ((ran.kernel, 1),)
        assert row.measurement.median_s == pytest.approx(seconds)


def test_without_times_no_profile_is_written(tmp_path):
    assert [path.name for path in write_trtexec(tmp_path, "m", RAN, TYPES)] == ["layers_m.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"layers_m.json"}


def test_a_profile_adds_up_to_a_hundred_percent():
    count, *layers = profile_json(RAN, [1e-3, 2e-3, 1e-3], count=10)
    assert count == {"count": 10}
    assert sum(layer["percentage"] for layer in layers) == pytest.approx(100)
    assert layers[1] == {"name": "pool", "timeMs": 20.0, "averageMs": 2.0, "medianMs": 2.0, "percentage": 50.0}
    with pytest.raises(ValueError, match="zip"):
        profile_json(RAN, [1e-3])


@pytest.mark.parametrize("version", ["trtexec_10", "trtexec_11"])
def test_what_trtexec_wrote_has_the_keys_that_we_write(version):
    theirs = json.loads((FOLDER / version / "profile.json").read_text())
    ours = profile_json(RAN, [1e-3] * 3)
    assert set(ours[0]) == set(theirs[0])
    assert set(ours[1]) == set(theirs[1])
    layer = json.loads((FOLDER / version / "layers.json").read_text())["Layers"][0]
    assert {"Name", "LayerType", "Inputs", "Outputs", "Metadata"} <= set(layer) & set(
        layers_json(RAN, TYPES)["Layers"][0]
    )


def test_a_type_without_a_name_is_refused():
    odd = ExecutedKernel(Kernel("Cast", (SHAPE,), (SHAPE,), "float64"), "cast")
    with pytest.raises(UsageError, match="float64"):
        layers_json([odd], [unknown_types(odd.kernel)])
