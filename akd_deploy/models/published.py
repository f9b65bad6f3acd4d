"""Published networks that this package carries as skeletons: a general latency profile measures stretches of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "bert": ("bert_mini", "bert_small", "bert_tiny", "distilbert"),
    "char_cnn": ("char_cnn",),
    "convnext": ("convnext_atto", "convnext_tiny"),
    "densenet": ("densenet121",),
    "detection": ("retinanet_mobilenet_v2",),
    "efficientnet": ("efficientnet_b0", "efficientnet_lite0"),
    "ghostnet": ("ghostnet",),
    "gpt": ("gpt_20m",),
    "inception": ("googlenet", "inception_v3"),
    "llama": ("llama_15m",),
    "mixer": ("mixer_small_16",),
    "mnasnet": ("mnasnet_a1", "mnasnet_b1"),
    "mobilenet": ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    "mobilenet_v3_space": ("mobilenet_v3_space_0", "mobilenet_v3_space_1"),
    "mobilevit": ("mobilevit_xs",),
    "nasbench101_space": ("nasbench101_0", "nasbench101_1"),
    "nasbench201_space": tuple(f"nasbench201_{i}" for i in range(6)),
    "poolformer": ("poolformer_s12",),
    "proxylessnas": ("proxylessnas_mobile",),
    "regnet": ("regnetx_400mf", "regnety_400mf", "regnety_800mf"),
    "repvgg": ("repvgg_a0",),
    "resnet": ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"),
    "segmentation": ("deeplab_v3_plus", "unet_small"),
    "shufflenet": ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    "shufflenet_space": ("shufflenet_space_0", "spos"),
    "squeezenet": ("squeezenet1_1",),
    "super_resolution": ("edsr_baseline_x2", "espcn_x3"),
    "swin": ("swin_tiny",),
    "vgg": ("vgg11", "vgg11_bn"),
    "vit": ("autoformer_tiny", "deit_small_16", "vit_tiny_16"),
})  # fmt: skip
"""Family → its networks. Families are what a prediction of an unknown network is calibrated on."""

FAMILY_OF: Mapping[str, str] = MappingProxyType({name: family for family, names in FAMILIES.items() for name in names})
"""Network → its family."""


def skeleton_path(name: str) -> Path:
    """The skeleton of a published network (`onnx_skeleton.read_skeleton`): batch 1, static shapes."""
    return Path(__file__).parent / "skeletons" / f"{name}.onnx.gz"
