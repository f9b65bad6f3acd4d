"""Bad input gets a clear error, the right exit code, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_line import TARGET, call, written

from akd_deploy.errors import StorageError
from akd_deploy.search import read_journal


def _said(error):
    return f"{error['asked']} {error['found']} {error['next']}"


def _toml(folder, text, name="bad.toml"):
    return written(folder / name, f'target = "{TARGET}"\nbudget = "1ms"\n' + text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[search]\ntrails = 3\n", ["'search.trails'", "bad.toml", "search.trials", "Did you mean"]),
        ("bugdet = 1\n", ["'bugdet'", "budget"]),
        ("[search.training]\nstep = 3\n", ["'search.training.step'", "search.training.steps"]),
        ('[search]\ntrials = "3"\n', ["search.trials", "'3'", "integer"]),
        ("[search]\ntrials = true\n", ["search.trials", "True", "integer"]),
        ("[search]\ntrials = 0\n", ["search.trials", "0", "greater than or equal to 1"]),
        ("[search]\nstrategies = []\n", ["search.strategies", "at least 1 item"]),
        ('[search]\nstrategies = ["tpe", "tpe"]\n', ["search.strategies", "once"]),
        ("seed = -1\n", ["seed", "-1"]),
        ('name = "../up"\n', ["name", "../up"]),
        ('[teacher]\nsource = "factory"\n', ["teacher", "needs factory"]),
        ('[teacher]\nfactory = "a:b"\nweights = "w"\n', ["teacher", 'source = "factory"']),
        ('[teacher]\nonnx = "t.onnx"\n', ["teacher", 'source = "onnx"']),
        ("[certificate]\nblocks = 9\n", ["certificate.blocks", "10"]),
        ("[certificate]\nsamples_per_block = 4\n", ["certificate", "40 samples", "44 samples"]),
        ("[certificate]\npercentile = 100\n", ["certificate.percentile", "100"]),
        # What only the stages know is looked up before there is a run's folder.
        ('[search]\nstrategies = ["anealing"]\n', ["'anealing'", "constrained_evolution", "tpe"]),
        ('[search]\nreward = "sort"\n', ["'sort'", "soft"]),
        ('[distill]\nmethod = "dkdd"\n', ["'dkdd'", "dkd"]),
        ('[export]\ntargets = ["cpu_openvino"]\n', ["'cpu_openvino'", "cpu_openvino_fp32"]),
        ('[data]\nname = "digit"\n', ["'digit'", "digits"]),
        ('[space]\nname = "mobil"\n', ["'mobil'", "mobile"]),
        ("[space.settings]\nwidth = [8]\n", ["'width'", "widths"]),
        ('[search.training]\noptimiser = "adm"\n', ["'adm'", "adamw"]),
        ('[teacher]\nsource = "onnx"\nonnx = "gone.onnx"\n', ["gone.onnx", "no such file"]),
        ("[teacher]\nmembers = 20\nskew = 1.0\n", ["20 members", "10 classes", "Lower skew"]),
        ('[data]\nname = "glyphs"\n', ["images (3, 32, 32) of dataset glyphs", "(1, 12, 12)", "in_channels"]),
        ("[data.settings]\nlabeled = 5\n", ["'labeled'", "labelled"]),
        ("[search.settings.tpe]\ngamma = 0.5\n", ["strategy tpe", "constrained_evolution", "strategies"]),
        ("[search.settings.constrained_evolution]\npopulatoin = 5\n", ["'populatoin'", "population"]),
    ],
    ids=lambda value: value.splitlines()[-1] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_run_toml_is_refused_before_anything_is_written(tmp_path, text, named):
    config = _toml(tmp_path, text)
    answer = call(tmp_path, "run", "--config", config, "--json")
    assert answer.code == 2, answer
    for words in named:
        assert words in _said(answer.error)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('target = "cpu_onnxrt"\nbudget = "1ms"', ["'cpu_onnxrt'", TARGET]),
        (f'target = "{TARGET}"\nbudget = "fast"', ["'fast'", "2ms"]),
        (f'target = "{TARGET}"\nbudget = "2 parsecs"', ["'parsecs'", "ms"]),
        (f'target = "{TARGET}"', ["budget", "nothing"]),
        (f"target = {TARGET}", ["bad.toml", "no valid TOML"]),
    ],
)
def test_a_run_without_a_target_or_a_budget_that_makes_sense_is_refused(tmp_path, text, named):
    answer = call(tmp_path, "run", "--config", written(tmp_path / "bad.toml", text), "--json")
    assert answer.code == 2
    for words in named:
        assert words in _said(answer.error)
    assert not (tmp_path / "runs").exists()


def test_people_read_the_same_error_on_stderr(tmp_path):
    answer = call(tmp_path, "run", "--config", _toml(tmp_path, "[search]\ntrails = 3\n"))
    assert (answer.code, answer.stdout) == (2, "")
    assert "search.trails" in answer.stderr
    assert "search.trials" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\nthreads = 2\n',
         ["'threads'", "own.toml", "engine_options"]),
        ('device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n[engine_options]\nthread = 2\n',
         ["'thread'", "threads"]),
        ('device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n[engine_options]\nthreads = "2"\n',
         ["engine_options.threads", "'2'", "int"]),
        ('device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\nbatch = "1"\n', ["'batch'", "int"]),
        ('device = "cpu"\nengine = "onnx"\nprecision = "fp32"\n', ["'onnx'", "onnxruntime"]),
        ('device = "cpu"\nengine = "onnxruntime"\n', ["'precision'"]),
    ],
)  # fmt: skip
def test_a_wrong_target_is_refused_with_its_key_and_the_known_ones(tmp_path, text, named):
    path = written(tmp_path / "own.toml", text)
    answer = call(tmp_path, "predict", "--target", path, "--onnx", "m.onnx", "--json")
    assert answer.code == 2
    for words in named:
        assert words in _said(answer.error)


def test_a_teacher_that_is_shrunk_needs_no_space_that_fits_its_data(tmp_path):
    config = _toml(tmp_path, '[data]\nname = "glyphs"\n')
    assert call(tmp_path, "shrink", "--config", config, "--dry-run", "--json").code == 0
    assert call(tmp_path, "run", "--config", config, "--dry-run", "--json").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--config", "gone.toml"),
        ("search", "--config", "gone.toml"),
        ("distill", "--config", "gone.toml", "--arch", "gone.json", "-o", "s.safetensors"),
        ("distill", "--config", "run.toml", "--arch", "gone.json", "-o", "s.safetensors"),
        ("predict", "--target", TARGET, "--onnx", "gone.onnx"),
        ("predict", "--target", TARGET, "--arch", "gone.json"),
        ("predict", "--target", TARGET, "--table", "gone", "--arch", "gone.json"),
        ("feasible", "--target", TARGET, "--space", "gone.toml"),
        ("bench", "--target", TARGET, "--onnx", "gone.onnx"),
        ("bench", "--target", TARGET, "--onnx", "run.toml", "--compare-with", "gone.onnx"),
        ("export", "--student", "gone.safetensors", "--target", TARGET, "-o", "out"),
        ("build", "--onnx", "gone.onnx", "--target", TARGET, "-o", "out"),
        ("quantize", "--onnx", "gone.onnx", "--target", TARGET, "--mode", "fp16", "-o", "out"),
        ("lint", "gone.onnx", "--target", TARGET),
        ("inspect", "gone.onnx", "--target", TARGET),
        ("diff", "gone.onnx", "gone.onnx", "--target", TARGET),
        ("package", "gone", "-o", "b.zip"),
        ("verify", "gone"),
        ("gate", "--baseline", "gone.json", "--candidate", "gone.json"),
        ("report", "gone"),
    ],
    ids=" ".join,
)
def test_a_missing_file_is_named(workshop, refused, arguments):
    error = refused(2, *arguments)
    assert error["kind"] == "missing_file"
    assert "gone" in _said(error)
    assert not (workshop.folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("search", "--config", "run.toml", "--jobs", "2"), ["2 trainings", "in-process driver"]),
        (("search", "--config", "run.toml", "--job", "2"), ["--job", "--jobs"]),
        (("search", "--config", "run.toml", "--jobs", "two"), ["two", "integer"]),
        (("serch",), ["serch"]),
        (("run",), ["--config"]),
        (("predict", "--target", TARGET), ["--onnx", "--arch"]),
        (("bench", "--target", TARGET), ["--onnx", "--engine"]),
        (("bench", "--target", TARGET, "--onnx", "m", "--aa", "--compare-with", "m"), ["--aa"]),
        (
            ("bench", "--target", TARGET, "--onnx", "run.toml", "--latency-budget", "1s", "--blocks", "3"),
            ["--blocks 3", "at least 10"],
        ),
        (("quantize", "--onnx", "run.toml", "--target", TARGET, "--mode", "int8", "-o", "out"), ["--samples"]),
        (("feasible", "--target", TARGET, "--latency-budget", "60%"), ["60%", "duration"]),
        (("targets", "show", "cpu_onnx_fp32"), ["cpu_onnx_fp32", TARGET]),
        (("profile", "--target", TARGET, "--minutes", "0.05"), ["0.05 minutes", "at least"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_call_that_makes_no_sense_is_refused_with_the_way_out(refused, arguments, named):
    error = refused(2, *arguments)
    for words in named:
        assert words in _said(error)


def test_a_second_profile_does_not_replace_the_first(workshop, refused):
    error = refused(2, "profile", "--target", TARGET)
    assert str(workshop.table) in error["asked"]
    assert "--resume" in error["next"]


def test_a_budget_that_nothing_meets_is_told_before_any_training(workshop, refused):
    error = refused(3, "feasible", "--target", TARGET, "--space", "space.toml", "--latency-budget", "100ns")
    assert error["kind"] == "infeasible_budget"
    assert error["fastest_bound_s"] > workshop.feasible.data["min_s"] > 1e-7
    assert "µs" in error["found"]


@pytest.mark.slow
def test_a_run_whose_budget_nothing_meets_says_the_fastest_and_trains_no_student(workshop, tmp_path):
    config = workshop.run_toml(tmp_path / "tight.toml", budget="100ns")
    arguments = ("--config", config, "-o", tmp_path / "run", "--json")
    for answer in (workshop.call("run", *arguments), workshop.call("search", *arguments, "--resume")):
        assert answer.code == 3
        assert answer.error["kind"] == "infeasible_budget"
        assert "fastest needs" in answer.error["found"]
        assert answer.data["fastest_s"] == answer.error["fastest_s"] > answer.error["budget_s"]
    with read_journal(tmp_path / "run" / "journal.sqlite") as journal:
        assert list(journal.stages()) == ["profile"]  # a teacher may take hours to train


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--config", "run.toml", "-o", "OUT"),
        ("search", "--config", "run.toml", "-o", "OUT"),
        ("profile", "--target", TARGET, "--resume"),
        ("bench", "--target", TARGET, "--onnx", "run.toml"),
        ("build", "--onnx", "run.toml", "--target", TARGET, "-o", "OUT"),
        ("inspect", "run.toml", "--target", TARGET),
    ],
    ids=lambda value: value[0],
)
def test_a_missing_runtime_is_told_with_what_to_install(workshop, refused, tmp_path, monkeypatch, arguments):
    from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

    monkeypatch.setattr(OnnxRuntimeEngine, "why_not", lambda self: "onnxruntime is not installed")
    out = str(tmp_path / "out")
    error = refused(5, *(out if a == "OUT" else a for a in arguments))
    assert error["kind"] == "missing_runtime"
    assert "onnxruntime is not installed" in error["found"]
    assert "pip install 'akd-deploy[cpu]'" in error["next"]
    assert not (tmp_path / "out").exists()


def test_an_unknown_mode_is_named_with_the_known_ones_before_samples_are_missed(refused, twin, tmp_path):
    arguments = ("--onnx", twin.onnx, "--target", TARGET, "-o", tmp_path / "out")
    error = refused(2, "quantize", *arguments, "--mode", "nonsense")
    assert error["known"] == ["auto", "bf16", "fp16", "fp8", "int8"]
    assert refused(2, "quantize", *arguments, "--mode", "int8", "--seed", 3)["found"] == "no samples"


@pytest.fixture
def copied_table(workshop, tmp_path):
    """A copy of the workshop's table where a command looks for it."""
    shutil.copytree(workshop.folder / "latency_tables", tmp_path / "latency_tables")
    return tmp_path / workshop.table.relative_to(workshop.folder)


