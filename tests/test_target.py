import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from akd_deploy.engines import ENGINES, load_engine
from akd_deploy.errors import CorruptFileError, UnknownNameError, UsageError
from akd_deploy.target import (
    PRECISIONS,
    Target,
    known_targets,
    load_target,
    places,
    read_target,
    target_from_dict,
    user_data_dir,
)

SHIPPED = sorted((Path(__file__).parents[1] / "targets").glob("*.toml"))
TOML = 'device = "cpu"\nengine = "torch"\nprecision = "fp32"\n'
FIELDS = {"device": "cpu", "engine": "torch", "precision": "fp32"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working directory and user directory."""
    work = tmp_path / "work"
    (work / "targets").mkdir(parents=True)
    (tmp_path / "home" / "targets").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_target_is_read_and_its_engine_accepts_its_options(path):
    target = read_target(path)
    assert target.name == path.stem
    engine = load_engine(target)
    assert engine.target == target
    for option in target.engine_options:
        assert engine.option(option) == target.engine_options[option]


def test_targets_are_shipped_for_every_engine():
    assert {read_target(path).engine for path in SHIPPED} == set(ENGINES)


def test_keys_are_the_truth_and_the_stem_is_the_name(tmp_path):
    path = tmp_path / "any-name.toml"
    path.write_text(
        'device = "orin"\nengine = "tensorrt"\nprecision = "int8"\nbatch = 4\nhost = "ssh://me@board"\n'
        '[engine_options]\nlevel = 3\nfast = true\nscale = 0.5\nsms = ["sm87", "sm89"]\n'
    )
    target = read_target(path)
    assert (target.name, target.device, target.engine, target.precision) == ("any-name", "orin", "tensorrt", "int8")
    assert (target.batch, target.host) == (4, "ssh://me@board")
    assert dict(target.engine_options) == {"level": 3, "fast": True, "scale": 0.5, "sms": ("sm87", "sm89")}


def test_a_target_survives_the_way_through_its_dictionary(tmp_path):
    target = Target("t", "cpu", "torch", "bf16", 2, "ssh://a@b", {"sms": ("sm87",), "threads": 1})
    fields = target.as_dict()
    assert target_from_dict(fields.pop("name"), fields, where="here") == target


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ("colour = 1\n", "colour"),
        ("[engine_option]\nthreads = 1\n", "engine_option"),
        ('presicion = "int8"\n', "presicion"),
    ],
)
def test_an_unknown_key_is_named_with_the_file_and_the_known_ones(tmp_path, extra, asked):
    path = tmp_path / "t.toml"
    path.write_text(TOML + extra)
    with pytest.raises(UnknownNameError) as error:
        read_target(path)
    for part in (repr(asked), str(path), "batch, device, engine, engine_options, host, precision"):
        assert part in str(error.value)


def test_an_unknown_engine_option_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'thread'.*target t.*Did you mean 'threads'\?.*Known: .*threads"):
        load_engine(Target("t", "cpu", "onnxruntime", engine_options={"thread": 1}))


def test_an_engine_option_of_the_wrong_type_is_refused():
    with pytest.raises(UsageError, match=r"engine_options\.threads of target t as int.*'2'"):
        load_engine(Target("t", "cpu", "onnxruntime", engine_options={"threads": "2"}))


def test_an_unknown_engine_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'tensorflow'.*onnxruntime, openvino"):
        load_engine(Target("t", "cpu", "tensorflow"))


@pytest.mark.parametrize("missing", ["device", "engine", "precision"])
def test_a_missing_key_is_named(missing):
    fields = {key: value for key, value in FIELDS.items() if key != missing}
    with pytest.raises(UsageError, match=f"key '{missing}' in t.toml"):
        target_from_dict("t", fields, where="t.toml")


@pytest.mark.parametrize(
    "change",
    [
        {"batch": "4"},
        {"batch": 0},
        {"batch": True},
        {"batch": 2.0},
        {"device": 3},
        {"host": "localhost"},
        {"engine_options": 4},
        {"engine_options": {"when": [1, 2]}},
        {"engine_options": {"deep": {"a": 1}}},
    ],
)
def test_values_of_the_wrong_type_or_range_are_refused_by_key(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        target_from_dict("t", FIELDS | change, where="t.toml")


@pytest.mark.parametrize("batch", [True, 0, 1.0, "1"])
def test_a_target_made_in_code_is_checked_too(batch):
    with pytest.raises(UsageError, match="batch of target t"):
        Target("t", "cpu", "torch", batch=batch)


def test_an_unknown_precision_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'fp4'") as error:
        target_from_dict("t", FIELDS | {"precision": "fp4"}, where="t.toml")
    assert all(precision in str(error.value) for precision in PRECISIONS)


@pytest.mark.parametrize("content", [b"device = ", b"\xff\xfe", b"device = 'a'\ndevice = 'b'\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"broken\.toml"):
        read_target(path)


def test_a_target_is_frozen_hashable_and_compared_by_value():
    options = {"threads": 1}
    target = Target("t", "cpu", "torch", engine_options=options)
    options["threads"] = 2
    assert dict(target.engine_options) == {"threads": 1}
    with pytest.raises(FrozenInstanceError):
        target.batch = 2
    with pytest.raises(TypeError):
        target.engine_options["threads"] = 3
    assert {target: 1}[Target("t", "cpu", "torch", engine_options={"threads": 1})] == 1
    assert target != Target("t", "cpu", "torch", engine_options={"threads": 2})


def test_only_this_machines_devices_are_generic():
    assert Target("a", "cpu", "torch").is_generic
    assert Target("a", "gpu", "torch").is_generic
    assert not Target("cpu_x", "h200", "torch").is_generic


def test_the_working_directory_wins_over_the_user_directory_over_the_carried_targets(home):
    carried = SHIPPED[0].stem
    assert read_target(known_targets()[carried]).name == carried
    (home / "home" / "targets" / f"{carried}.toml").write_text(TOML.replace("cpu", "users"))
    assert load_target(carried).device == "users"
    (home / "work" / "targets" / f"{carried}.toml").write_text(TOML.replace("cpu", "nearest"))
    assert load_target(carried).device == "nearest"
    assert set(known_targets()) == {path.stem for path in SHIPPED}
    assert list(known_targets()) == sorted(known_targets())


def test_places_are_looked_through_from_the_nearest_to_the_carried(home):
    assert places("targets")[:2] == [home / "work" / "targets", home / "home" / "targets"]
    assert places("targets")[2] == SHIPPED[0].parent


def test_the_user_directory_is_the_platforms_unless_overridden(monkeypatch):
    monkeypatch.delenv("AKD_DEPLOY_HOME", raising=False)
    assert user_data_dir().name == "akd-deploy"


def test_a_target_may_be_given_as_a_path(home):
    elsewhere = home / "elsewhere.toml"
    shutil.copy(SHIPPED[0], elsewhere)
    assert load_target(str(elsewhere)).name == "elsewhere"


def test_an_unknown_target_lists_the_known_ones(home):
    with pytest.raises(UnknownNameError, match="target 'nowhere'") as error:
        load_target("nowhere")
    assert all(path.stem in str(error.value) for path in SHIPPED)
    with pytest.raises(UnknownNameError, match=r"nowhere\.toml"):
        load_target("nowhere.toml")
