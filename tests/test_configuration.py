import json
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.configuration import (
    RunConfiguration,
    configuration_from_dict,
    read_configuration,
    toml_from_dict,
)
from akd_deploy.errors import CorruptFileError, MissingFileError, UnknownNameError, UsageError

LEAST = {"target": "cpu_onnxruntime_fp32", "budget": "2ms"}

# TOML texts hold any character but lone surrogates; null has no place in it.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_written_as_toml_is_read_back_the_same(fields):
    back = tomllib.loads(toml_from_dict(fields))
    assert back == fields
    assert _types(back) == _types(fields)


def _types(value):
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(item) for item in value]
    return type(value)


def test_toml_is_written_as_people_write_it():
    fields = {"name": "a", "n": 3, "search": {"trials": 2, "training": {"lr": 0.5}, "on": True}, "last": [1, "x"]}
    assert toml_from_dict(fields) == (
        'name = "a"\nn = 3\nlast = [1, "x"]\n\n[search]\ntrials = 2\non = true\n\n[search.training]\nlr = 0.5\n'
    )


def test_infinities_and_no_numbers_are_toml_too():
    back = tomllib.loads(toml_from_dict({"a": math.inf, "b": -math.inf, "c": math.nan}))
    assert (back["a"], back["b"]) == (math.inf, -math.inf)
    assert math.isnan(back["c"])


def test_what_toml_has_no_word_for_is_an_error():
    with pytest.raises(TypeError, match="NoneType"):
        toml_from_dict({"a": None})


def test_the_least_configuration_has_a_default_for_all_else():
    configuration = configuration_from_dict(LEAST, "here")
    assert configuration.search.trials == 16
    assert configuration.certificate.blocks * configuration.certificate.samples_per_block >= 44
    assert configuration.teacher.source == "train"


FULL = {
    **LEAST,
    "name": "full",
    "seed": 3,
    "data": {"name": "digits", "settings": {"noise": 0.5}},
    "teacher": {"source": "factory", "factory": "a.b:c", "weights": "w.safetensors", "training": {"steps": 3}},
    "space": {"name": "mobile", "settings": {"widths": [8, 16], "layers": [[1], [1, 2]]}},
    "profile": {"probes": 30, "networks": 10, "blocks": 2},
    "search": {
        "strategies": ["tpe"],
        "settings": {"tpe": {"gamma": 0.5}},
        "trials": 3,
        "reward": "hard",
        "constraint": "none",
        "training": {"steps": 9},
    },
    "distill": {"method": "dkd", "seeds": 2, "training": {"learning_rate": 1, "kd_weight": 0.5}},
    "export": {"targets": ["cpu_torch_fp32"], "quantize": ["int8", "fp16"]},
    "certificate": {"percentile": 99, "confidence": 0.95, "blocks": 10, "samples_per_block": 30},
}


@pytest.mark.parametrize("fields", [LEAST, FULL], ids=["least", "full"])
def test_a_configuration_survives_the_way_through_json_and_toml(fields):
    configuration = configuration_from_dict(fields, "here")
    resolved = configuration.as_dict()
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved
    assert configuration_from_dict(tomllib.loads(toml_from_dict(resolved)), "there") == configuration
    assert configuration_from_dict(tomllib.loads(toml_from_dict(resolved)), "there").as_dict() == resolved


def test_what_is_written_down_is_kept():
    resolved = configuration_from_dict(FULL, "here").as_dict()

    def kept(written, found):
        if isinstance(written, dict):
            return all(key in found and kept(value, found[key]) for key, value in written.items())
        return written == found

    assert kept(FULL, resolved)


def test_a_configuration_is_frozen():
    configuration = configuration_from_dict(LEAST, "here")
    with pytest.raises(ValueError, match="frozen"):
        configuration.seed = 2


