"""Every command of the contract is there, and its JSON has what the contract lists."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from command_line import TARGET, call

import akd_deploy
from akd_deploy.measurement import Measurement

COMMANDS = {
    "doctor", "targets", "profile", "fit", "predict", "bench", "feasible", "search", "distill", "export", "build",
    "quantize", "lint", "inspect", "diff", "package", "verify", "load", "gate", "report", "run", "shrink", "demo",
    "import-table",
}  # fmt: skip


def test_the_commands_are_those_of_the_contract():
    from typer.main import get_command

    from akd_deploy.cli.app import app

    assert set(get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_and_offers_json(command, tmp_path):
    arguments = ("targets", "list") if command == "targets" else (command,)
    answer = call(tmp_path, *arguments, "--help")
    assert answer.code == 0
    assert "--json" in answer.stdout


def test_version_is_printed(tmp_path):
    answer = call(tmp_path, "--version")
    assert (answer.code, answer.stdout) == (0, f"akd-deploy {akd_deploy.__version__}\n")


def test_doctor_tells_runtimes_and_problems(tmp_path):
    data = call(tmp_path, "doctor", "--json").data
    by_name = {row["engine"]: row for row in data["runtimes"]}
    assert by_name["onnxruntime"]["runs"] is True
    assert by_name["torch"]["version"]
    for row in data["runtimes"]:
        assert row["runs"] == (row["why_not"] is None)
    assert all(problem["found"] and problem["next"] for problem in data["problems"])
    missing = {row["engine"] for row in data["runtimes"] if not row["builds"]}
    assert missing <= {problem["what"] for problem in data["problems"]}


def test_targets_list_says_which_run_here_and_why_the_others_do_not(tmp_path):
    rows = {row["name"]: row for row in call(tmp_path, "targets", "list", "--json").data["targets"]}
    assert rows[TARGET]["runnable"] is True
    for row in rows.values():
        assert {"name", "engine", "runnable", "why"} <= set(row)
        assert row["runnable"] == (row["why"] is None)


def test_a_target_that_cannot_be_read_is_listed_with_the_reason(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "broken.toml").write_text('device = "cpu"\nengin = "torch"\n', encoding="utf-8")
    rows = {row["name"]: row for row in call(tmp_path, "targets", "list", "--json").data["targets"]}
    assert rows["broken"]["runnable"] is False
    assert "'engin'" in rows["broken"]["why"]
    assert rows[TARGET]["runnable"] is True


def test_targets_show_gives_settings_and_the_latency_table(workshop, tmp_path):
    data = workshop.call("targets", "show", TARGET, "--json").data
    assert (data["engine"], data["precision"], data["batch"]) == ("onnxruntime", "fp32", 1)
    assert data["table"] == str(workshop.table)
    (tmp_path / "targets").mkdir()
    own = (tmp_path / "targets" / "own_fp32.toml").write_text
    own('device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n', encoding="utf-8")
    assert call(tmp_path, "targets", "show", "own_fp32", "--json").data["table"] is None


def test_profile_tells_its_table_kernels_seconds_and_sigma(workshop):
    data = workshop.profiled.data
    assert data["kernels"] > 20
    assert data["rows"] == 52
    assert data["seconds"] > 0
    assert data["sigma"] > 0
    assert (workshop.table / "header.json").is_file()


def test_profile_resumes_what_it_has_begun_and_measures_nothing_twice(workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop.folder / "latency_tables", tmp_path / "latency_tables")
    monkeypatch.setattr("akd_deploy.profiling.rounds.measure_blocks", None)
    size = ("--probes", 40, "--networks", 12, "--blocks", 2)
    space = ("--space", workshop.folder / "space.toml")
    resumed = call(tmp_path, "profile", "--target", TARGET, *space, *size, "--resume", "--json")
    assert (resumed.code, resumed.data["rows"], resumed.data["sigma"]) == (0, 52, workshop.profiled.data["sigma"])


def test_fit_scores_the_predictor_on_what_it_was_not_fitted_on(workshop):
    data = workshop.call("fit", "--target", TARGET, "--json").data
    assert {"mape", "within_5", "within_10", "kendall_tau", "spearman", "coverage"} <= set(data)
    assert data["calibrated_on"] == "networks"
    assert data["items"] == 12
    assert 0 <= data["within_5"] <= data["within_10"] <= 1


def test_feasible_orders_what_the_space_can_reach(workshop):
    data = workshop.feasible.data
    assert 0 < data["min_s"] <= data["median_s"] <= data["max_s"]
    assert data["min_parameters"] > 0
    assert data["fraction_within_budget"] is None
    space = ("--space", "space.toml", "--target", TARGET)
    data = workshop.call("feasible", *space, "--latency-budget", workshop.budget, "--json").data
    assert 0.5 < data["fraction_within_budget"] <= 1  # of 20 times the median certificates here leave some
    assert f"{data['budget_s'] * 1e9:.0f}ns" == workshop.budget


def test_predict_gives_an_interval_and_every_kernels_share(twin, architecture_file):
    answer = twin.workshop.call("predict", "--target", TARGET, "--arch", architecture_file, "--layers", "--json")
    data = answer.data
    assert answer.code == 0
    low, high = data["interval_s"]
    assert low <= data["latency_s"] <= high
    assert (data["coverage"], data["uncovered"]) == (0.9, [])
    assert isinstance(data["in_domain"], bool)
    assert all({"name", "kernel", "latency_s"} <= set(row) for row in data["layers"])
    total = data["overhead_s"] + sum(row["latency_s"] for row in data["layers"])
    assert total == pytest.approx(data["latency_s"])
    assert data["latency_s"] == pytest.approx(twin.answer.data["winner"]["predicted_s"])
    same = twin.workshop.call("predict", "--target", TARGET, "--onnx", twin.onnx, "--json").data
    assert same["latency_s"] == pytest.approx(data["latency_s"])


@pytest.fixture(scope="module")
def benched(twin, tmp_path_factory):
    """One model measured in ten processes, and the file it was written to."""
    path = tmp_path_factory.mktemp("bench") / "before.json"
    few = ("--blocks", 10, "--seconds", 0.005, "--latency-budget", "1s", "--aa")
    answer = twin.workshop.call("bench", "--target", TARGET, "--onnx", twin.onnx, *few, "-o", path, "--json")
    return answer, path


def test_bench_measures_in_fresh_processes_and_certifies(benched):
    answer, path = benched
    data = answer.data
    assert answer.code == 0
    assert set(data["latency_stats_s"]) == {"median", "p90", "p99"}
    assert data["samples"] == sum(len(samples) for samples in data["blocks"].values()) >= 1_000
    assert set(data["blocks"]) == set("0123456789")
    assert data["sigma"] > 0
    samples = tuple(s for block in data["blocks"].values() for s in block)
    ids = tuple(int(i) for i, block in data["blocks"].items() for _ in block)
    assert data["full_speed_s"] == Measurement("m", samples, ids).label_s
    for name in ("p90", "p99"):
        assert data["upper_bounds_s"][name] >= data["latency_stats_s"][name]
    assert (data["certificate"]["ok"], data["certificate"]["samples"]) == (True, data["samples"])
    assert data["compared"]["low"] <= data["compared"]["ratio"] <= data["compared"]["high"]
    assert json.loads(path.read_text(encoding="utf-8")) == data


def test_bench_exits_with_3_where_the_budget_is_not_met(twin):
    few = ("--seconds", 0.005, "--latency-budget", "1ns")
    answer = twin.workshop.call("bench", "--target", TARGET, "--onnx", twin.onnx, *few, "--json")
    assert (answer.code, answer.data["certificate"]["ok"]) == (3, False)


def test_gate_passes_a_bench_against_itself_and_stops_a_slower_one(benched, twin, tmp_path):
    _, before = benched
    data = json.loads(before.read_text(encoding="utf-8"))
    answer = twin.workshop.call("gate", "--baseline", before, "--candidate", before, "--json")
    assert (answer.code, answer.data["regressed"]) == (0, False)
    assert {"ratio", "interval"} <= set(answer.data)
    slower = {**data, "blocks": {i: [2 * s for s in samples] for i, samples in data["blocks"].items()}}
    after = tmp_path / "after.json"
    after.write_text(json.dumps(slower), encoding="utf-8")
    answer = twin.workshop.call("gate", "--baseline", before, "--candidate", after, "--json")
    assert (answer.code, answer.data["regressed"]) == (3, True)
    assert answer.data["ratio"] == pytest.approx(2)


def test_distill_trains_one_student_and_export_gives_it_as_onnx(twin, architecture_file, tmp_path):
    student = tmp_path / "out" / "student.safetensors"
    answer = twin.workshop.call(
        "distill", "--config", "run.toml", "--arch", architecture_file, "-o", student, "--seed", 7, "--json"
    )
    assert answer.code == 0
    assert 0 <= answer.data["accuracy"] <= 1
    assert 0 <= answer.data["agreement"] <= 1
    assert answer.data["seconds"] > 0
    answer = twin.workshop.call("export", "--student", student, "--target", TARGET, "-o", tmp_path / "onnx", "--json")
    assert answer.code == 0
    assert answer.data["onnx"] == str(tmp_path / "onnx" / "student.onnx")
    parity = answer.data["parity"]
    assert parity["max_abs"] < 1e-3
    assert parity["cosine"] > 0.9999
    assert parity["top1_agreement"] == 1


def test_distilling_with_other_teacher_settings_trains_another_teacher(twin, architecture_file, tmp_path):
    """Two calls that write into one folder share a teacher only where it would be the same."""
    found = []
    for steps in (3, 4, 3):
        config = twin.workshop.run_toml(tmp_path / "t.toml")
        text = config.read_text(encoding="utf-8").replace(
            "[teacher.training]\nsteps = 20", f"[teacher.training]\nsteps = {steps}"
        )
        config.write_text(text.replace("steps = 40", "steps = 1"), encoding="utf-8")
        arguments = ("--config", config, "--arch", architecture_file, "-o", tmp_path / "s.safetensors")
        assert twin.workshop.call("distill", *arguments, "--json").code == 0
        found.append({path.name for path in tmp_path.glob("teacher-*.safetensors")})
    assert [len(names) for names in found] == [1, 2, 2]


def test_build_audits_what_was_built(twin, tmp_path):
    answer = twin.workshop.call("build", "--onnx", twin.onnx, "--target", TARGET, "-o", tmp_path / "e", "--json")
    data = answer.data
    assert answer.code == 0
    assert (tmp_path / "e" / data["engine"].rpartition("/")[2]).is_file()
    assert len(data["sha256"]) == 64
    assert data["seconds"] > 0
    assert set(data["precision"]) == {"float32"}


def test_quantize_writes_the_variant_asked_for(twin, tmp_path):
    arguments = ("--onnx", twin.onnx, "--target", TARGET, "--config", "run.toml", "-o", tmp_path)
    data = twin.workshop.call("quantize", *arguments, "--mode", "int8", "--json").data
    assert data["onnx"] == str(tmp_path / "student.int8.onnx")
    assert (tmp_path / "student.int8.onnx").is_file()
    assert [(row["mode"], row["recommended"]) for row in data["variants"]] == [("int8", False)]
    assert all({"mode", "accuracy", "latency_stats_s", "recommended"} <= set(row) for row in data["variants"])


def test_quantize_compares_a_variant_with_its_source_and_one_that_is_broken_exits_with_4(twin, tmp_path):
    """int8 calibrated on images a thousand times too dark clips all others: the node where that shows is named."""
    images = np.random.default_rng(0).standard_normal((160, 1, 12, 12), dtype=np.float32)
    np.savez(tmp_path / "right.npz", input=images)
    images[:128] *= 1e-3
    np.savez(tmp_path / "wrong.npz", input=images)
    arguments = ("quantize", "--onnx", twin.onnx, "--target", TARGET, "-o", tmp_path)
    answer = twin.workshop.call(*arguments, "--mode", "fp16", "--samples", tmp_path / "right.npz", "--json")
    assert answer.code == 0, answer
    assert answer.data["variants"][0]["parity"]["cosine"] > 0.999
    assert answer.data["compared_on"] == "samples that calibrated nothing"
    answer = twin.workshop.call(*arguments, "--mode", "int8", "--samples", tmp_path / "wrong.npz", "--json")
    assert answer.code == 4, answer
    assert answer.error["kind"] == "parity"
    first = answer.error["first_divergence"]
    assert first["node"]
    assert first["node"] in answer.error["found"]
    assert answer.error["parity"]["cosine"] < 0.95
    in_words = twin.workshop.call(*arguments, "--mode", "int8", "--samples", tmp_path / "wrong.npz")
    assert in_words.code == 4
    assert repr(first["node"]) in in_words.stderr


def test_calibration_is_asked_for_by_name_and_only_of_int8(twin, tmp_path, refused):
    few = np.random.default_rng(0).standard_normal((4, 1, 12, 12), dtype=np.float32)
    np.savez(tmp_path / "few.npz", input=few)
    arguments = (
        "quantize",
        "--onnx",
        twin.onnx,
        "--target",
        TARGET,
        "-o",
        tmp_path / "o",
        "--samples",
        tmp_path / "few.npz",
    )
    data = twin.workshop.call(*arguments, "--mode", "int8", "--calibration", "percentile:99", "--json").data
    (row,) = data["variants"]
    assert (row["calibration"], row["excluded"], data["compared_on"]) == (
        "percentile:99", [], "the samples that calibrated",
    )  # fmt: skip
    assert refused(2, *arguments, "--mode", "fp16", "--calibration", "entropy")["found"] == "entropy"
    assert "Known: entropy" in refused(2, *arguments, "--mode", "int8", "--calibration", "kl")["next"]
    assert refused(2, *arguments, "--mode", "int8", "--calibration", "auto")["kind"] == "usage"


def test_export_compares_on_real_samples_where_they_are_given(twin, tmp_path, refused):
    images = np.random.default_rng(0).standard_normal((20, 1, 12, 12), dtype=np.float32)
    np.savez(tmp_path / "real.npz", pictures=images, labels=np.zeros(20, int))
    arguments = ("export", "--student", twin.student, "--target", TARGET, "-o", tmp_path / "o")
    parity = twin.workshop.call(*arguments, "--samples", tmp_path / "real.npz", "--json").data["parity"]
    assert (parity["samples"], parity["samples_from"]) == (20, "samples of real.npz")
    found = refused(2, *arguments, "--samples", tmp_path / "real.npz", "--config", "run.toml")
    assert found["found"] == "both --config and --samples"


@pytest.mark.slow
def test_quantize_auto_measures_every_variant_and_recommends_one(twin, tmp_path, monkeypatch):
    from dataclasses import replace

    from akd_deploy.pipeline import quantizing

    # Fewer samples than advice is otherwise based on; as many processes, which its intervals need.
    quick = replace(quantizing.ADVICE, warmup_s=0.005, seconds=0.005, min_samples=20, max_remeasure=0)
    monkeypatch.setattr(quantizing, "ADVICE", quick)
    monkeypatch.setattr(quantizing, "CALIBRATION_SAMPLES", 8)
    images = np.random.default_rng(0).standard_normal((32, 1, 12, 12), dtype=np.float32)
    np.savez(tmp_path / "samples.npz", input=images, labels=np.zeros(32, np.int64))
    arguments = ("--onnx", twin.onnx, "--target", TARGET, "--samples", tmp_path / "samples.npz", "-o", tmp_path)
    answer = twin.workshop.call("quantize", *arguments, "--mode", "auto", "--json")
    assert answer.code == 0, answer
    rows = {row["mode"]: row for row in answer.data["variants"]}
    assert {"fp32", "int8"} <= set(rows)
    assert [row["recommended"] for row in rows.values()].count(True) == 1
    for row in rows.values():
        if row["latency_stats_s"] is not None:
            assert row["latency_stats_s"]["median"] > 0
            assert 0 <= row["accuracy"] <= 1
            assert row["parity"]["cosine"] <= 1
    assert rows["int8"]["calibration"] in ("minmax", "entropy", "percentile")
    assert isinstance(rows["int8"]["excluded"], list)


def test_lint_names_rule_node_and_message(twin):
    answer = twin.workshop.call("lint", twin.onnx, "--target", TARGET, "--json")
    assert answer.code in (0, 3)
    assert all({"rule", "node", "message"} <= set(finding) for finding in answer.data["findings"])
    errors = [finding for finding in answer.data["findings"] if finding["severity"] == "error"]
    assert (answer.code == 3) == bool(errors)


def test_inspect_lists_the_kernels_and_diff_what_differs(twin):
    kernels = twin.workshop.call("inspect", twin.onnx, "--target", TARGET, "--json").data["kernels"]
    assert any(row["op"].startswith("Conv") or "Conv" in row["op"] for row in kernels)
    assert all(row["traffic_bytes"] > 0 for row in kernels)
    data = twin.workshop.call("diff", twin.onnx, twin.onnx, "--target", TARGET, "--json").data
    assert data["shared"] == len(kernels)
    assert data["kernels"] == []


def test_package_and_verify_end_in_one_file_that_is_whole(twin, tmp_path):
    out = tmp_path / "bundle.zip"
    packed = twin.workshop.call("package", twin.directory / "bundle", "--format", "zip", "-o", out, "--json")
    assert (packed.code, packed.data["output"]) == (0, str(out))
    verified = twin.workshop.call("verify", out, "--digest", packed.data["digest"], "--json")
    assert (verified.code, verified.data["ok"], verified.data["problems"]) == (0, True, [])
    certificate = twin.answer.data["winner"]["certificate"]
    short = {key: certificate[key] for key in ("ok", "budget_s", "percentile", "confidence")}
    assert packed.data["certificate"] == verified.data["certificate"] == short
    content = bytearray(out.read_bytes())
    content[len(content) // 2] ^= 1
    out.write_bytes(content)
    damaged = twin.workshop.call("verify", out, "--json")
    assert (damaged.code, damaged.data["ok"]) == (3, False)
    assert damaged.data["problems"]
    # What a damaged bundle says of itself is not told.
    assert damaged.data["certificate"] is None
    assert "certificate" not in twin.workshop.call("verify", out).stdout


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, "at p90: "),
        ({"boundary": "host", "idle_s": 0.0}, "at p90: "),
        ({"boundary": "gpu"}, "at p90 by the boundary gpu: "),
        ({"boundary": "end-to-end", "idle_s": 0.01}, "at p90 by the boundary end-to-end after pauses of 10 ms: "),
    ],
)
def test_a_certificate_of_another_latency_says_of_which(how, told):
    from types import SimpleNamespace

    from rich.console import Console

    from akd_deploy.cli.ship_commands import _show_certificate

    certificate = {"ok": True, "budget_s": 0.05, "percentile": 90, "confidence": 0.99}
    console = Console(width=200, record=True)
    manifest: Any = SimpleNamespace(facts=SimpleNamespace(certificate=certificate, latency=how))
    _show_certificate(manifest, console)
    assert f"certificate of 50 ms {told}holds" in console.export_text()


@pytest.mark.parametrize("held", [True, False, None])
def test_a_bundle_says_whether_its_budget_is_certified_wherever_it_is_looked_at(twin, tmp_path, held):
    """A bundle may be sound, and its student too slow."""
    from dataclasses import replace

    from akd_deploy.certificate import certify
    from akd_deploy.export.manifest import manifest_from_bytes

    bundle = tmp_path / "bundle"
    shutil.copytree(twin.directory / "bundle", bundle)
    manifest = manifest_from_bytes((bundle / "manifest.json").read_bytes())
    blocks_s = {i: np.full(100, 1e-3 if held else 3e-3) for i in range(10)}
    certificate = None if held is None else certify(blocks_s, 2e-3).as_dict()
    latency = {"budget_s": 2e-3}
    changed = replace(manifest, facts=replace(manifest.facts, certificate=certificate, latency=latency))
    (bundle / "manifest.json").write_bytes(changed.to_bytes())
    said = {
        True: "certificate of 2 ms at p90: holds",
        False: "certificate of 2 ms at p90: does NOT hold: it is not shown to meet its budget",
        None: "no certificate: nothing is promised of its latency",
    }[held]
    for command in (("verify",), ("load",), ("package", "-o", tmp_path / "b.zip")):
        answer = twin.workshop.call(command[0], bundle, *command[1:])
        assert answer.code == 0, answer
        assert said in answer.stdout
    data = twin.workshop.call("load", bundle, "--json").data
    assert (data["certificate"] or {}).get("ok") is held


WRITERS = {
    "profile": ("--target", TARGET),
    "search": ("--config", "run.toml"),
    "run": ("--config", "run.toml"),
    "demo": (),
    "distill": ("--config", "run.toml", "--arch", "ARCH", "-o", "OUT/s.safetensors"),
    "export": ("--student", "STUDENT", "--target", TARGET, "-o", "OUT"),
    "build": ("--onnx", "ONNX", "--target", TARGET, "-o", "OUT"),
    "quantize": ("--onnx", "ONNX", "--target", TARGET, "--mode", "fp16", "-o", "OUT"),
    "package": ("BUNDLE", "-o", "OUT/b.zip"),
    "report": ("RUN", "-o", "OUT/r.html"),
}


@pytest.mark.parametrize("command", sorted(WRITERS))
def test_a_dry_run_writes_nothing(twin, architecture_file, tmp_path, command):
    known = {
        "ARCH": architecture_file, "STUDENT": twin.student, "ONNX": twin.onnx, "BUNDLE": twin.directory / "bundle",
        "RUN": twin.directory,
    }  # fmt: skip
    arguments = [str(known.get(a, a)).replace("OUT", str(tmp_path / "out")) for a in WRITERS[command]]
    before = sorted(twin.workshop.folder.rglob("*"))
    answer = twin.workshop.call(command, *arguments, "--dry-run", "--json")
    assert answer.code == 0, answer
    assert answer.data
    assert not (tmp_path / "out").exists()
    assert sorted(twin.workshop.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("targets", "list"),
        ("targets", "show", TARGET),
        ("fit", "--target", TARGET),
        ("predict", "--target", TARGET, "--onnx", "runs/twin/engines/student.onnx", "--layers"),
        ("feasible", "--target", TARGET, "--space", "space.toml", "--latency-budget", "1s"),
        ("inspect", "runs/twin/engines/student.onnx", "--target", TARGET),
        ("lint", "runs/twin/engines/student.onnx", "--target", TARGET),
        ("verify", "runs/twin/bundle"),
        ("run", "--config", "run.toml", "--dry-run"),
    ],
    ids=" ".join,
)
def test_people_get_words_on_stdout(twin, arguments):
    answer = twin.workshop.call(*arguments)
    assert answer.code == 0, answer
    assert answer.stdout.strip()
    assert not answer.stdout.startswith("{")