@pytest.mark.parametrize("command", ["fit", "run"])
def test_a_truncated_latency_table_is_named(workshop, copied_table, tmp_path, command):
    rows = next(copied_table.glob("rows-*.parquet"))
    rows.write_bytes(rows.read_bytes()[:-100])
    arguments = ("--target", TARGET) if command == "fit" else ("--config", workshop.config)
    answer = call(tmp_path, command, *arguments, "--json")
    assert answer.code == 2
    assert answer.error["kind"] == "corrupt_file"
    assert rows.name in _said(answer.error)


def test_a_foreign_latency_table_is_never_used_silently(copied_table, tmp_path):
    header = json.loads((copied_table / "header.json").read_text(encoding="utf-8"))
    header["device"]["model"] = "Some Other CPU"
    (copied_table / "header.json").write_text(json.dumps(header), encoding="utf-8")
    # The carried tables are not this test's.
    shutil.copy(Path(__file__).parents[2] / "targets" / f"{TARGET}.toml", tmp_path / "own_fp32.toml")
    answer = call(tmp_path, "fit", "--target", TARGET, "--table", copied_table, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "mismatch")
    assert str(copied_table) in answer.error["found"]
    assert "Some Other CPU" in answer.error["found"]
    other = call(tmp_path, "fit", "--target", tmp_path / "own_fp32.toml", "--table", copied_table, "--json")
    assert (other.code, other.error["kind"]) == (2, "mismatch")
    assert "own_fp32" in other.error["asked"]


