# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds against the exact figures that follow from the papers' tables and the authors' code
(../shared/facts/papers.md C.1, C.3, D.4, E.3, I.4, J), and multiply-adds against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghostnets.blocks.branches import fold_branches
from ghostnets.blocks.stage import GhostStage
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.models.catalog import BUILDERS, create_model
from ghostnets.models.ghostnet import ghostnet

# name: (parameters, multiply-adds), exact
EXACT = {
    "ghostnet_100": (5_182_508, 141_150_512),
    "resnet56": (853_018, None),
    "vgg16": (14_991_946, None),
    "resnet50": (25_557_032, None),
}
# name: (parameters, million multiply-adds, decimals of these)
ROUNDED = {
    "ghostnet_050": (2_587_292, 42.33, 2),
    "ghostnet_110": (5_855_650, 166.99, 2),
    "ghostnet_130": (7_358_820, 227.00, 2),
    "ghostnetv2_100": (6_156_908, 167.05, 2),
    "ghostnetv2_130": (8_960_404, 269.32, 2),
    "ghostnetv2_160": (12_392_698, 398.61, 2),
    "resnet56": (853_018, 125.49, 2),
    "ghost_resnet56": (438_154, 65.29, 2),
    "resnet50": (25_557_032, 4089, 0),
    "ghost_resnet50": (13_953_512, 2151, 0),
}
# s, d: (parameters, million multiply-adds) of Ghost-VGG-16 (facts D.4)
GHOST_VGG = {
    (2, 1): (7_634_602, 156.74),
    (2, 3): (7_651_498, 157.84),
    (2, 5): (7_685_290, 160.05),
    (2, 7): (7_735_978, 163.37),
    (3, 3): (5_219_500, 106.97),
    (4, 3): (3_983_386, 80.17),
    (5, 3): (3_270_721, 65.40),
}
# facts I.4: parameters and G multiply-adds of G-Ghost, and of the plain network in millions and G
REGNET = {
    "002": (1_825_440, 0.131, 2.68, 0.199),
    "004": (2_884_456, 0.221, 5.16, 0.398),
    "006": (4_029_776, 0.390, 6.20, 0.601),
    "008": (5_248_328, 0.529, 7.26, 0.800),
    "016": (7_109_660, 1.021, 9.19, 1.603),
    "032": (10_511_000, 1.802, 15.30, 3.177),
    "040": (15_726_268, 2.228, 22.12, 3.964),
    "064": (17_993_748, 4.055, 26.21, 6.460),
    "080": (24_586_928, 4.150, 39.57, 7.995),
    "120": (30_627_208, 7.378, 46.11, 12.087),
    "160": (32_381_704, 8.997, 54.28, 15.941),
    "320": (62_815_448, 17.158, 107.81, 31.736),
}
# idx: (parameters, multiply-adds) of GhostNet 1.0, layer by layer (facts C.1)
LAYERS = {
    "blocks.0.0": (464, 5_017_600), "blocks.1.0": (2_564, 12_681_984), "blocks.2.0": (2_352, 6_773_760),
    "blocks.3.0": (9_636, 7_632_768), "blocks.4.0": (13_672, 4_335_360), "blocks.5.0": (22_920, 7_683_200),
    "blocks.6.0": (17_820, 3_382_960), "blocks.6.1": (16_436, 3_117_968), "blocks.6.2": (16_436, 3_117_968),
    "blocks.6.3": (175_792, 11_566_304), "blocks.6.4": (306_992, 15_669_024), "blocks.7.0": (362_840, 12_702_368),
    "blocks.8.0": (160_880, 7_773_360), "blocks.8.1": (622_880, 8_234_160), "blocks.8.2": (160_880, 7_773_360),
    "blocks.8.3": (622_880, 8_234_160), "blocks.9.0": (155_520, 7_526_400), "conv_head": (1_230_080, 1_228_800),
    "classifier": (1_281_000, 1_280_000),
}  # fmt: skip
SMALL = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg16")


def images(name: str) -> torch.Tensor:
    side = 32 if name.removeprefix("ghost_") in SMALL else 224
    return torch.zeros(1, 3, side, side)


def macs(model: nn.Module, x: torch.Tensor) -> int:
    return total_macs(model.eval(), x)


@pytest.mark.parametrize("name", EXACT)
def test_exact_figures(name: str) -> None:
    params, wanted = EXACT[name]
    model = create_model(name)
    assert total_params(model) == params
    assert wanted is None or macs(model, images(name)) == wanted


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_figures(name: str) -> None:
    params, millions, decimals = ROUNDED[name]
    model = create_model(name)
    assert total_params(model) == params
    assert round(macs(model, images(name)) / 1e6, decimals) == pytest.approx(millions, abs=0.011 if decimals else 0.5)


