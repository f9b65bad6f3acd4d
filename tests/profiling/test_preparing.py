"""Preparing: several processes prepare what one would, and what goes wrong in one of them is told as it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import psutil
import pytest

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import UnknownNameError
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.profiling import preparing
from akd_deploy.profiling.preparing import ForTarget, Preparation, Prepared, WriteSubject, _prepared, counted
from akd_deploy.profiling.probes import ProbeWriter, space_networks, space_probes
from akd_deploy.profiling.subjects import WholeNetwork, is_plain_data, space_subjects, written_by_itself
from akd_deploy.profiling.windows import Window, file_windows
from akd_deploy.search_space import Layer, load_space
from akd_deploy.target import Target

HERE = Target("here", device="cpu", engine="onnxruntime", engine_options={"threads": 1})
SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]]})
PARENT = os.getpid()


@dataclass(frozen=True)
class Named:
    """A subject that says where it was written."""

    name: str
    kind: str = "probe"
    family: str = "f"


def small_model(path: Path) -> Path:
    onnx.save_model(onnx_from_layers([Layer("l", "conv", 4, 4, 6)], np.random.default_rng(0)), path)
    return path


def write_with_pid(subject: Named, folder: Path) -> Path:
    time.sleep(0.02)
    return small_model(folder / f"{subject.name}@{os.getpid()}.onnx")


def write_but_not_m30(subject: Named, folder: Path) -> Path:
    if subject.name == "m30":
        raise UnknownNameError("layer", "m30", ["m31"], where="a test")
    return write_with_pid(subject, folder)


def write_or_die_elsewhere(subject: Named, folder: Path) -> Path:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_with_pid(subject, folder)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process for any work at all."""
    monkeypatch.setattr(preparing, "WORTH_A_PROCESS_S", 1e-9)
    monkeypatch.setattr(preparing, "TRIED_FIRST", 1)
    monkeypatch.setattr(preparing, "cpus", lambda: 2)


def prepared(
    write: WriteSubject, subjects: list, folder: Path, *, travels=lambda _: True, target: Target = HERE, **more
) -> dict[str, Prepared]:
    with Preparation(target, write, folder, travels) as preparation:
        return preparation.prepare(subjects, more.pop("known", {}), more.pop("on_prepared", lambda *_: None), **more)


def pids(result: dict[str, Prepared]) -> set[int]:
    return {int(one.path.stem.partition("@")[2]) for one in result.values()}


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "resource_tracker" not in " ".join(p.cmdline())]


@pytest.mark.usefixtures("several")
def test_two_processes_prepare_what_one_does_in_the_same_order(tmp_path: Path) -> None:
    subjects = [Named(f"m{i}") for i in range(120)]
    progress: list[tuple[int, int]] = []
    result = prepared(write_with_pid, subjects, tmp_path, on_prepared=lambda *counts: progress.append(counts))
    assert list(result) == [subject.name for subject in subjects]
    assert progress == [(n, 120) for n in range(1, 121)]
    assert len(pids(result)) == 2
    assert PARENT in pids(result)
    expected = counted([e.kernel for e in load_engine(HERE).executed_kernels(small_model(tmp_path / "again.onnx"))])
    assert {one.kernels for one in result.values()} == {expected}
    assert all(one.path.is_file() for one in result.values())
    assert children() == []


def test_a_few_models_are_prepared_without_another_process(tmp_path: Path) -> None:
    result = prepared(write_with_pid, [Named(f"m{i}") for i in range(10)], tmp_path)
    assert pids(result) == {PARENT}


@pytest.mark.usefixtures("several")
def test_what_cannot_be_sent_is_prepared_here(tmp_path: Path) -> None:
    subjects = [Named(f"m{i}") for i in range(20)]
    assert pids(prepared(write_with_pid, subjects, tmp_path, travels=lambda _: False)) == {PARENT}
    assert pids(prepared(lambda s, folder: write_with_pid(s, folder), subjects, tmp_path)) == {PARENT}


