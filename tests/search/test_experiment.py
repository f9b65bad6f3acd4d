"""A search as an NNI experiment: real servers, tuners and trainings, as few of them as the promises need."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import experiment_scores
import psutil
import pytest
from contracts.strategy_contract import SPACE, _without_times, accuracy, budget_of_quantile, predict, score

from akd_deploy.errors import UsageError
from akd_deploy.search import Score, SearchSettings, open_journal, read_journal, search
from akd_deploy.search.experiment import NniExperiment

PATIENCE_S = 120.0
BUDGET_S = budget_of_quantile(SPACE, 0.5)
HERE = Path(__file__).parent


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def wait_for(what: str, reached) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def addresses_of_this_machine() -> list[str]:
    found = [a.address for entries in psutil.net_if_addrs().values() for a in entries if a.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


def is_reached(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0


def found(trials) -> list[dict[str, object]]:
    return [_without_times(trial) | {"seconds": 0} for trial in trials]


@pytest.mark.slow
@pytest.mark.xdist_group("nni")
def test_forty_results_of_four_at_a_time_each_under_the_candidate_they_are_about(tmp_path):
    """And the portal is where only this machine reaches it, and the journal is retraced without NNI."""
    seen = {}

    def on_portal(url: str) -> None:
        port = int(url.rsplit(":", 1)[1])
        with urllib.request.urlopen(url, timeout=20) as page:
            seen["portal"] = page.status
        seen["elsewhere"] = {address: is_reached(address, port) for address in addresses_of_this_machine()}
        seen["listening"] = {
            entry.laddr.ip
            for process in descendants()
            for entry in process.net_connections("inet")
            if entry.status == psutil.CONN_LISTEN
        }

    before = descendants()
    trainings = NniExperiment(
        SPACE, experiment_scores.uneven, {"slowest_s": 0.2}, tmp_path / "nni", jobs=4, on_portal=on_portal
    )
    settings = SearchSettings(trials=40, budget_s=BUDGET_S, seed=3)
    with open_journal(tmp_path / "journal.sqlite", {}) as journal:
        result = search(SPACE, "constrained_evolution", predict, trainings, settings, journal)
    assert result.counts["done"] == 40
    trained = [trial for trial in result.trials if trial.state == "done"]
    mispaired = [
        trial
        for trial in trained
        if trial.metrics["text"] != trial.architecture.text
        or trial.accuracy != accuracy(trial.architecture)
        or trial.metrics["seed"] != trial.seed
    ]
    assert mispaired == []
    assert sum(b.started < a.finished for a, b in zip(trained, trained[3:], strict=False)) > 10  # four at a time
    assert seen["portal"] == 200
    assert seen["listening"] == {"127.0.0.1"}
    assert seen["elsewhere"], "no other address on this machine to try from"
    assert not any(seen["elsewhere"].values())
    assert descendants() <= before

    def forbidden(architecture, seed):
        raise AssertionError("trained again")

    with open_journal(tmp_path / "journal.sqlite", {}, resume=True) as journal:
        again = search(SPACE, "constrained_evolution", predict, forbidden, settings, journal)
    assert not again.diverged
    assert again.trials == result.trials


@pytest.mark.slow
@pytest.mark.xdist_group("nni")
def test_a_search_begun_in_process_and_continued_by_nni_one_at_a_time_is_that_of_one_process(tmp_path):
    settings = SearchSettings(trials=7, budget_s=BUDGET_S, seed=3)
    whole = search(SPACE, "tpe", predict, score, settings)
    calls = iter(range(100))

    def interrupted(architecture, seed):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return score(architecture, seed)

    with open_journal(tmp_path / "journal.sqlite", {}) as journal, pytest.raises(KeyboardInterrupt):
        search(SPACE, "tpe", predict, interrupted, settings, journal)
    with open_journal(tmp_path / "journal.sqlite", {}, resume=True) as journal:
        trainings = NniExperiment(SPACE, experiment_scores.plain, {}, tmp_path / "nni")
        resumed = search(SPACE, "tpe", predict, trainings, settings, journal)
        assert found(journal.trials()) == found(whole.trials)
    assert not resumed.diverged
    assert sorted(trial.attempts for trial in resumed.trials if trial.attempts) == [1] * 6 + [2]


@pytest.mark.slow
@pytest.mark.xdist_group("nni")
def test_trainings_that_crash_fail_or_hang_are_written_down_and_the_search_goes_on(tmp_path):
    (tmp_path / "order").mkdir()
    trainings = NniExperiment(
        SPACE, experiment_scores.troubled, {"folder": str(tmp_path / "order")}, tmp_path / "nni", 2, trial_limit_s=3
    )
    before = descendants()
    result = search(SPACE, "tpe", predict, trainings, SearchSettings(trials=7, budget_s=BUDGET_S, seed=1))
    failed = sorted(trial.error for trial in result.trials if trial.state == "failed")
    assert result.counts["done"] == 4
    assert len(failed) == 3
    assert "asked for a finite loss; found nan" in failed[0]
    assert "no result within 3 s, after which its process was killed" in failed[1] + failed[2]
    assert "its process gone after" in failed[1] + failed[2]
    assert "trial.stderr" in failed[1]
    assert descendants() <= before
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command_line(p))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def tuners_below(pid: int) -> list[psutil.Process]:
    """Python processes of NNI's dispatcher; the shell that starts one has its words on its command line, too."""
    lines = [(member, _command_line(member)) for member in psutil.Process(pid).children(recursive=True)]
    return [member for member, line in lines if line[1:3] == ["-m", "nni"] and "--exp_params" in line]