def test_a_latency_table_of_another_device_is_no_table_of_this_one(workshop, tmp_path):
    target = written(
        tmp_path / "targets" / "own_fp32.toml", 'device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n'
    )
    shutil.copytree(workshop.table, tmp_path / "latency_tables" / "own_fp32" / workshop.table.name)
    header_path = tmp_path / "latency_tables" / "own_fp32" / workshop.table.name / "header.json"
    header = json.loads(header_path.read_text(encoding="utf-8"))
    header["device"]["model"] = "Some Other CPU"
    header["target"]["name"] = target.stem
    header_path.write_text(json.dumps(header), encoding="utf-8")
    answer = call(tmp_path, "fit", "--target", "own_fp32", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "missing_file")
    assert "Some Other CPU" in answer.error["found"]
    assert "akd-deploy profile --target own_fp32" in answer.error["next"]


def test_an_operator_the_table_does_not_know_is_named_and_never_costs_nothing(workshop, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info
    nodes = [helper.make_node("Sinh", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", TensorProto.FLOAT, [1, 8, 12, 12])],
        [tensor("y", TensorProto.FLOAT, [1, 8, 12, 12])],
    )
    path = tmp_path / "sinh.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    answer = workshop.call("predict", "--target", TARGET, "--onnx", path, "--json")
    assert answer.code == 2
    assert answer.error["kind"] == "uncovered_operator"
    assert "Sinh" in answer.data["uncovered"]
    assert answer.error["uncovered"] == answer.data["uncovered"]
    assert answer.error["next"] == f"Profile them: `akd-deploy profile --target {TARGET} --onnx {path} --resume`."
    assert "Sinh" in answer.error["found"]
    assert "latency_s" not in answer.data


@pytest.mark.parametrize(("operator", "domain"), [("Frob", "my.dom"), ("NotAnOp", ""), ("If", "")])
def test_an_operator_that_the_engine_does_not_know_either_is_uncovered_too(workshop, tmp_path, operator, domain):
    """Nothing is built where a latency is predicted: it is no build that failed."""
    import onnx
    from onnx import TensorProto, helper

    tensor, shape = helper.make_tensor_value_info, [1, 8, 12, 12]
    if operator == "If":
        branches = {}
        for branch in ("then_branch", "else_branch"):
            node = helper.make_node("Relu" if branch == "then_branch" else "Neg", ["x"], [f"{branch}.y"])
            branches[branch] = helper.make_graph([node], branch, [], [tensor(f"{branch}.y", TensorProto.FLOAT, shape)])
        total = helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)
        cast = helper.make_node("Cast", ["sum"], ["yes"], to=TensorProto.BOOL)
        nodes = [total, cast, helper.make_node("If", ["yes"], ["y"], **branches)]
    else:
        nodes = [helper.make_node(operator, ["x"], ["y"], domain=domain)]
    graph = helper.make_graph(
        nodes, "g", [tensor("x", TensorProto.FLOAT, shape)], [tensor("y", TensorProto.FLOAT, shape)]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path = tmp_path / "m.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    answer = workshop.call("predict", "--target", TARGET, "--onnx", path, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "uncovered_operator")
    assert answer.data["uncovered"] == [f"{domain}.{operator}" if domain else operator]


FACTORY = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, {classes}))
"""


def _factory_teacher(workshop, folder, name, classes):
    """run.toml of a run whose teacher is the user's own."""
    import torch
    from safetensors.torch import save_file

    written(folder / f"{name}.py", FACTORY.format(classes=classes))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, classes))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return (
        workshop.run_toml(folder / "run.toml")
        .read_text(encoding="utf-8")
        .replace(
            "[teacher.training]\nsteps = 20",
            f'[teacher]\nsource = "factory"\nfactory = "{name}:build"\nweights = "{folder / "weights.safetensors"}"',
        )
    )


