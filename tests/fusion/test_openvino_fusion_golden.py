"""OpenVINO's fusion rules against lists that the runtime wrote, on machines that do not have it or their own CPU."""

from collections import Counter
from itertools import product

import pytest
from fusion.fusion_networks import network
from fusion.openvino_networks import FLAGS, ISAS, PRECISIONS, golden_names, read_golden

from akd_deploy.fusion.openvino_cpu import kernels_of

NAMES = golden_names()
CASES = [(precision, isa) for precision in PRECISIONS for isa in ISAS[precision]]


def test_there_are_golden_lists_of_many_networks_for_every_cpu():
    assert len(NAMES) >= 20
    assert all(sorted(read_golden(name)) == sorted(CASES) for name in NAMES)


@pytest.mark.parametrize(("name", "precision"), list(product(NAMES, PRECISIONS)))
def test_kernels_are_the_runtimes(name, precision):
    """On every CPU, of which those with registers of one width have one list."""
    golden = read_golden(name)
    for isa in ISAS[precision]:
        found = kernels_of(network(name), precision, isa=FLAGS[isa])
        assert Counter(kernel.kernel.signature for kernel in found) == Counter(golden[precision, isa]), isa
