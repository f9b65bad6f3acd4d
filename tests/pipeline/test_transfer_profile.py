"""`profile --transfer-from` from sources to predictions, measured by processes that only stand in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hidden_devices import Bench, HiddenDevice, table_of_items

from akd_deploy import latency_table
from akd_deploy.errors import MismatchError, MissingFileError, StorageError, UncoveredOperatorError, UsageError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, read_table, table_lock, write_table
from akd_deploy.models.onnx_skeleton import read_skeleton
from akd_deploy.models.published import skeleton_path
from akd_deploy.pipeline import transfer, transfer_sources
from akd_deploy.pipeline.planning import Domain
from akd_deploy.pipeline.transfer import TransferProfile, list_items, profile_transfer
from akd_deploy.pipeline.transfer_sources import FoundSource, find_sources
from akd_deploy.predictor.cache import predictor_of
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.transfer_lessons import Source, plan_transfer
from akd_deploy.predictor.transfer_plan import PLAN_NAME, TransferPlan, read_plan
from akd_deploy.predictor.transferred import LEFT_OUT_PROBES, REHEARSED, Item
from akd_deploy.profiling import blocks, probes
from akd_deploy.profiling.blocks import Protocol
from akd_deploy.profiling.measured_journal import JOURNAL_NAME
from akd_deploy.profiling.profile import ProfilePlan, measure_subjects
from akd_deploy.profiling.subjects import Subjects, space_subjects
from akd_deploy.search_space import load_space
from akd_deploy.target import Target, places

pytestmark = pytest.mark.xdist_group("transfer-profile")  # sources are fitted once

HERE = Target("cpu_onnxruntime_fp32", device="cpu", engine="onnxruntime")
SPACE = load_space("mobile", {"widths": [16, 32], "strides": [1, 2], "layers": [[1], [1, 2]]})
PROTOCOL = Protocol(blocks=3, extra_blocks=2)
PROBES = 10

KNOWN = {
    "server": HiddenDevice(clock=2.0, mac_s=1e-11, depthwise_mac_s=3e-11),
    "server, slower": HiddenDevice(clock=1.2, mac_s=1e-11, depthwise_mac_s=3e-11),
    "board": HiddenDevice(clock=0.5, byte_s=8e-11, kernel_s=2e-6),
    "laptop": HiddenDevice(clock=1.5, call_s=9e-6, depthwise_mac_s=2e-10, byte_s=3e-11),
}
NEW = HiddenDevice(clock=0.8, depthwise_mac_s=5e-10, kernel_s=5e-7, byte_s=6e-11)
"""Its depthwise convolutions are slow beside all others: no source, scaled, comes near it."""
OTHERS = (
    HiddenDevice(clock=0.9, call_s=6e-6, mac_s=1.5e-11, byte_s=5e-11),
    HiddenDevice(clock=3.0, kernel_s=1.5e-6, depthwise_mac_s=6e-11),
)


@cache
def candidates(seed: int = 0) -> Subjects:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.space_probes, "__defaults__", (200,))
        return space_subjects(HERE, SPACE, 60, 20, seed)


@cache
def listed(seed: int = 0) -> list[Item]:
    """As a transfer lists them."""
    return list_items(HERE, candidates(seed), PROBES, lambda done, total: None)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return listed()


@pytest.fixture(scope="module")
def tables(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of each known device."""
    folder = tmp_path_factory.mktemp("tables")
    for i, (name, device) in enumerate(KNOWN.items()):
        write_table(table_of_items(device, items, replace(HERE, name=name), name.split(",")[0], i), folder / name)
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    result = Bench(NEW)
    monkeypatch.setattr(blocks, "_run_block", result.run_block)
    known = {id(candidates(seed).subjects): seed for seed in (0, 1)}
    monkeypatch.setattr(
        transfer, "list_items", lambda target, subjects, probes, on_prepared: listed(known[id(subjects.subjects)])
    )

    def planned(sources: dict[str, Source], items: list[Item], count: int, rng: np.random.Generator) -> TransferPlan:
        key = (*(one.described for one in sources.values()), id(items), count, str(rng.bit_generator.state))
        if key not in PLANS:
            PLANS[key] = plan_transfer(sources, items, count, rng)
        return PLANS[key]

    monkeypatch.setattr(transfer, "plan_transfer", planned)
    return result