@pytest.mark.parametrize("classes", [7, 10])
def test_a_teacher_of_other_classes_is_refused_and_one_of_the_same_is_taken(
    twin, architecture_file, tmp_path, monkeypatch, classes
):
    name = f"teacher_of_{classes}"
    monkeypatch.syspath_prepend(str(tmp_path))
    text = _factory_teacher(twin.workshop, tmp_path, name, classes)
    config = written(tmp_path / "run.toml", text)
    arguments = ("--config", config, "--arch", architecture_file, "-o", tmp_path / "s.safetensors")
    answer = twin.workshop.call("distill", *arguments, "--json")
    sys.modules.pop(name, None)
    if classes == 10:
        assert answer.code == 0
        return
    assert (answer.code, answer.error["kind"]) == (2, "mismatch")
    assert "10 classes" in answer.error["asked"]
    assert "7 classes" in answer.error["found"]
    assert not (tmp_path / "s.safetensors").exists()


def test_data_that_does_not_fit_the_search_space_is_refused(twin, tmp_path):
    arch = json.loads(json.dumps(twin.answer.data["winner"]["arch"]))
    arch["settings"]["classes"] = 7
    path = written(tmp_path / "arch.json", json.dumps(arch))
    arguments = ("--config", "run.toml", "--arch", path, "-o", tmp_path / "s.safetensors")
    answer = twin.workshop.call("distill", *arguments, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "mismatch")
    assert "classes 10" in answer.error["asked"]
    assert "classes 7" in answer.error["found"]


