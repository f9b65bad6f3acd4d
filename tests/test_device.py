import json
import subprocess
import sys
from pathlib import Path

import pytest

from akd_deploy import device
from akd_deploy.device import DeviceFingerprint, Load, _proc_mhz, cpu_clocks, cpu_fingerprint, read_load, steal_fraction

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
stepping\t: 8
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2 fma avx512f avx512_bf16 amx_bf16

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp bf16
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Writes what /proc is to say; a file nobody wrote is missing."""
    monkeypatch.setattr(device, "Path", lambda path: tmp_path / Path(path).name)
    return lambda name, text: (tmp_path / name).write_text(text)


def test_a_fingerprint_is_named_by_its_facts_in_whatever_order():
    a, b = DeviceFingerprint({"model": "x", "cores": "2"}), DeviceFingerprint({"cores": "2", "model": "x"})
    assert a == b
    assert hash(a) == hash(b)
    # sha256 of {"cores":"2","model":"x"}
    assert a.digest == b.digest == "298ba16d51b1"


def test_any_differing_fact_gives_another_digest_and_one_line():
    a = DeviceFingerprint({"model": "x", "cores": "2", "isa": "avx2"})
    b = DeviceFingerprint({"model": "y", "cores": "2", "driver": "550"})
    assert a.digest != b.digest
    assert a.differences(b) == ["driver: (none) ≠ 550", "isa: avx2 ≠ (none)", "model: x ≠ y"]
    assert a.differences(a) == []


def test_a_fingerprint_is_frozen():
    facts = {"model": "x"}
    fingerprint = DeviceFingerprint(facts)
    facts["model"] = "y"
    assert fingerprint.facts["model"] == "x"
    with pytest.raises(TypeError):
        fingerprint.facts["model"] = "y"


def test_this_cpu_has_one_fingerprint_in_every_process():
    code = (
        "import json; from akd_deploy.device import cpu_fingerprint; print(json.dumps(dict(cpu_fingerprint().facts)))"
    )
    other = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert other == dict(cpu_fingerprint().facts)
    assert set(other) == {"kind", "machine", "system", "model", "family", "isa", "cores"}


def test_an_x86_cpu_is_read_from_its_first_processor(proc):
    proc("cpuinfo", X86.format(mhz=2400))
    facts = cpu_fingerprint.__wrapped__().facts
    assert facts["model"] == "Intel(R) Xeon(R) Platinum 8488C"
    assert facts["family"] == "GenuineIntel/6/143/8"
    assert facts["isa"] == "avx2 avx512f avx512_bf16 amx_bf16 fma"


def test_the_clock_of_the_moment_is_no_part_of_a_fingerprint(proc):
    proc("cpuinfo", X86.format(mhz=800))
    slow = cpu_fingerprint.__wrapped__()
    proc("cpuinfo", X86.format(mhz=3800))
    assert cpu_fingerprint.__wrapped__() == slow


def test_an_arm_cpu_is_read_from_its_part_and_features(proc):
    proc("cpuinfo", ARM)
    facts = cpu_fingerprint.__wrapped__().facts
    assert facts["model"] == "0xd4f"
    assert facts["isa"] == "asimd asimddp bf16"


def test_load_is_read_from_the_first_line_of_the_counters(proc):
    proc("stat", "cpu  100 20 30 1000 50 5 6 70 8 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert read_load() == Load(busy_ticks=100 + 20 + 30 + 5 + 6, idle_ticks=1000 + 50, steal_ticks=70)


def test_a_system_without_counters_has_no_load_and_no_known_theft(proc):
    assert read_load() is None
    assert steal_fraction(None, Load(1, 1, 1)) == 0
    assert steal_fraction(Load(1, 1, 1), None) == 0


def test_stolen_time_is_a_share_of_the_time_between_two_readings():
    before = Load(busy_ticks=100, idle_ticks=900, steal_ticks=10)
    assert steal_fraction(before, Load(busy_ticks=160, idle_ticks=920, steal_ticks=30)) == pytest.approx(0.2)
    assert steal_fraction(before, before) == 0


def cpufreq(root: Path, cpu: int, **values: object) -> None:
    folder = root / f"cpu{cpu}" / "cpufreq"
    folder.mkdir(parents=True)
    for name, value in values.items():
        (folder / f"scaling_{name}").write_text(f"{value}\n", encoding="ascii")


def test_clocks_are_those_of_the_cpus_asked_for(tmp_path):
    cpufreq(tmp_path, 0, cur_freq=800_000, governor="powersave", min_freq=800_000, max_freq=3_500_000)
    cpufreq(tmp_path, 1, cur_freq=3_400_000, governor="performance", min_freq=800_000, max_freq=3_500_000)
    assert cpu_clocks([1], tmp_path) == {
        "governor": "performance", "mhz": {"1": 3_400.0}, "min_mhz": 800.0, "max_mhz": 3_500.0,
    }  # fmt: skip
    both = cpu_clocks([0, 1], tmp_path)
    assert both == {"governor": None, "mhz": {"0": 800.0, "1": 3_400.0}, "min_mhz": 800.0, "max_mhz": 3_500.0}


def test_clocks_that_the_system_does_not_tell_are_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_proc_mhz", lambda: {"0": 2_100.0, "1": 2_200.0})
    expected = {"governor": None, "mhz": {"1": 2_200.0}, "min_mhz": None, "max_mhz": None}
    assert cpu_clocks([1], tmp_path) == expected
    assert cpu_clocks([], tmp_path) is None
    monkeypatch.setattr(device, "_proc_mhz", dict)
    assert cpu_clocks([1], tmp_path) is None


def test_nominal_clocks_are_read_by_cpu(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(X86.format(mhz="2100.000"), encoding="ascii")
    assert _proc_mhz(path) == {"0": 2100.0}
    path.write_text(ARM, encoding="ascii")
    assert _proc_mhz(path) == _proc_mhz(tmp_path / "nothing") == {}
