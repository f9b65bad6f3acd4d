"""Published networks, written from their papers: what predictors and fusion rules are tested on.

`NETWORKS` names them; nothing heavy is imported before a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Input = tuple[str, tuple[int, ...], str]
"""Name, shape (batch first), numpy's name of the type."""

IMAGE: tuple[Input, ...] = (("image", (1, 3, 224, 224), "float32"),)
SMALL_IMAGE: tuple[Input, ...] = (("image", (1, 3, 32, 32), "float32"),)
TOKENS: tuple[Input, ...] = (("input_ids", (1, 128), "int64"), ("attention_mask", (1, 128), "int64"))


@dataclass(frozen=True)
class Network:
    """A published network.

    `build` gives a fresh torch module; its weights are torch's own initialisation (`export.seeded` draws them
    from a seed). `source` is the paper. `image_multiple` divides every side of an image that the network takes;
    0: it takes no other size than `input_shapes` says.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    input_shapes: tuple[Input, ...]
    source: str
    image_multiple: int = 0


def _builder(file: str, function: str, arguments: tuple[int, ...]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return getattr(importlib.import_module(f"benchmarks.networks.{file}"), function)(*arguments)

    return build


def _network(
    name: str, family: str, file: str, source: str, image_multiple: int = 0, inputs: tuple[Input, ...] = IMAGE
) -> Network:
    return Network(name, family, _builder(file, name, ()), inputs, source, image_multiple)


def _drawn(space: str, seed: int, source: str, image_multiple: int, inputs: tuple[Input, ...]) -> Network:
    """The network that `seed` draws from a model space of NNI's hub."""
    build = _builder("nni_hub", space, (seed,))
    return Network(f"{space}_{seed}", f"{space.removesuffix('_space')}_space", build, inputs, source, image_multiple)