@pytest.mark.usefixtures("several")
def test_known_kernels_are_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = type(load_engine(HERE))
    monkeypatch.setattr(engine, "executed_kernels", None)
    result = prepared(write_with_pid, [Named("m0")], tmp_path, known={"m0": ()})
    assert result["m0"].kernels == ()
    assert result["m0"].path.is_file()


@pytest.mark.usefixtures("several")
def test_an_error_in_another_process_is_raised_here_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        prepared(write_but_not_m30, [Named(f"m{i}") for i in range(100)], tmp_path)
    assert caught.value.as_dict()["known"] == ["m31"]
    assert "Did you mean 'm31'?" in caught.value.next
    assert children() == []


@pytest.mark.usefixtures("several")
def test_what_a_process_had_when_it_died_is_prepared_here(tmp_path: Path) -> None:
    subjects = [Named(f"m{i}") for i in range(100)]
    result = prepared(write_or_die_elsewhere, subjects, tmp_path)
    assert list(result) == [subject.name for subject in subjects]
    assert pids(result) == {PARENT}


def test_when_the_time_is_up_the_first_ones_are_prepared(tmp_path: Path) -> None:
    subjects = [Named(f"m{i}") for i in range(20)]
    assert list(prepared(write_with_pid, subjects, tmp_path, until_s=time.monotonic() - 1)) == ["m0"]
    some = list(prepared(write_with_pid, subjects, tmp_path, until_s=time.monotonic() + 0.2))
    assert 0 < len(some) < 20
    assert some == [subject.name for subject in subjects][: len(some)]


@pytest.mark.usefixtures("several")
def test_when_the_time_is_up_other_processes_begin_nothing_either(tmp_path: Path) -> None:
    subjects = [Named(f"m{i}") for i in range(200)]
    with Preparation(HERE, write_with_pid, tmp_path, lambda _: True) as preparation:
        some = preparation.prepare(subjects, {}, lambda *_: None, until_s=time.monotonic() + 2.0)
        assert 0 < len(some) < 200
        rest = preparation.prepare([s for s in subjects[:40] if s.name not in some], {}, lambda *_: None)
    assert some.keys() | rest.keys() >= {subject.name for subject in subjects[:40]}
    files = [path.name.partition("@")[0] for path in tmp_path.iterdir()]
    assert len(files) == len(set(files)) == len(some) + len(rest)


# --- real subjects ----------------------------------------------------------------------------------------------


def same(one: dict[str, Prepared], other: dict[str, Prepared]) -> bool:
    return {n: (p.kernels, p.path.read_bytes()) for n, p in one.items()} == {
        n: (p.kernels, p.path.read_bytes()) for n, p in other.items()
    }


def as_it_is(path: Path, target: Target, seed: int) -> Path:
    assert (target, seed) == (HERE, 7)
    return path.rename(path.with_suffix(".typed.onnx"))


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    return (path for path in (tmp_path / "one", tmp_path / "two") if path.mkdir() is None)


def everywhere(
    write: WriteSubject, subjects: list, folders: Iterator[Path], target: Target = HERE
) -> tuple[dict[str, Prepared], dict[str, Prepared]]:
    """What was prepared here alone, and what was prepared in another process alone."""
    alone = prepared(write, subjects, next(folders), travels=lambda _: False, target=target)
    folder = next(folders)
    text = preparing.json.dumps(target.as_dict(), sort_keys=True)
    with preparing.ProcessPoolExecutor(1, preparing.multiprocessing.get_context("spawn"), preparing._begin) as pool:
        sent = {s.name: pool.submit(preparing._prepared_elsewhere, text, write, s, folder, None) for s in subjects}
        return alone, {name: future.result(timeout=60) for name, future in sent.items()}


def test_probes_and_networks_are_the_same_wherever_they_are_prepared(folders) -> None:
    typed = ForTarget(as_it_is, HERE.as_dict(), 7)
    rng = np.random.default_rng(0)
    subjects = [*space_probes(SPACE, 4, rng, 60), *space_networks(SPACE, 2, rng)]
    assert all(map(is_plain_data, subjects))
    alone, result = everywhere(ProbeWriter("onnxruntime", 1, "fp32", 3, typed), subjects, folders)
    assert same(alone, result)
    assert len({one.path.read_bytes() for one in result.values()}) == 6
    assert all(one.path.name.endswith(".typed.onnx") for one in result.values())