def _paths(model, prefix=""):
    """Every table of the configuration, by its dotted name."""
    yield prefix.rstrip("."), model
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _paths(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("path", [path for path, _ in _paths(RunConfiguration)])
def test_an_unknown_key_in_any_table_is_named_with_the_known_ones(path):
    fields = dict(LEAST)
    table = fields
    for part in path.split(".") if path else []:
        table = table.setdefault(part, {})
    table["colour"] = "red"
    with pytest.raises(UnknownNameError) as caught:
        configuration_from_dict(fields, "some.toml")
    assert caught.value.details["name"] == f"{path}.colour".lstrip(".")
    assert "some.toml" in caught.value.asked
    model = dict(_paths(RunConfiguration))[path]
    assert caught.value.details["known"] == sorted(f"{path}.{name}".lstrip(".") for name in model.model_fields)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("search", "trials", "3"),
        ("search", "trials", 3.0),
        ("search", "trials", True),
        ("search", "strategies", "tpe"),
        ("search", "strategies", ["tpe", "tpe"]),
        ("search", "constraint", "lower"),
        ("distill", "seeds", 1),
        ("distill", "training", 3),
        ("export", "quantize", ["int4"]),
        ("certificate", "percentile", 49),
        ("certificate", "percentile", "90"),
        ("certificate", "confidence", 1),
        ("profile", "probes", 5),
        ("teacher", "weights", 3),
        ("data", "settings", []),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_by_its_key(table, key, value):
    with pytest.raises(UsageError) as caught:
        configuration_from_dict({**LEAST, table: {key: value}}, "some.toml")
    assert f"{table}.{key}" in caught.value.asked
    assert "some.toml" in caught.value.asked


def test_whole_numbers_are_numbers():
    assert configuration_from_dict({**LEAST, "certificate": {"percentile": 95}}, "here").certificate.percentile == 95


@pytest.mark.parametrize(("percentile", "confidence", "samples"), [(90, 0.99, 44), (99, 0.99, 459), (99, 0.95, 299)])
def test_a_certificate_that_could_never_hold_is_refused(percentile, confidence, samples):
    """The numbers are those of the literature on tolerance limits: 299 samples for p99 at 95 %."""

    def ask(samples_per_block):
        table = {"percentile": percentile, "confidence": confidence, "blocks": 10}
        return configuration_from_dict(
            {**LEAST, "certificate": {**table, "samples_per_block": samples_per_block}}, "here"
        )

    enough = -(-samples // 10)
    assert ask(enough).certificate.samples_per_block == enough
    with pytest.raises(UsageError, match=f"{samples} samples in all"):
        ask(enough - 1)


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "", "a b"])
def test_a_runs_name_is_a_folders_name(name):
    with pytest.raises(UsageError):
        configuration_from_dict({**LEAST, "name": name}, "here")


@pytest.mark.parametrize(
    "teacher",
    [
        {"factory": "a:b", "weights": "w"},
        {"onnx": "t.onnx"},
        {"source": "onnx", "onnx": "t.onnx", "weights": "w"},
        {"source": "factory", "factory": "a:b"},
        {"source": "onnx"},
    ],
    ids=str,
)
def test_a_teacher_is_said_completely_and_nothing_of_it_is_ignored(teacher):
    with pytest.raises(UsageError, match=r"^asked for teacher in here"):
        configuration_from_dict({**LEAST, "teacher": teacher}, "here")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"gone\.toml"):
        read_configuration(tmp_path / "gone.toml")
    for content in (b"a = ", b"\xff"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"bad\.toml"):
            read_configuration(tmp_path / "bad.toml")


def test_the_demo_can_be_read():
    import akd_deploy.pipeline

    demo = read_configuration(Path(akd_deploy.pipeline.__file__).parent / "demo.toml")
    assert demo.name == "demo"


def test_how_a_search_is_done_is_no_part_of_what_is_run():
    fields = {"target": "t", "budget": "1ms"}
    plain = configuration_from_dict(fields, "a")
    nni = configuration_from_dict({**fields, "search": {"driver": "nni", "trial_limit_s": 9, "portal_port": 8080}}, "b")
    assert nni.what_is_run() == plain.what_is_run()
    assert "driver" not in plain.what_is_run()["search"]
    assert nni.as_dict() != plain.as_dict()
    with pytest.raises(UsageError, match='portal_port would not be used: write driver = "nni"'):
        configuration_from_dict({**fields, "search": {"portal_port": 8080}}, "c")


def test_settings_of_strategies_are_part_of_what_is_run_and_none_leave_no_trace():
    fields = {"target": "t", "budget": "1ms"}
    plain = configuration_from_dict(fields, "a")
    own = configuration_from_dict({**fields, "search": {"settings": {"tpe": {"gamma": 0.5}}}}, "b")
    assert own.what_is_run()["search"]["settings"] == {"tpe": {"gamma": 0.5}}
    assert (own.search.settings_of("tpe"), own.search.settings_of("evolution")) == ({"gamma": 0.5}, {})
    assert "settings" not in plain.what_is_run()["search"]  # as before there were any
    with pytest.raises(UsageError, match=r"search\.settings\.tpe"):
        configuration_from_dict({**fields, "search": {"settings": {"tpe": 3}}}, "c")