@pytest.mark.slow
def test_trainings_whose_loss_is_no_number_are_recorded_and_stop_the_search(workshop, tmp_path):
    config = workshop.run_toml(tmp_path / "run.toml", learning_rate=1e30)
    answer = workshop.call("search", "--config", config, "-o", tmp_path / "run", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "training")
    assert "2 failed trainings" in answer.error["found"]
    assert "step" in answer.error["found"]
    with read_journal(tmp_path / "run" / "journal.sqlite") as journal:
        trials = journal.of_search("constrained_evolution").trials()
        assert "search-constrained_evolution" not in journal.stages()
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(failed) == 2
    assert all("TrainingError" in str(trial.error) and trial.reward is None for trial in failed)


def test_a_long_training_whose_loss_is_no_number_names_the_step(twin, architecture_file, tmp_path):
    config = twin.workshop.run_toml(tmp_path / "run.toml")
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("steps = 40", "steps = 40\nlearning_rate = 1e30"), encoding="utf-8")
    arguments = ("--config", config, "--arch", architecture_file, "-o", tmp_path / "s.safetensors")
    answer = twin.workshop.call("distill", *arguments, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "training")
    assert "of 40" in answer.error["asked"]
    assert 1 < answer.data["step"] <= 40
    assert f"step {answer.data['step']} " in answer.error["asked"]
    assert "learning_rate" in answer.error["next"]
    assert not (tmp_path / "s.safetensors").exists()