def test_windows_and_whole_networks_are_the_same_wherever_they_are_prepared(folders, tmp_path: Path) -> None:
    (network,) = space_networks(SPACE, 1, np.random.default_rng(0))
    path = ProbeWriter("onnxruntime", 1, "fp32", 0)(network, tmp_path)
    subjects: list[Window | WholeNetwork] = [*file_windows(path, 1, 4, np.random.default_rng(0)), WholeNetwork(path)]
    assert all(map(is_plain_data, subjects))
    alone, result = everywhere(written_by_itself, subjects, folders)
    assert same(alone, result)
    assert result[subjects[-1].name].path == path


@pytest.mark.slow
def test_archives_for_torch_are_the_same_wherever_they_are_prepared(folders) -> None:
    target = Target("torch", device="cpu", engine="torch", engine_options={"threads": 1})
    subjects = space_subjects(target, SPACE, 1, 0, seed=0)
    alone, result = everywhere(subjects.write, list(subjects.subjects), folders, target)
    assert {name: one.kernels for name, one in result.items()} == {name: one.kernels for name, one in alone.items()}
    assert all(one.path.suffix == ".pt2" and one.path.is_file() for one in result.values())


def test_weights_are_those_of_the_seed_and_the_probe_whatever_was_written_before(tmp_path: Path) -> None:
    subjects = space_subjects(HERE, SPACE, 5, 1, seed=0)
    for folder, order in (("one", subjects.subjects), ("two", subjects.subjects[::-1])):
        (tmp_path / folder).mkdir()
        for subject in order:
            subjects.write(subject, tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.usefixtures("several")
def test_an_engine_that_times_its_builds_has_the_device_for_itself(tmp_path: Path) -> None:
    timed = Target("board", "gpu", "tensorrt", precision="fp16")
    assert not Preparation(timed, write_with_pid, tmp_path, lambda _: True)._travels(Named("m"))
    assert Preparation(HERE, write_with_pid, tmp_path, lambda _: True)._travels(Named("m"))


def test_what_is_prepared_for_an_engine_that_takes_no_models_is_what_it_builds(tmp_path: Path) -> None:
    class Builds:
        loads_models, suffix = False, ".plan"

        def build(self, path: Path, folder: Path) -> SimpleNamespace:
            return SimpleNamespace(path=folder / f"{path.stem}.plan")

        def executed_kernels(self, path: Path) -> tuple[()]:
            assert path.suffix == ".onnx"
            return ()

        loadable = Engine.loadable

    for known in (None, ()):
        prepared = _prepared(Builds(), write_with_pid, Named("m"), tmp_path, known)
        assert prepared.path == tmp_path / f"{write_with_pid(Named('m'), tmp_path).stem}.plan"


# --- the end of it ----------------------------------------------------------------------------------------------


ENDLESS = """
import os, time
from pathlib import Path
from akd_deploy.profiling import preparing
from test_preparing import HERE, Named, write_with_pid

def write(subject, folder):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(0.05)
    return write_with_pid(subject, folder)

if __name__ == "__main__":
    preparing.WORTH_A_PROCESS_S, preparing.TRIED_FIRST, preparing.cpus = 1e-9, 1, lambda: 2
    folder = Path(os.environ["FOLDER"])
    with preparing.Preparation(HERE, write, folder, lambda _: True) as preparation:
        preparation.prepare([Named(f"m{i}") for i in range(10_000)], {}, lambda *_: None)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_other_processes_end_with_this_one_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = {**os.environ, "FOLDER": str(tmp_path), "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, process_group=0)
    try:
        end = time.monotonic() + 60
        while len(found := list(tmp_path.glob("*.pid"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # what a terminal does
        else:
            process.kill()
        stderr = process.communicate(timeout=60)[1].decode()
        for pid in (int(path.stem) for path in found):
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end
                time.sleep(0.02)
        if how == signal.SIGINT:
            assert stderr.count("KeyboardInterrupt") == 1
    finally:
        process.kill()
