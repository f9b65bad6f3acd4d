"""Networks from the model spaces that NNI's hub carries: found ones by name, others drawn from a seed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

_BYPASSED = ("nni.nas.hub.pytorch", "nni.nas.oneshot.pytorch")
"""Packages whose own `__init__` imports Lightning; the modules inside that are used here do without."""


@contextlib.contextmanager
def _without_lightning() -> Iterator[None]:
    """Empty packages stand in for the bypassed ones while a module inside them is imported."""
    os.environ.setdefault("NNI_FRAMEWORK", "none")
    # NNI may have been imported before, and then asks nobody for its framework again.
    importlib.import_module("nni.common.framework").set_default_framework("none")
    placed = [package for package in _BYPASSED if package not in sys.modules]
    try:
        for package in placed:
            found = importlib.util.find_spec(package)
            assert found is not None
            stand_in = types.ModuleType(package)
            stand_in.__path__ = list(found.submodule_search_locations or ())
            sys.modules[package] = stand_in
        yield
    finally:
        for package in placed:
            sys.modules.pop(package, None)


def hub_module(file: str) -> types.ModuleType:
    """One module of the hub."""
    with warnings.catch_warnings(), _without_lightning():
        warnings.simplefilter("ignore")  # NNI's last release is older than what it warns about
        module = importlib.import_module(f"nni.nas.hub.pytorch.{file}")
    logging.getLogger("nni").setLevel(logging.WARNING)  # it prints every pruned cell
    return module


def _drawn(space: Any, seed: int) -> nn.Module:
    """The network that `seed` draws from a model space."""
    choices: dict[str, Any] = {}
    space.random(choices, np.random.RandomState(seed))  # NNI takes no Generator
    return space.freeze(choices)


def nasbench201(seed: int) -> nn.Module:
    """Dong and Yang 2020, arXiv:2001.00326: one of the 15,625 cells, in the published network for CIFAR-10."""
    return _drawn(hub_module("nasbench201").NasBench201(), seed)


def nasbench101(seed: int) -> nn.Module:
    """Ying et al. 2019, arXiv:1902.09635, narrowed to 32 channels."""
    return _drawn(hub_module("nasbench101").NasBench101(stem_out_channels=32), seed)


def proxylessnas_mobile() -> nn.Module:
    """Cai et al. 2019, arXiv:1812.00332: the network found for phones."""
    return hub_module("proxylessnas").ProxylessNAS.load_searched_model("proxyless-mobile")


def spos() -> nn.Module:
    """Guo et al. 2020, arXiv:1904.00420: the network found with single-path one-shot, of shuffle units."""
    return hub_module("shufflenet").ShuffleNetSpace.load_searched_model("spos")


def shufflenet_space(seed: int) -> nn.Module:
    """The space of arXiv:1904.00420, its channels searched too."""
    return _drawn(hub_module("shufflenet").ShuffleNetSpace(channel_search=True), seed)


def mobilenet_v3_space(seed: int) -> nn.Module:
    """Widths, depths, expansions, windows and gates around MobileNetV3 (arXiv:1905.02244)."""
    return _drawn(hub_module("mobilenetv3").MobileNetV3Space(), seed)


def autoformer_tiny() -> nn.Module:
    """Chen et al. 2021, arXiv:2107.00651: the smallest network found, with relative positions in the attention."""
    network = hub_module("autoformer").AutoFormer.load_searched_model("autoformer-tiny")
    for part in network.modules():
        if part.__class__.__name__ in ("ClassToken", "AbsolutePositionEmbedding"):
            part.trace_args, part.trace_kwargs = [], {}  # their repr, which torch.onnx asks for, reads these
    return network