@pytest.mark.parametrize(("ratio", "cheap_size"), GHOST_VGG)
def test_ghost_vgg(ratio: int, cheap_size: int) -> None:
    params, millions = GHOST_VGG[ratio, cheap_size]
    model = create_model("ghost_vgg16", ratio=ratio, cheap_size=cheap_size)
    assert total_params(model) == params
    hidden = 512 * 512 + 512 * 10  # the table counts convolutions alone
    assert (macs(model, images("ghost_vgg16")) - hidden) / 1e6 == pytest.approx(millions, abs=0.006)


def test_plain_vgg() -> None:
    hidden = 512 * 512 + 512 * 10
    assert (macs(create_model("vgg16"), images("vgg16")) - hidden) / 1e6 == pytest.approx(313.20, abs=0.006)


def test_ghost_resnet56_of_1x1_ghosts_is_the_papers() -> None:
    model = create_model("ghost_resnet56", cheap_size=1)
    assert total_params(model) == 430_090
    assert macs(model, images("resnet56")) / 1e6 == pytest.approx(63.22, abs=0.006)


def test_g_ghost_resnet101_lacks_the_mindspore_versions_one_convolution() -> None:
    """Facts I.5: 38.217 M with a 1×1 convolution in place of every stage's slice."""
    with torch.device("meta"):
        model = create_model("g_ghost_resnet101")
    slices = sum(stage.raw * stage.raw * 2 for stage in model.modules() if isinstance(stage, GhostStage))
    assert (total_params(model) + slices) / 1e6 == pytest.approx(38.217, abs=0.01)


def test_ghost_resnet50_of_ratio_4() -> None:
    model = create_model("ghost_resnet50", ratio=4)
    assert total_params(model) == 8_151_752
    assert macs(model, images("resnet50")) / 1e9 == pytest.approx(1.182, abs=6e-4)


@pytest.mark.parametrize("name", REGNET)
def test_regnets(name: str) -> None:
    params, giga, plain_millions, plain_giga = REGNET[name]
    with torch.device("meta"):
        ghost, plain = create_model(f"g_ghost_regnetx_{name}"), create_model(f"regnetx_{name}")
    assert total_params(ghost) == params
    assert total_params(plain) / 1e6 == pytest.approx(plain_millions, abs=0.006)
    x = torch.zeros(1, 3, 224, 224, device="meta")
    assert macs(ghost, x) / 1e9 == pytest.approx(giga, abs=6e-4)
    assert macs(plain, x) / 1e9 == pytest.approx(plain_giga, abs=6e-4)


def test_ghostnet_layer_by_layer() -> None:
    model = create_model("ghostnet_100").eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in LAYERS:

        def note(_module: nn.Module, inputs: tuple[torch.Tensor], name: str = name) -> None:
            seen[name] = tuple(inputs[0].shape)

        model.get_submodule(name).register_forward_pre_hook(note)
    model(images("ghostnet_100"))
    for name, (params, wanted) in LAYERS.items():
        layer = model.get_submodule(name)
        assert total_params(layer) == params, name
        assert macs(layer, torch.zeros(seen[name])) == wanted, name


@pytest.mark.parametrize(("name", "millions"), [("050", 2.85), ("100", 6.15), ("130", 8.95), ("160", 12.38)])
def test_ghostnetv3_folded(name: str, millions: float) -> None:
    """Facts J.2: folded as GhostNetV2 without the norms' numbers; in training form 8.13 M at width 1."""
    model = create_model(f"ghostnetv3_{name}")
    folded = fold_branches(model)
    assert total_params(folded) / 1e6 == pytest.approx(millions, abs=0.006)
    with torch.device("meta"):
        second = create_model("ghostnetv2_100", width=int(name) / 100)
    x = torch.zeros(1, 3, 224, 224, device="meta")
    assert macs(folded.to("meta"), x) == macs(second, x)  # the same graph (facts J.2)
    if name == "100":
        assert total_params(model) / 1e6 == pytest.approx(8.13, abs=0.006)


@pytest.mark.parametrize(
    "name", [n for n in BUILDERS if not n.endswith(("120", "160", "320", "110")) or "ghostnet" in n]
)
def test_macs_agree_with_pytorchs_counter(name: str) -> None:
    with torch.device("meta"):
        model, x = create_model(name).eval(), images(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x.to("meta"))
    assert macs(model, x.to("meta")) == counter.get_total_flops() // 2


@pytest.mark.parametrize(("width", "stem", "last"), [(0.1, 4, 96), (0.77, 12, 740), (2.0, 32, 1920)])
def test_any_width(width: float, stem: int, last: int) -> None:
    model = ghostnet(width=width, num_classes=3)
    assert (model.conv_stem.out_channels, model.num_features) == (stem, last)
    assert model.eval()(torch.zeros(1, 3, 65, 33)).shape == (1, 3)