PLANS: dict[tuple[object, ...], TransferPlan] = {}
"""Made once and used by several tests."""


def found(tables: Path, *names: str) -> list[FoundSource]:
    # A comma separates entries, so that folders with one are given by links without.
    return [FoundSource(name, tables / name, read_table(tables / name)) for name in names or KNOWN]


def profile(
    tables: Path, directory: Path, *names: str, resume: bool = False, count: int = PROBES, seed: int = 0
) -> TransferProfile:
    sources = {one.name: one.source() for one in found(tables, *names)}
    return profile_transfer(HERE, candidates(seed), sources, count, PROTOCOL, directory, seed, resume=resume)


def errors(predictor: Predictor, device: HiddenDevice, networks: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors, and whether the interval holds the truth."""
    result = []
    for network in networks:
        true = device.seconds(dict(network.kernels))
        kernels = [kernel for kernel, count in network.kernels for _ in range(count)]
        prediction = predictor.predict([ExecutedKernel(kernel, "") for kernel in kernels])
        low, high = prediction.interval_s
        result.append((abs(prediction.latency_s / true - 1), low <= true <= high))
    return np.array([e for e, _ in result]), np.array([c for _, c in result])


@pytest.fixture(scope="module")
def unseen() -> list[Item]:
    """Networks that are no candidates."""
    known = {subject.name for subject in candidates().subjects}
    drawn = probes.space_networks(SPACE, 40, np.random.default_rng(123))
    networks = [network for network in drawn if network.name not in known]
    padding = [subject for subject in candidates().subjects if subject.kind == PROBE][:5]
    subjects = Subjects([*networks, *padding], candidates().write)
    return [item for item in list_items(HERE, subjects, 5, lambda done, total: None) if item.kind == NETWORK]


def test_ten_probes_predict_networks_far_better_than_any_source_scaled_to_them(
    bench: Bench, tables: Path, tmp_path: Path, unseen: list[Item]
) -> None:
    coverages = []
    for number, device in enumerate((NEW, *OTHERS)):
        bench.device, directory = device, tmp_path / str(number)
        profiled = profile(tables, directory)
        assert len(profiled.table.rows) == PROBES
        assert (profiled.measured, profiled.planned) == (PROBES * 3, PROBES * 3)
        assert profiled.table == read_table(directory)
        predictor = predictor_of(profiled.table, directory)
        assert predictor.calibrated_on == REHEARSED
        error, covered = errors(predictor, device, unseen)
        coverages.append(covered.mean())
        assert error.mean() < 0.06
        true = np.array([device.seconds(dict(item.kernels)) for item in unseen])
        best = 1.0
        for known in KNOWN.values():
            there = np.array([known.seconds(dict(item.kernels)) for item in unseen])
            best = min(best, float(np.abs(there * np.median(true / there) / true - 1).mean()))
        assert error.mean() < (0.5 if device is NEW else 1.0) * best
    assert np.mean(coverages) > 0.8  # devices unlike all sources are covered less often, others more


def test_a_device_told_with_one_thread_is_predicted_with_two(
    bench: Bench, tables: Path, tmp_path: Path, unseen: list[Item]
) -> None:
    one, two = KNOWN["server"], replace(KNOWN["server"], threads=2)
    speedup = [one.seconds(dict(item.kernels)) / two.seconds(dict(item.kernels)) for item in unseen]
    assert max(speedup) - min(speedup) > 0.1  # large kernels gain more than small ones: no factor tells it
    bench.device = two
    profiled = profile(tables, tmp_path / "here")
    error, covered = errors(predictor_of(profiled.table, tmp_path / "here"), two, unseen)
    assert len(profiled.table.rows) == PROBES
    assert error.mean() < 0.04
    assert covered.mean() > 0.8


def test_the_header_and_the_plan_say_what_the_table_builds_on(bench: Bench, tables: Path, tmp_path: Path) -> None:
    profiled = profile(tables, tmp_path / "here", "server", "board")
    origin = read_table(tmp_path / "here").header.transfer
    assert origin is not None
    assert origin == read_plan(tmp_path / "here").origin
    assert [(s.target, s.table) for s in origin.sources] == [
        (name, read_table(tables / name).digest()) for name in ("server", "board")
    ]
    assert profiled.plan.origin == origin


def test_sources_of_one_device_at_two_clocks_are_one_family(bench: Bench, tables: Path, tmp_path: Path) -> None:
    profiled = profile(tables, tmp_path / "here", "server", "server, slower")
    assert profiled.plan.width is None
    assert predictor_of(profiled.table, tmp_path / "here").calibrated_on == LEFT_OUT_PROBES


@pytest.mark.parametrize("after", [0, 1, 8, 29])
def test_an_interrupted_transfer_goes_on_with_what_was_measured(
    bench: Bench, tables: Path, tmp_path: Path, after: int
) -> None:
    bench.interrupt_after = after
    with pytest.raises(KeyboardInterrupt):
        profile(tables, tmp_path / "here", "server", "board")
    plan, begun = read_plan(tmp_path / "here"), list(bench.taken)
    bench.interrupt_after = None
    profiled = profile(tables, tmp_path / "here", "server", "board", resume=True)
    assert bench.taken[: len(begun)] == begun
    assert read_plan(tmp_path / "here").origin == plan.origin
    rows = {row.name: row for row in profiled.table.rows}
    assert len(rows) == PROBES
    assert set(begun) <= set(rows)
    assert min(len(row.measurement.blocks) for row in rows.values()) == PROTOCOL.blocks
    assert profiled.measured == profiled.planned
    assert Counter(bench.taken) == {name: len(row.measurement.blocks) for name, row in rows.items()}
    assert not (tmp_path / "here" / JOURNAL_NAME).exists()


def test_a_finished_transfer_resumed_measures_nothing_and_more_probes_are_added(
    bench: Bench, tables: Path, tmp_path: Path
) -> None:
    first = profile(tables, tmp_path / "here", "server", "board")
    count = len(bench.taken)
    assert profile(tables, tmp_path / "here", "server", "board", resume=True).table.rows == first.table.rows
    assert len(bench.taken) == count
    longer = profile(tables, tmp_path / "here", "server", "board", resume=True, count=12)
    assert longer.table.rows[:PROBES] == first.table.rows
    assert len(longer.table.rows) == 12


def test_other_sources_or_candidates_are_not_gone_on_with(bench: Bench, tables: Path, tmp_path: Path) -> None:
    before = profile(tables, tmp_path / "here", "server", "board").table
    with pytest.raises(MismatchError, match="other sources"):
        profile(tables, tmp_path / "here", "server", "laptop", resume=True)
    with pytest.raises(MismatchError, match="candidates that are none now"):
        profile(tables, tmp_path / "here", "server", "board", resume=True, seed=1)
    assert read_table(tmp_path / "here") == before


def test_an_ordinary_table_is_no_transfer_to_go_on_with_nor_the_other_way_round(
    bench: Bench, tables: Path, tmp_path: Path
) -> None:
    ordinary = ProfilePlan(probes=5, networks=0, protocol=PROTOCOL)
    few = Subjects(list(candidates().subjects)[:5], candidates().write)
    measure_subjects(HERE, few, ordinary, tmp_path / "here")
    with pytest.raises(MismatchError, match="ordinary profile"):
        profile(tables, tmp_path / "here", "server", resume=True)
    assert not (tmp_path / "here" / PLAN_NAME).exists()
    profile(tables, tmp_path / "there", "server")
    with pytest.raises(MismatchError, match="transfer: "):
        measure_subjects(HERE, few, ordinary, tmp_path / "there", resume=True)


def test_a_kernel_that_a_source_does_not_cover_is_named_with_the_source(
    bench: Bench, tables: Path, tmp_path: Path
) -> None:
    whole = read_table(tables / "board")
    without = [row for row in whole.rows if not any(k.op == "Mul" for k, _ in row.kernels)]
    write_table(LatencyTable(whole.header, tuple(without)), tmp_path / "board")
    with pytest.raises(UncoveredOperatorError, match=r"from board; found no measured cost for .*Mul") as caught:
        profile(tmp_path, tmp_path / "here", "board")
    assert '"op":"' in caught.value.next
    assert bench.taken == []
    assert not (tmp_path / "here" / PLAN_NAME).exists()


def test_too_few_candidates_are_refused() -> None:
    few = Subjects(list(candidates().subjects)[:8], candidates().write)
    stretches = sum(subject.kind == PROBE for subject in few.subjects)
    with pytest.raises(UsageError, match=f"8 candidates, {stretches} of them stretches"):
        list_items(HERE, few, 8, lambda done, total: None)


def test_two_transfers_do_not_write_one_table(bench: Bench, tables: Path, tmp_path: Path) -> None:
    with table_lock(tmp_path / "here"), pytest.raises(StorageError, match="process"):
        profile(tables, tmp_path / "here", "server")


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tables of two other devices of the generic target, and nothing else to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))
    for module in (latency_table, transfer_sources):  # a checkout may have been profiled, too
        monkeypatch.setattr(module, "places", lambda kind: places(kind)[:2])
    for name in ("server", "board"):
        table = read_table(tables / name)
        header = replace(table.header, target=replace(table.header.target, name=HERE.name))
        write_table(LatencyTable(header, table.rows), tmp_path / "latency_tables" / HERE.name / header.device.digest)
    return tmp_path


def test_a_target_of_other_devices_means_their_tables(workplace: Path) -> None:
    destination = workplace / "latency_tables" / HERE.name / "mine"
    sources = find_sources(HERE.name, destination)
    assert {one.table.header.device.facts["model"] for one in sources} == {"server", "board"}
    assert len({one.name for one in sources}) == 2
    assert all(HERE.name in one.name for one in sources)


def test_folders_and_names_may_be_mixed_and_count_once(workplace: Path, tables: Path) -> None:
    destination = workplace / "latency_tables" / HERE.name / "mine"
    sources = find_sources(f"{tables / 'laptop'}, {HERE.name},{tables / 'laptop'}", destination)
    assert [one.table.header.device.facts["model"] for one in sources].count("laptop") == 1
    assert len(sources) == 3
    assert sources[0].name == "laptop"


def test_what_is_no_source_is_refused_with_what_to_do(workplace: Path) -> None:
    own = next((workplace / "latency_tables" / HERE.name).iterdir())
    destination = workplace / "latency_tables" / HERE.name / "mine"
    with pytest.raises(UsageError, match="no target and no folder"):
        find_sources(" , ", destination)
    with pytest.raises(MissingFileError, match="no target of that name"):
        find_sources("nowhere", destination)
    with pytest.raises(UsageError, match="to be written"):
        find_sources(str(own), own)
    with pytest.raises(MissingFileError, match="akd-deploy profile --target cpu_openvino_fp32"):
        find_sources("cpu_openvino_fp32", destination)


def test_sources_of_another_precision_batch_or_engine_are_pointed_out(tables: Path) -> None:
    (one,) = found(tables, "server")
    assert one.unlike(HERE) == []
    other = one.unlike(Target("x", device="cpu", engine="openvino", precision="int8", batch=8))
    assert [note.split(" is of ")[1].split()[0] for note in other] == ["precision", "batch", "engine"]
    two = replace(HERE, engine_options={"threads": 2})
    assert one.unlike(two) == [f"source server is of threads 1, target {HERE.name} of 2"]
    assert FoundSource("s", tables, replace(one.table, header=replace(one.table.header, target=two))).unlike(two) == []


def test_candidates_of_a_general_transfer_are_published_networks_and_stretches_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("squeezenet1_1", "bert_tiny")
    few = {name: read_skeleton(skeleton_path(name)) for name in names}
    monkeypatch.setattr(transfer, "carried_networks", lambda target: (few, {}))
    monkeypatch.setattr(transfer, "CANDIDATE_PROBES", 30)
    found = transfer.candidates(HERE, Domain(None), 0, 0)
    kinds = Counter((one.kind, one.family) for one in found.subjects)
    assert {family for kind, family in kinds if kind == NETWORK} == {"squeezenet", "bert"}
    assert sum(count for (kind, _), count in kinds.items() if kind == PROBE) == 30
    assert all(found.write(one, tmp_path).is_file() for one in found.subjects if one.kind == NETWORK)