_ALL = (
    _network("resnet18", "resnet", "resnets", "arXiv:1512.03385", 32),
    _network("resnet34", "resnet", "resnets", "arXiv:1512.03385", 32),
    _network("resnet50", "resnet", "resnets", "arXiv:1512.03385", 32),
    _network("wide_resnet50_2", "resnet", "resnets", "arXiv:1605.07146", 32),
    _network("resnext50_32x4d", "resnet", "resnets", "arXiv:1611.05431", 32),
    _network("regnetx_400mf", "regnet", "resnets", "arXiv:2003.13678", 32),
    _network("regnety_400mf", "regnet", "resnets", "arXiv:2003.13678", 32),
    _network("regnety_800mf", "regnet", "resnets", "arXiv:2003.13678", 32),
    _network("repvgg_a0", "repvgg", "resnets", "arXiv:2101.03697", 32),
    _network("vgg11", "vgg", "plain", "arXiv:1409.1556", 32),
    _network("vgg11_bn", "vgg", "plain", "arXiv:1409.1556", 32),
    _network("squeezenet1_1", "squeezenet", "plain", "arXiv:1602.07360", 32),
    _network("googlenet", "inception", "plain", "arXiv:1409.4842", 32),
    _network(
        "inception_v3", "inception", "inception", "arXiv:1512.00567", inputs=(("image", (1, 3, 299, 299), "float32"),)
    ),
    _network("densenet121", "densenet", "plain", "arXiv:1608.06993", 32),
    _network("mobilenet_v1", "mobilenet", "mobile", "arXiv:1704.04861", 32),
    _network("mobilenet_v2", "mobilenet", "mobile", "arXiv:1801.04381", 32),
    _network("mobilenet_v3_small", "mobilenet", "mobile", "arXiv:1905.02244", 32),
    _network("mobilenet_v3_large", "mobilenet", "mobile", "arXiv:1905.02244", 32),
    _network("mnasnet_a1", "mnasnet", "mobile", "arXiv:1807.11626", 32),
    _network("mnasnet_b1", "mnasnet", "mobile", "arXiv:1807.11626", 32),
    _network("efficientnet_b0", "efficientnet", "mobile", "arXiv:1905.11946", 32),
    _network("efficientnet_lite0", "efficientnet", "mobile", "arXiv:1905.11946", 32),
    _network("shufflenet_v2_x0_5", "shufflenet", "shuffled", "arXiv:1807.11164", 32),
    _network("shufflenet_v2_x1_0", "shufflenet", "shuffled", "arXiv:1807.11164", 32),
    _network("ghostnet", "ghostnet", "shuffled", "arXiv:1911.11907", 32),
    _network("convnext_atto", "convnext", "convolutional_transformers", "arXiv:2201.03545", 32),
    _network("convnext_tiny", "convnext", "convolutional_transformers", "arXiv:2201.03545", 32),
    _network("poolformer_s12", "poolformer", "convolutional_transformers", "arXiv:2111.11418", 32),
    _network("mobilevit_xs", "mobilevit", "convolutional_transformers", "arXiv:2110.02178", 32),
    _network("vit_tiny_16", "vit", "vision_transformers", "arXiv:2010.11929"),
    _network("deit_small_16", "vit", "vision_transformers", "arXiv:2012.12877"),
    _network("swin_tiny", "swin", "vision_transformers", "arXiv:2103.14030"),
    _network("mixer_small_16", "mixer", "vision_transformers", "arXiv:2105.01601"),
    _network("bert_tiny", "bert", "language", "arXiv:1908.08962", inputs=TOKENS),
    _network("bert_mini", "bert", "language", "arXiv:1908.08962", inputs=TOKENS),
    _network("bert_small", "bert", "language", "arXiv:1908.08962", inputs=TOKENS),
    _network("distilbert", "bert", "language", "arXiv:1910.01108", inputs=TOKENS),
    _network("gpt_20m", "gpt", "language", "Radford et al. 2019", inputs=TOKENS[:1]),
    _network("llama_15m", "llama", "language", "arXiv:2302.13971", inputs=TOKENS[:1]),
    _network(
        "char_cnn", "char_cnn", "language", "arXiv:1509.01626", inputs=(("characters", (1, 70, 1014), "float32"),)
    ),
    _network("unet_small", "segmentation", "dense_prediction", "arXiv:1505.04597", 16),
    _network("deeplab_v3_plus", "segmentation", "dense_prediction", "arXiv:1802.02611", 32),
    _network("retinanet_mobilenet_v2", "detection", "dense_prediction", "arXiv:1708.02002", 32),
    _network(
        "espcn_x3",
        "super_resolution",
        "dense_prediction",
        "arXiv:1609.05158",
        1,
        inputs=(("luminance", (1, 1, 224, 224), "float32"),),
    ),
    _network(
        "edsr_baseline_x2",
        "super_resolution",
        "dense_prediction",
        "arXiv:1707.02921",
        1,
        inputs=(("image", (1, 3, 96, 96), "float32"),),
    ),
    _network("proxylessnas_mobile", "proxylessnas", "nni_hub", "arXiv:1812.00332", 32),
    _network("spos", "shufflenet_space", "nni_hub", "arXiv:1904.00420", 32),
    _network("autoformer_tiny", "vit", "nni_hub", "arXiv:2107.00651"),
    *(_drawn("nasbench201", seed, "arXiv:2001.00326", 4, SMALL_IMAGE) for seed in range(6)),
    *(_drawn("nasbench101", seed, "arXiv:1902.09635", 4, SMALL_IMAGE) for seed in range(2)),
    _drawn("shufflenet_space", 0, "arXiv:1904.00420", 32, IMAGE),
    *(_drawn("mobilenet_v3_space", seed, "arXiv:1905.02244", 32, IMAGE) for seed in range(2)),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _ALL})


def names(family: str | None = None) -> tuple[str, ...]:
    """The networks' names, of one family or of all."""
    return tuple(name for name, network in NETWORKS.items() if family in (None, network.family))
