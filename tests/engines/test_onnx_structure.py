"""The structure of a file is its network without large payloads, and whatever is wrong with a file is said."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.engines.onnx_file import read_onnx
from akd_deploy.engines.onnx_structure import (
    LARGEST_KEPT_BYTES,
    LARGEST_KEPT_MESSAGE_BYTES,
    LARGEST_KEPT_VALUES_BYTES,
    LARGEST_KEPT_WHOLE_BYTES,
    read_structure,
)
from akd_deploy.engines.protobuf_wire import WireError, WireFile, encoded_varint
from akd_deploy.errors import AkdError, CorruptFileError, MissingFileError, UsageError

PAYLOADS = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
WHOLE = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64}
FIELDS = {
    TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data", TensorProto.INT8: "int32_data",
    TensorProto.UINT8: "int32_data", TensorProto.FLOAT16: "int32_data", TensorProto.INT32: "int32_data",
    TensorProto.INT64: "int64_data", TensorProto.UINT64: "uint64_data", TensorProto.STRING: "string_data",
}  # fmt: skip
SHAPES = ((), (0,), (3,), (16, 16), (257,), (8, 3, 11), (40, 41), (70, 71))
IDENTITY = helper.make_node("Identity", ["x"], ["y"])

relaxed = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# --- a slow and obvious second implementation ---------------------------------------------------------------------


def payload_bytes(tensor: TensorProto) -> int:
    """The values as a file has them, without tags and lengths."""
    size = 0
    for name in PAYLOADS:
        alone = TensorProto()
        values = getattr(tensor, name)
        if name == "raw_data":
            size += len(values)
        elif name == "string_data":
            size += sum(map(len, values))
        elif len(values):
            getattr(alone, name).extend(values)
            written = alone.ByteSize() - 1
            # The length itself takes a byte for every seven of its bits.
            size += max(n for n in range(written) if n + len(encoded_varint(n)) <= written)
    return size


def without_large_payloads(message):
    """Clears them in place, wherever the reader looks."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
            if isinstance(inner, TensorProto):
                largest = LARGEST_KEPT_WHOLE_BYTES if inner.data_type in WHOLE else LARGEST_KEPT_BYTES
                if inner.ByteSize() > LARGEST_KEPT_BYTES and payload_bytes(inner) > largest:
                    for name in PAYLOADS:
                        inner.ClearField(name)
            elif inner.ByteSize() > LARGEST_KEPT_MESSAGE_BYTES:
                without_large_payloads(inner)
    return message


# --- random networks ----------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn, name: str) -> TensorProto:
    kind, shape = draw(st.sampled_from(sorted(FIELDS))), draw(st.sampled_from(SHAPES))
    count = math.prod(shape)
    tensor = TensorProto(name=name, data_type=kind, dims=shape, doc_string=draw(st.sampled_from(("", "note" * 400))))
    value = draw(st.integers(0, 100))
    if kind == TensorProto.STRING:
        tensor.string_data.extend([b"word"] * count)
    elif draw(st.booleans()):
        tensor.raw_data = bytes([value]) * (count * helper.tensor_dtype_to_np_dtype(kind).itemsize)
    else:
        getattr(tensor, FIELDS[kind]).extend([value * 7] * count)
    if draw(st.booleans()) and kind == TensorProto.FLOAT:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        for field in PAYLOADS:
            tensor.ClearField(field)
    return tensor


