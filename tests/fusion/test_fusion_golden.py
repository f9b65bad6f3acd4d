"""The rules against lists that the runtime wrote, on machines that do not have it."""

import gzip
import json
from collections import Counter

import pytest
from fusion.fusion_networks import GOLDEN, LEVELS, counted, golden_path, network

from akd_deploy.fusion.onnxruntime_cpu import kernels_of

NAMES = sorted(path.name.removesuffix(".json.gz") for path in (GOLDEN / "fusion").glob("*.json.gz"))


def test_there_are_golden_lists_of_several_families():
    assert len(NAMES) >= 6
    assert any(name.endswith(".int8") for name in NAMES)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_their_nodes_are_the_runtimes(name, level):
    golden = json.loads(gzip.decompress(golden_path(name).read_bytes()))
    expected = Counter((signature, tuple(nodes)) for signature, nodes in golden["levels"][level])
    found = counted(kernels_of(network(name), level, nchwc_block=golden["nchwc_block"]))
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_kernels_come_in_the_runtimes_order(name):
    golden = json.loads(gzip.decompress(golden_path(name).read_bytes()))
    found = [[kernel.kernel.signature, list(kernel.nodes)] for kernel in kernels_of(network(name), "all")]
    assert found == golden["levels"]["all"]