SEARCH = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import experiment_scores
from contracts.strategy_contract import SPACE, predict
from akd_deploy.errors import AkdError
from akd_deploy.search import SearchSettings, open_journal, search
from akd_deploy.search.experiment import NniExperiment
folder = Path(sys.argv[1])
trainings = NniExperiment(SPACE, experiment_scores.endless, {{"folder": str(folder)}}, folder / "nni")
try:
    with open_journal(folder / "journal.sqlite", {{}}) as journal:
        search(SPACE, "random", predict, trainings, SearchSettings(trials=9, budget_s=1.0), journal)
except AkdError as error:
    print(type(error).__name__, error)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""


@pytest.mark.slow
@pytest.mark.xdist_group("nni")
def test_no_process_is_left_of_searches_that_are_interrupted_ended_killed_or_lose_their_tuner(tmp_path):
    """Four searches at once, each with a training at work; then each meets its fate."""
    fates = ("SIGINT", "SIGTERM", "SIGKILL", "tuner")
    with ExitStack() as held:
        searches = {fate: held.enter_context(_endless_search(tmp_path / fate)) for fate in fates}
        families = {}
        for fate, process in searches.items():
            wait_for("a training at work", partial(_is_at_work_or_gone, process, tmp_path / fate))
            assert process.poll() is None, process.communicate()
            wait_for("its tuner's process", lambda process=process: len(tuners_below(process.pid)) == 1)
            families[fate] = psutil.Process(process.pid).children(recursive=True)
            names = [" ".join(_command_line(member)) for member in families[fate]]
            assert any("nni_node" in name for name in names)
            if fate == "tuner":
                tuners_below(process.pid)[0].kill()
            else:
                os.kill(process.pid, getattr(signal, fate))
        said = {fate: process.communicate(timeout=PATIENCE_S)[0] for fate, process in searches.items()}
    for fate in fates:
        assert not psutil.wait_procs(families[fate], timeout=PATIENCE_S)[1], fate
        with read_journal(tmp_path / fate / "journal.sqlite") as journal:
            assert [trial.state for trial in journal.trials()] == ["running"]
    assert said["SIGINT"] == said["SIGTERM"] == "KeyboardInterrupt\n"
    assert said["tuner"].startswith("ExperimentError asked for NNI's experiment to go on; found its tuner's process")
    assert searches["SIGKILL"].returncode == -signal.SIGKILL


@contextmanager
def _endless_search(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that searches there; it is gone at the end whatever the test found."""
    folder.mkdir()
    program = SEARCH.format(tests=str(HERE.parent), here=str(HERE))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _is_at_work_or_gone(process: subprocess.Popen[str], folder: Path) -> bool:
    return len(list(folder.glob("pid-*"))) == 1 or process.poll() is not None


def test_a_score_function_that_no_other_process_could_import_is_refused(tmp_path):
    with pytest.raises(UsageError, match="top level of a module"):
        NniExperiment(SPACE, lambda: lambda architecture, seed: Score(0.5), {}, tmp_path)


def test_numbers_outside_their_range_are_refused(tmp_path):
    for wrong in ({"jobs": 0}, {"trial_limit_s": 0.0}, {"trial_limit_s": float("nan")}):
        with pytest.raises(UsageError):
            NniExperiment(SPACE, experiment_scores.plain, {}, tmp_path, **wrong)


def test_a_port_that_is_taken_is_named_before_anything_is_started(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        trainings = NniExperiment(SPACE, experiment_scores.plain, {}, tmp_path, port=port)
        with pytest.raises(UsageError, match=f"port {port}"):
            search(SPACE, "random", predict, trainings, SearchSettings(trials=1, budget_s=1.0))