@st.composite
def graphs(draw: st.DrawFn, depth: int = 0) -> onnx.GraphProto:
    graph = helper.make_graph([IDENTITY], "g", [], [])
    for i in range(draw(st.integers(0, 4))):
        graph.initializer.append(draw(tensors(f"w{depth}_{i}")))
    for i in range(draw(st.integers(0, 3))):
        node = graph.node.add(op_type="Unknown", name=f"n{i}", input=["x"], output=[f"o{depth}_{i}"])
        node.doc_string = draw(st.sampled_from(("", "n" * 5000)))
        for kind in draw(st.lists(st.sampled_from(("t", "tensors", "g", "s")), max_size=3)):
            attribute = node.attribute.add(name=kind + str(len(node.attribute)))
            if kind == "t":
                attribute.t.CopyFrom(draw(tensors("a")))
                attribute.type = draw(st.sampled_from((onnx.AttributeProto.TENSOR, onnx.AttributeProto.UNDEFINED)))
            elif kind == "tensors":
                attribute.tensors.extend([draw(tensors("b")), draw(tensors("c"))])
                attribute.type = onnx.AttributeProto.TENSORS
            elif kind == "g" and depth < 2:
                attribute.g.CopyFrom(draw(graphs(depth + 1)))
                attribute.type = onnx.AttributeProto.GRAPH
            else:
                attribute.s, attribute.type = b"s" * draw(st.sampled_from((1, 3000))), onnx.AttributeProto.STRING
    return graph


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    graph = draw(graphs())
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]))
    return helper.make_model(graph, doc_string=draw(st.sampled_from(("", "d" * 3000))))


def written(folder, content: bytes):
    path = folder / "network.onnx"
    path.write_bytes(content)
    (folder / "weights.bin").write_bytes(b"")
    return path


def small_model(*initializers: TensorProto) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])]
    note = "." * LARGEST_KEPT_MESSAGE_BYTES  # so that the graph is large enough to be looked into
    return helper.make_model(helper.make_graph([IDENTITY], "g", inputs, [], list(initializers), doc_string=note))


# --- what is read -------------------------------------------------------------------------------------------------


@relaxed
@given(model=models())
def test_structure_is_the_network_without_large_payloads(model, tmp_path):
    path = written(tmp_path, model.SerializeToString())
    expected = onnx.ModelProto.FromString(path.read_bytes())
    if expected.graph.ByteSize() > LARGEST_KEPT_MESSAGE_BYTES:
        without_large_payloads(expected)
    path_of_expected = tmp_path / "expected.onnx"
    path_of_expected.write_bytes(expected.SerializeToString())
    found = read_structure(path, 2).model
    assert found.SerializeToString(deterministic=True) == read_onnx(path_of_expected, 2).SerializeToString(
        deterministic=True
    )


@relaxed
@given(model=models(), data=st.data())
def test_what_a_file_cut_short_is_found_to_be_does_not_depend_on_the_reader(model, data, tmp_path):
    content = model.SerializeToString()
    path = written(tmp_path, content[: data.draw(st.integers(0, len(content) - 1))])
    outcomes = []
    for read in (read_onnx, read_structure):
        try:
            read(path, 1)
            outcomes.append(None)
        except AkdError as error:
            outcomes.append(type(error))
    assert outcomes[0] is outcomes[1]


@relaxed
@given(model=models(), data=st.data())
def test_a_file_with_a_wrong_byte_is_read_or_refused(model, data, tmp_path):
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(content))
    with contextlib.suppress(CorruptFileError, UsageError, MissingFileError):
        assert read_structure(path, 1).model.graph.node


@pytest.mark.parametrize("kind", sorted(set(FIELDS) - {TensorProto.STRING}))
@pytest.mark.parametrize("field", ["raw_data", "typed"])
def test_a_tensor_with_too_few_values_is_named(kind, field, tmp_path):
    for count in (10, 40_000):
        tensor = TensorProto(name="the weight", data_type=kind, dims=[count])
        if field == "raw_data":
            tensor.raw_data = bytes((count - 1) * helper.tensor_dtype_to_np_dtype(kind).itemsize)
        else:
            getattr(tensor, FIELDS[kind]).extend([300] * (count - 1))
        with pytest.raises(CorruptFileError, match=r"expected in the .*'the weight'"):
            read_structure(written(tmp_path, small_model(tensor).SerializeToString()), 1)


def test_four_bit_integers_share_bytes(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[4001], raw_data=bytes(2001))
    assert (
        not read_structure(written(tmp_path, small_model(tensor).SerializeToString()), 1)
        .model.graph.initializer[0]
        .raw_data
    )
    tensor.raw_data = bytes(2000)
    with pytest.raises(CorruptFileError, match="2000 of 2001"):
        read_structure(written(tmp_path, small_model(tensor).SerializeToString()), 1)


