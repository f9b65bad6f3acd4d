"""Published networks, written from their papers: what predictors and fusion rules are tested on.

`NETWORKS` names them, `STRANGERS` those that a predictor is tested on unseen; nothing heavy is imported before
a network is built.
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

_TOKENS64: tuple[Input, ...] = (("input_ids", (1, 64), "int64"),)
_CONVOLUTIONAL, _CELLS, _ATTENTION = "strangers_convolutional", "strangers_cells", "strangers_attention"
_DENSE, _SEQUENCES = "strangers_dense", "strangers_sequences"


def _of(name: str, *shape: int) -> tuple[Input, ...]:
    return ((name, (1, *shape), "float32"),)


_STRANGERS = (
    _network("lenet5", "lenet", _CONVOLUTIONAL, "LeCun et al. 1998", inputs=_of("digit", 1, 28, 28)),
    _network("alexnet", "alexnet", _CONVOLUTIONAL, "arXiv:1404.5997"),
    _network("xception_short", "xception", _CONVOLUTIONAL, "arXiv:1610.02357", 32),
    _network("efficientnet_v2_short", "efficientnet_v2", _CONVOLUTIONAL, "arXiv:2104.00298", 32),
    _network("sknet26", "sknet", _CONVOLUTIONAL, "arXiv:1903.06586", 32),
    _network("fasternet_t0", "fasternet", _CONVOLUTIONAL, "arXiv:2303.03667", 32),
    _network("mobileone_s0", "mobileone", _CONVOLUTIONAL, "arXiv:2206.04040", 32),
    _network("hrnet_w18_small", "hrnet", _CONVOLUTIONAL, "arXiv:1908.07919", 32),
    _network("r2plus1d_narrow", "video", _CONVOLUTIONAL, "arXiv:1711.11248", inputs=_of("frames", 3, 8, 56, 56)),
    _network("darts_cifar", "darts", _CELLS, "arXiv:1806.09055", 4, SMALL_IMAGE),
    _network("nasnet_a_cifar", "nasnet", _CELLS, "arXiv:1707.07012", 4, SMALL_IMAGE),
    _network("pvt_v2_b0", "pvt", _ATTENTION, "arXiv:2106.13797", 32),
    _network("coatnet_short", "coatnet", _ATTENTION, "arXiv:2106.04803"),
    _network("xcit_nano_12", "xcit", _ATTENTION, "arXiv:2106.09681"),
    _network("gmlp_short", "gmlp", _ATTENTION, "arXiv:2105.08050"),
    _network("yolox_nano", "yolox", _DENSE, "arXiv:2107.08430", 32, _of("image", 3, 256, 256)),
    _network("pose_short", "pose", _DENSE, "arXiv:1804.06208", 32, _of("image", 3, 256, 192)),
    _network("fast_scnn", "fast_scnn", _DENSE, "arXiv:1902.04502", inputs=_of("image", 3, 192, 384)),
    _network("style_transfer", "style_transfer", _DENSE, "arXiv:1603.08155", 4, _of("image", 3, 160, 160)),
    _network("dcgan_generator", "dcgan", _DENSE, "arXiv:1511.06434", inputs=_of("latent", 100)),
    _network("fsrcnn_x3", "fsrcnn", _DENSE, "arXiv:1608.00367", 1, _of("luminance", 1, 96, 96)),
    _network("rcan_short_x2", "rcan", _DENSE, "arXiv:1807.02758", 1, _of("image", 3, 48, 48)),
    _network("pointnet", "pointnet", _SEQUENCES, "arXiv:1612.00593", inputs=_of("points", 3, 1024)),
    _network("tcn", "tcn", _SEQUENCES, "arXiv:1803.01271", inputs=_of("signal", 1, 784)),
    _network("wavenet_small", "wavenet", _SEQUENCES, "arXiv:1609.03499", inputs=_of("signal", 1, 2048)),
    _network("lstm_classifier", "recurrent", _SEQUENCES, "Graves and Schmidhuber 2005", inputs=_TOKENS64),
    _network("deepspeech_small", "recurrent", _SEQUENCES, "arXiv:1512.02595", inputs=_of("spectrogram", 1, 80, 100)),
    _network("conformer_short", "conformer", _SEQUENCES, "arXiv:2005.08100", inputs=_of("spectrogram", 80, 200)),
    _network("whisper_tiny_encoder", "whisper", _SEQUENCES, "arXiv:2212.04356", inputs=_of("spectrogram", 80, 600)),
    _network("opt_small", "opt", _SEQUENCES, "arXiv:2205.01068", inputs=_TOKENS64),
    _network("t5_small_encoder", "t5", _SEQUENCES, "arXiv:1910.10683", inputs=_TOKENS64),
    _network("tabular_mlp", "tabular", _SEQUENCES, "arXiv:2106.11959", inputs=_of("features", 64)),
    _network(
        *("dlrm_small", "tabular", _SEQUENCES, "arXiv:1906.00091"),
        inputs=(*_of("numbers", 13), ("categories", (1, 26), "int64")),
    ),
)

STRANGERS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _STRANGERS})
"""Networks of kinds no stretch of which a general profile measures: what the predictor is tested on."""


def names(family: str | None = None) -> tuple[str, ...]:
    """The networks' names, of one family or of all."""
    return tuple(name for name, network in NETWORKS.items() if family in (None, network.family))