def _copy(twin, tmp_path):
    shutil.copytree(twin.directory, tmp_path / "run")
    return tmp_path / "run"


def _bytes(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@pytest.mark.slow
def test_a_used_folder_is_not_run_in_again_without_resume(twin, tmp_path):
    run = _copy(twin, tmp_path)
    before = _bytes(run)
    answer = twin.workshop.call("run", "--config", "run.toml", "-o", run, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert str(run) in answer.error["asked"]
    assert "--resume" in answer.error["next"]
    assert _bytes(run) == before


@pytest.mark.slow
def test_a_run_resumed_with_another_configuration_names_every_key_that_differs(twin, tmp_path):
    run = _copy(twin, tmp_path)
    before = _bytes(run)
    config = twin.workshop.run_toml(tmp_path / "other.toml", "\n[export]\nquantize = ['int8']\n", steps=31)
    answer = twin.workshop.call("run", "--config", config, "--resume", "--seed", 5, "-o", run, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "mismatch")
    for line in ("search.training.steps: 30 → 31", "seed: 0 → 5", 'export.quantize: [] → ["int8"]'):
        assert line in answer.error["found"]
    assert len(answer.error["differing"]) == 3
    assert _bytes(run) == before


def _full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_and_leaves_what_was_there(workshop, copied_table, tmp_path, monkeypatch):
    before = _bytes(copied_table)
    monkeypatch.setattr(os, "fsync", _full_disk)
    size = ("--space", workshop.folder / "space.toml", "--probes", 40, "--networks", 12, "--blocks", 2)
    answer = call(tmp_path, "profile", "--target", TARGET, *size, "--resume", "--json")
    assert (answer.code, answer.error["kind"]) == (5, "storage")
    assert "No space left" in answer.error["found"]
    assert _bytes(copied_table) == before
    run = call(tmp_path, "run", "--config", workshop.config, "--json")
    assert (run.code, run.error["kind"]) == (5, "storage")
    assert "No space left" in run.error["found"]
    monkeypatch.undo()
    assert call(tmp_path, "fit", "--target", TARGET, "--json").code == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_late_loses_only_what_was_in_flight(twin, tmp_path, monkeypatch):
    run = _copy(twin, tmp_path)
    (run / "report.html").unlink()
    (run / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full_disk)
        answer = twin.workshop.call("run", "--config", "run.toml", "--resume", "-o", run, "--json")
    assert (answer.code, answer.error["kind"]) == (5, "storage")
    assert not (run / "report.html").exists()
    resumed = twin.workshop.call("run", "--config", "run.toml", "--resume", "-o", run, "--json")
    assert resumed.code == twin.answer.code
    assert resumed.data["winner"]["arch"] == twin.answer.data["winner"]["arch"]
    assert (run / "report.html").is_file()


PLACES = {
    "run": ("--config", "run.toml", "-o", "FILE/run"),
    "search": ("--config", "run.toml", "-o", "FILE"),
    "distill": ("--config", "run.toml", "--arch", "ARCH", "-o", "FILE/s.safetensors"),
    "export": ("--student", "STUDENT", "--target", TARGET, "-o", "FILE"),
    "build": ("--onnx", "ONNX", "--target", TARGET, "-o", "FILE/out"),
    "quantize": ("--onnx", "ONNX", "--target", TARGET, "--mode", "fp16", "-o", "FILE/out"),
    "package": ("BUNDLE", "-o", "FILE/b.zip"),
    "report": ("RUN", "-o", "FILE/r.html"),
    "bench": ("--onnx", "ONNX", "--target", TARGET, "--blocks", "1", "--seconds", "0.001", "-o", "FILE/b.json"),
}


@pytest.mark.parametrize("command", sorted(PLACES))
def test_a_folder_that_is_a_file_cannot_be_written_into(twin, architecture_file, tmp_path, command):
    file = written(tmp_path / "file", "precious")
    known = {
        "ARCH": architecture_file, "STUDENT": twin.student, "ONNX": twin.onnx, "BUNDLE": twin.directory / "bundle",
        "RUN": twin.directory,
    }  # fmt: skip
    arguments = [str(known.get(a, a)).replace("FILE", str(file)) for a in PLACES[command]]
    answer = twin.workshop.call(command, *arguments, "--json")
    assert (answer.code, answer.error["kind"]) == (5, "storage"), answer
    assert str(file) in _said(answer.error)
    assert file.read_text(encoding="utf-8") == "precious"


def test_a_bench_whose_record_cannot_be_written_at_last_is_printed_all_the_same(twin, tmp_path, monkeypatch):
    def full(path, text):
        raise StorageError(f"to write {path}", "no space", "Free some.")

    command = ("bench", "--target", TARGET, "--onnx", twin.onnx, "--blocks", 2, "--seconds", 0.02)
    monkeypatch.setattr("akd_deploy.cli.bench_command.write_text_atomically", full)
    answer = twin.workshop.call(*command, "-o", tmp_path / "r.json", "--json")
    assert (answer.code, answer.error["kind"]) == (5, "storage")
    assert answer.data["latency_stats_s"]["median"] > 0
    words = twin.workshop.call(*command, "-o", tmp_path / "r.json")
    assert "median" in words.stdout
    assert words.code == 5


def test_a_defect_of_ours_is_an_error_with_its_traceback(workshop, refused, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr("akd_deploy.pipeline.latency.find_table", broken)
    answer = workshop.call("fit", "--target", TARGET, "--json")
    assert (answer.code, answer.error["kind"]) == (1, "defect")
    assert answer.error["found"] == "ZeroDivisionError: a mistake"
    assert "Traceback" in answer.stderr


@pytest.mark.parametrize(("command", "said"), [("fit", "Run it again."), ("profile", "--resume")])
def test_ctrl_c_says_what_is_true_of_the_command(workshop, monkeypatch, command, said):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("akd_deploy.target.load_target", interrupted)
    answer = workshop.call(command, "--target", TARGET, "--json")
    assert (answer.code, answer.error["kind"]) == (130, "interrupted")
    assert said in answer.error["next"]


def test_a_library_that_cannot_write_is_reported_like_our_own_code(workshop, refused, monkeypatch):
    """`errors.StorageError` is raised where we write; what a library raises gets the same words at the end."""
    monkeypatch.setattr("akd_deploy.latency_table.find_table", lambda *_: _full_disk(0))
    monkeypatch.setattr("akd_deploy.pipeline.latency.find_table", lambda *_: _full_disk(0))
    error = refused(5, "fit", "--target", TARGET)
    assert error["kind"] == "storage"
    assert error["asked"].startswith("akd-deploy fit")
    assert "No space left" in error["found"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no network", bytes(range(256)) * 8],
    ids=["empty", "text", "bytes"],
)
@pytest.mark.parametrize("command", ["predict", "bench", "build", "quantize", "inspect"])
def test_a_file_that_is_no_network_is_named(workshop, refused, tmp_path, command, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    arguments = {
        "predict": ("--onnx", path),
        "bench": ("--onnx", path, "--blocks", 1),
        "build": ("--onnx", path, "-o", tmp_path / "out"),
        "quantize": ("--onnx", path, "--mode", "fp16", "-o", tmp_path / "out"),
        "inspect": (path,),
    }[command]
    error = refused(2, command, *arguments, "--target", TARGET)
    assert "bad.onnx" in _said(error)


def test_lint_has_a_finding_about_a_file_that_is_no_network(workshop, tmp_path):
    path = written(tmp_path / "bad.onnx", "no network")
    answer = workshop.call("lint", path, "--target", TARGET, "--json")
    assert answer.code == 3
    assert [finding["severity"] for finding in answer.data["findings"]] == ["error"]