def test_values_written_one_by_one_and_fields_of_tomorrow_are_read_too(tmp_path):
    floats = b"".join(b"\x25" + np.float32(2.5).tobytes() for _ in range(500))  # tag 4, four bytes
    tomorrow = b"\xfb\x3e" + b"\x08\x01" + b"\xfc\x3e"  # a group of field 1007 with one number in it
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[500]).SerializeToString() + floats
    graph = small_model(TensorProto(name="other")).graph.SerializeToString()
    graph += b"\x2a" + encoded_varint(len(tensor)) + tensor
    opset = onnx.OperatorSetIdProto(version=18).SerializeToString()
    model = b"\x3a" + encoded_varint(len(graph)) + graph + tomorrow + b"\x42" + encoded_varint(len(opset)) + opset
    path = written(tmp_path, model)
    kept, large = read_structure(path, 1).model.graph.initializer
    assert (kept.name, large.name, list(large.dims), len(large.float_data)) == ("other", "w", [500], 0)
    assert len(read_onnx(path, 1).graph.initializer[1].float_data) == 500


def test_more_messages_within_each_other_than_protobuf_reads_are_refused(tmp_path):
    graph = helper.make_graph([IDENTITY], "inner", [], [], doc_string="." * LARGEST_KEPT_MESSAGE_BYTES)
    content = graph.SerializeToString()
    for _ in range(60):  # a graph as an attribute of a node of a graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + encoded_varint(len(content)) + content
    path = written(tmp_path, b"\x3a" + encoded_varint(len(content)) + content)
    with pytest.raises(CorruptFileError):
        read_structure(path, 1)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_missing_file_and_one_of_anything_else_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"gone\.onnx"):
        read_structure(tmp_path / "gone.onnx", 1)
    for content in (b"", b"no network at all, but a text", bytes(5000)):
        with pytest.raises(CorruptFileError, match=r"network\.onnx"):
            read_structure(written(tmp_path, content), 1)


