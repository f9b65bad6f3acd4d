"""`profile`: a killed one is gone on with or refused, a time limit is kept, and what is too little is said."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import onnx
from additions import added
from command_line import TARGET, call
from onnx import TensorProto, helper

from akd_deploy.cli.latency_commands import expectation_lines
from akd_deploy.latency_table import NETWORK, read_table
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.pipeline.expected_error import GAIN
from akd_deploy.profiling.measured_journal import JOURNAL_NAME, MeasuredJournal
from akd_deploy.search_space import load_space

SIZE = ("--probes", 20, "--networks", 3, "--blocks", 1)


def test_an_interrupted_profile_is_refused_without_resume_and_goes_on_with_it(workshop, tmp_path, monkeypatch):
    space = ("--space", workshop.folder / "space.toml")
    lines, real = [], MeasuredJournal.append

    def append(journal, block):
        real(journal, block)
        lines.append((block.name, block.block, block.taken.remeasured))
        if len(lines) == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MeasuredJournal, "append", append)
    assert call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--json").code == 130
    (journal,) = (tmp_path / "latency_tables" / TARGET).glob(f"*/{JOURNAL_NAME}")
    with journal.open("ab") as file:
        file.write(b'{"name":"prob')  # as a killed one might leave it

    refused = call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--json")
    assert (refused.code, refused.error["kind"]) == (2, "usage")
    assert "--resume" in refused.error["next"]
    assert str(journal) in refused.error["next"]

    answer = call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--resume", "--json")
    assert answer.code == 0
    assert answer.data["torn_lines"] == 1
    assert answer.data["planned_blocks"] == answer.data["measured_blocks"] == 23
    assert not journal.exists()
    assert len(lines) == len(set(lines))
    table = read_table(journal.parent)
    assert len(table.rows) == 23
    assert {min(row.measurement.block_ids) for row in table.rows} == {0}


def test_a_profile_of_so_many_minutes_says_how_much_of_the_plan_it_was_enough_for(workshop, tmp_path):
    space = ("--space", workshop.folder / "space.toml")
    answer = call(tmp_path, "profile", "--target", TARGET, *space, "--minutes", 0.05, "--blocks", 2, "--json")
    assert answer.code == 0
    data = answer.data
    assert 0 < data["measured_blocks"] <= data["planned_blocks"]
    assert data["planned_blocks"] == 2 * (data["probes"] + data["networks"])
    assert data["rows"] <= data["probes"] + data["networks"]


def test_a_dry_run_beside_a_journal_refuses_nothing(workshop, tmp_path):
    shutil.copytree(workshop.folder / "latency_tables", tmp_path / "latency_tables")
    (tmp_path / "latency_tables" / TARGET / workshop.table.name / JOURNAL_NAME).touch()
    answer = call(tmp_path, "profile", "--target", TARGET, "--minutes", 2, "--dry-run")
    assert answer.code == 0
    assert "2 minutes at most" in " ".join(answer.stdout.split())


def test_a_network_given_later_joins_the_table_under_the_tables_own_protocol(workshop, tmp_path):
    rng = np.random.default_rng(0)
    space = load_space("mobile")
    path = tmp_path / "given.onnx"
    onnx.save_model(onnx_from_architecture(space.sample(rng), rng), path)
    shutil.copytree(workshop.folder / "latency_tables", tmp_path / "latency_tables")
    given = ("--onnx", path, "--probes", 20, "--blocks", 1, "--resume")
    answer = call(tmp_path, "profile", "--target", TARGET, *given, "--json")
    assert answer.code == 0
    before, after = read_table(workshop.table), read_table(tmp_path / "latency_tables" / TARGET / workshop.table.name)
    assert after.header.protocol == before.header.protocol
    assert {row.name for row in before.rows} < {row.name for row in after.rows}
    assert {row.family for row in after.rows[len(before.rows) :]} == {"given"}
    assert 0 < answer.data["expected_error"] < 1


def test_one_thing_is_profiled_at_a_time(tmp_path):
    answer = call(tmp_path, "profile", "--target", TARGET, "--general", "--space", "mobile", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert answer.error["found"] == "--space and --general"


def test_an_expected_error_ends_the_plan_and_is_said_to_be_missed_where_it_is(workshop, tmp_path):
    space = ("--space", workshop.folder / "space.toml", "--networks", 3, "--blocks", 1)
    answer = call(tmp_path, "profile", "--target", TARGET, *space, "--until-error", "15%", "--json")
    assert answer.code == 0
    assert answer.data["plan_ended_by"] == "error"
    assert answer.data["expected_error"] <= 0.15
    assert 0 < answer.data["probes"] < 60
    more = call(tmp_path, "profile", "--target", TARGET, *space, "--until-error", "0.01%", "--probes", 20, "--resume")
    assert more.code == 0
    assert "more than the 0.0% asked for" in " ".join(more.stdout.split())


def test_what_cannot_stop_at_an_error_is_refused(tmp_path):
    both = ("--transfer-from", "x", "--until-error", "3%")
    answer = call(tmp_path, "profile", "--target", TARGET, *both, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert "--until-error" in answer.error["found"]
    torch = call(tmp_path, "profile", "--target", "cpu_torch_fp32", "--until-error", "3%", "--probes", 20, "--json")
    assert (torch.code, torch.error["kind"]) == (2, "usage")
    assert "takes too long" in torch.error["found"]


def test_a_general_profile_is_bounded_unless_told_otherwise(tmp_path):
    answer = call(tmp_path, "profile", "--target", TARGET, "--general", "--dry-run")
    assert answer.code == 0
    assert "15 minutes at most" in " ".join(answer.stdout.split())


def test_networks_that_it_is_calibrated_on_are_counted_as_such(twin, tmp_path):
    size = ("--probes", 20, "--blocks", 1)
    given = ("--onnx", twin.onnx, "--calibrate-on", twin.directory / "teacher.onnx")
    answer = call(tmp_path, "profile", "--target", TARGET, *given, *size, "--json")
    assert answer.code == 0, answer
    data = answer.data
    assert data["networks"] == len([row for row in read_table(Path(data["table"])).rows if row.kind == NETWORK])
    assert data["networks"] > 0


def test_a_profile_too_small_to_fit_says_so_at_once(tmp_path):
    few = ("--onnx", added(tmp_path / "three.onnx", 1, 16, 6, 6, terms=3), "--blocks", 1)
    answer = call(tmp_path, "profile", "--target", TARGET, *few, "--json")
    assert answer.code == 0, answer
    again = " ".join(call(tmp_path, "profile", "--target", TARGET, *few, "--resume").stdout.split())
    assert "too few to fit a predictor to (10 stretches at least)" in again
    assert "expected error" not in again
    assert answer.data["too_few_to_fit"] is True
    refused = call(tmp_path, "fit", "--target", TARGET, "--json")
    assert (refused.code, refused.error["kind"]) == (2, "usage")


def test_networks_of_one_operator_are_profiled_and_ones_that_cannot_be_are_named(tmp_path):
    given, result = (
        helper.make_tensor_value_info(n, k, [1, 8]) for n, k in (("x", TensorProto.FLOAT), ("y", TensorProto.INT64))
    )
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)], "g", [given], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, tmp_path / "whole.onnx")
    few = ("--onnx", added(tmp_path / "one.onnx", 1, 16, 6, 6), "--onnx", tmp_path / "whole.onnx", "--blocks", 1)
    answer = call(tmp_path, "profile", "--target", TARGET, *few, "--json")
    assert answer.code == 0, answer
    assert answer.data["probes"] == 1
    assert answer.data["left_out"] == {"whole": "no stretch of it can be measured on its own"}


def test_nobody_is_told_that_more_hardly_helps_before_all_of_the_plan_is_measured():
    cases = ((None, GAIN), (None, None), (0.03, GAIN))
    said = [" ".join(expectation_lines(0.128, limit, ended)) for limit, ended in cases]
    assert all("12.8%" in text for text in said)
    assert ["more would lower it" in text for text in said] == [True, False, False]
    assert ["more than the 3.0% asked for" in text for text in said] == [False, False, True]
