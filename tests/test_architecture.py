import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.architecture import Architecture, architecture_from_dict, read_architecture
from akd_deploy.errors import CorruptFileError, MissingFileError

GOLDEN = Path(__file__).parent / "golden" / "architecture_v1.json"
GOLDEN_ARCHITECTURE = Architecture(
    "mobile",
    {"input_shape": [3, 32, 32], "classes": 10, "stages": [{"width": 16, "stride": 1}, {"width": 32, "stride": 2}]},
    {"b0.op": "conv", "b0.kernel_size": 3, "b0.width": 0.5, "b1.op": "größer", "b1.skip": True, "b2.op": None},
)
GOLDEN_TEXT = (
    '{"choices":{"b0.kernel_size":3,"b0.op":"conv","b0.width":0.5,"b1.op":"gr\\u00f6\\u00dfer","b1.skip":true,"b2.op":null},'
    '"settings":{"classes":10,"input_shape":[3,32,32],"stages":[{"stride":1,"width":16},{"stride":2,"width":32}]},'
    '"space":"mobile"}'
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


def test_an_architecture_file_of_version_1_stays_readable():
    architecture = read_architecture(GOLDEN)
    assert architecture == GOLDEN_ARCHITECTURE
    assert architecture.text == GOLDEN_TEXT
    assert architecture.digest == "38b8411572ba"


@given(st.text(max_size=8), FIELDS, FIELDS)
def test_an_architecture_is_read_back_from_its_text(space, settings, choices):
    architecture = Architecture(space, settings, choices)
    again = architecture_from_dict(json.loads(architecture.text))
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert again.text == architecture.text
    assert again.as_dict() == architecture.as_dict()


@given(FIELDS, st.randoms(use_true_random=False))
def test_the_text_does_not_depend_on_the_order_of_keys(choices, random):
    keys = list(choices)
    random.shuffle(keys)
    turned = {key: choices[key] for key in keys}
    assert Architecture("s", {}, turned).text == Architecture("s", {}, choices).text


def test_tuples_and_lists_are_one_text():
    assert Architecture("s", {"shape": (3, 32)}, {}) == Architecture("s", {"shape": [3, 32]}, {})


@pytest.mark.parametrize(
    "other",
    [
        Architecture("t", {"a": 1}, {"b": 2}),
        Architecture("s", {"a": 2}, {"b": 2}),
        Architecture("s", {"a": 1}, {"b": 3}),
        Architecture("s", {"b": 2}, {"a": 1}),
    ],
)
def test_architectures_that_differ_anywhere_are_different(other):
    one = Architecture("s", {"a": 1}, {"b": 2})
    assert other != one
    assert other.digest != one.digest
    assert one != one.text


def test_an_architecture_does_not_change_with_what_it_was_made_from():
    choices = {"widths": [1, 2]}
    architecture = Architecture("s", {}, choices)
    choices["widths"].append(3)
    assert architecture.choices["widths"] == [1, 2]
    with pytest.raises(TypeError):
        architecture.choices["widths"] = []


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "mobile",
        {},
        {"space": "s", "settings": {}},
        {"space": "s", "settings": {}, "choices": {}, "more": 1},
        {"space": 1, "settings": {}, "choices": {}},
        {"space": "s", "settings": [], "choices": {}},
        {"space": "s", "settings": {}, "choices": None},
    ],
)
def test_fields_that_are_no_architecture_are_refused_with_the_place_and_the_form(fields):
    with pytest.raises(CorruptFileError, match=r'in journal row 3.*"space": name'):
        architecture_from_dict(fields, where="journal row 3")


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"a\.json"):
        read_architecture(tmp_path / "a.json")
    for content in (b"{", b"\xff", GOLDEN.read_bytes()[:-20], b""):
        (tmp_path / "b.json").write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"b\.json"):
            read_architecture(tmp_path / "b.json")