def test_weights_files_and_dynamic_inputs_are_checked_as_when_everything_is_read(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[9], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.external_data.add(key="length", value="36")
    path = written(tmp_path, small_model(tensor).SerializeToString())
    with pytest.raises(CorruptFileError, match=r"0 bytes where network\.onnx expects 36"):
        read_structure(path, 1)
    (tmp_path / "weights.bin").write_bytes(bytes(36))
    assert read_structure(path, 1).external == {"weights.bin": 36}
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(MissingFileError, match=r"weights\.bin"):
        read_structure(path, 1)
    tensor.external_data[1].value = "many"
    with pytest.raises(CorruptFileError, match="many"):
        read_structure(written(tmp_path, small_model(tensor).SerializeToString()), 1)
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(UsageError, match="width"):
        read_structure(written(tmp_path, model.SerializeToString()), 1)


# --- the digest ---------------------------------------------------------------------------------------------------


def digest(folder, *initializers: TensorProto, batch: int = 1) -> str:
    return read_structure(written(folder, small_model(*initializers).SerializeToString()), batch).digest


def test_the_digest_is_that_of_everything_but_the_values_of_large_weights(tmp_path):
    weight = numpy_helper.from_array(np.zeros((50, 50), np.float32), "w")
    first = digest(tmp_path, weight)
    assert first == digest(tmp_path, numpy_helper.from_array(np.ones((50, 50), np.float32), "w"))
    for other in (
        numpy_helper.from_array(np.zeros((25, 100), np.float32), "w"),
        numpy_helper.from_array(np.zeros((50, 50), np.float32), "v"),
        numpy_helper.from_array(np.zeros((50, 50), np.int32), "w"),
    ):
        assert digest(tmp_path, other) != first
    assert digest(tmp_path, weight, numpy_helper.from_array(np.ones(3, np.float32), "small")) != digest(
        tmp_path, weight, numpy_helper.from_array(np.zeros(3, np.float32), "small")
    )


def test_whole_numbers_that_shapes_could_be_made_of_count_however_many_there_are(tmp_path):
    many = np.zeros(LARGEST_KEPT_WHOLE_BYTES, np.int64)
    first = digest(tmp_path, numpy_helper.from_array(many, "indices"))
    many[-1] = 1
    assert digest(tmp_path, numpy_helper.from_array(many, "indices")) != first


def test_the_digest_is_another_one_for_another_batch(tmp_path):
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    path = written(tmp_path, model.SerializeToString())
    assert read_structure(path, 1).digest != read_structure(path, 2).digest


# --- the wire -----------------------------------------------------------------------------------------------------


@given(value=st.integers(0, 2**64 - 1), before=st.integers(0, 5000))
def test_numbers_are_read_as_they_are_written(value, before, tmp_path_factory):
    path = tmp_path_factory.mktemp("wire") / hashlib.sha256(f"{value} {before}".encode()).hexdigest()
    content = bytes(before) + encoded_varint(value)
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert WireFile(descriptor).varint(before, len(content)) == (value, len(content))
    finally:
        os.close(descriptor)
        path.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80", b"\x0a", b"\x0a\x05abc", b"\x09abc", b"\x0d", b"\x0b", b"\x0b\x14", b"\x0c", b"\x0e\x00", b"\x02\x00",
        b"\x08" + b"\xff" * 11, b"\x0b" * 200,
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused_with_their_place(content, tmp_path):
    path = tmp_path / "message"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(WireError, match=r"byte|number"):
            list(WireFile(descriptor).fields(0, len(content)))
    finally:
        os.close(descriptor)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "message"
    path.write_bytes(b"\x0a\x90\x4e" + bytes(10_000))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        file = WireFile(descriptor)
        (field,) = file.fields(0, file.size)
        path.write_bytes(b"\x0a\x90\x4e")
        with pytest.raises(WireError, match="bytes were promised"):
            file.read(field.value, field.end)
    finally:
        os.close(descriptor)


# --- where values matter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    ("values", "is_kept"),
    [
        (np.arange(LARGEST_KEPT_VALUES_BYTES // 4), True),
        (np.arange(LARGEST_KEPT_VALUES_BYTES // 4 + 1), False),
        (np.zeros(100_000), True),
        (np.ones(100_000), True),
        (np.append(np.zeros(100_000), 1), False),
    ],
)
def test_by_values_small_tensors_and_those_of_one_number_are_kept(values, is_kept, external, tmp_path):
    array = values.astype(np.float32)
    graph = helper.make_graph([IDENTITY], "g", [], [], [onnx.numpy_helper.from_array(array, "w")])
    graph.doc_string = "." * LARGEST_KEPT_MESSAGE_BYTES  # so that the graph is large enough to be looked into
    path = tmp_path / "network.onnx"
    model = helper.make_model(graph)
    onnx.save_model(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    found = read_structure(path, 1, by_values=True)
    (tensor,) = found.model.graph.initializer
    assert bool(tensor.raw_data) == is_kept
    if is_kept:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), array)
    else:
        assert list(tensor.dims) == [array.size]
    assert not read_structure(path, 1).model.graph.initializer[0].raw_data


def test_by_values_other_numbers_are_another_structure(tmp_path):
    digests = set()
    for number in (0, 1):
        array = np.full(100_000, number, np.float32)
        graph = helper.make_graph([IDENTITY], "g", [], [], [onnx.numpy_helper.from_array(array, "w")])
        for external in (False, True):
            path = tmp_path / f"{number}{external}.onnx"
            onnx.save_model(
                helper.make_model(graph),
                path,
                save_as_external_data=external,
                location="weights.bin",
                size_threshold=0,
            )
            digests.add(read_structure(path, 1, by_values=True).digest)
            (tmp_path / "weights.bin").unlink(missing_ok=True)
    assert len(digests) == 4
