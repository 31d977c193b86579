# SPDX-License-Identifier: Apache-2.0
"""The G-Ghost stage against the sums of the paper's figure and of the published code, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghostnets.blocks.stage import CODE, FIGURE, GhostStage
from ghostnets.errors import UserError


def block(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.BatchNorm2d(out_channels), nn.ReLU())


def settled(stage: GhostStage) -> GhostStage:
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return stage.eval()


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("cheap_size", [1, 3, 5])
def test_the_published_code(cheap_size: int, mix: bool) -> None:
    stage = settled(GhostStage(6, 16, 5, block=block, stride=2, cheap_size=cheap_size, mix=mix, multiple=3))
    assert (stage.raw, len(stage.layers)) == (6, 3)  # int(16 · 0.5 / 3) · 3; 5 blocks without the first and the last
    x = torch.randn(2, 6, 9, 8)
    with torch.no_grad():
        first = stage.base(x)
        joined = [first]
        thin = first[:, :6]
        for layer in stage.layers:
            thin = layer(thin)
            joined.append(thin)
        cheap = stage.cheap(first[:, 6:])
        if mix:
            assert stage.merge is not None
            cheap = cheap + stage.merge(torch.cat(joined, 1))  # pooled after they are joined
        wanted = stage.end(torch.cat([thin, cheap.relu()], 1))
        torch.testing.assert_close(stage(x), wanted)
        assert stage(x).shape == (2, 16, 5, 4)


def test_the_papers_figure() -> None:
    stage = settled(GhostStage(6, 16, 4, block=block, split=0.25, form=FIGURE))
    assert (stage.raw, len(stage.layers)) == (12, 3)
    x = torch.randn(2, 6, 7, 5)
    means: list[Tensor] = []
    with torch.no_grad():
        first = stage.base(x)
        thin = first
        for layer in stage.layers:
            thin = layer(thin)
            means.append(thin.mean((2, 3)))
        assert stage.merge is not None
        layer = stage.merge[1]
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        added = torch.cat(means, 1) @ layer.weight[:, :, 0, 0].T + layer.bias
        cheap = (stage.cheap(first) + added[:, :, None, None]).relu()
        torch.testing.assert_close(stage(x), torch.cat([thin, cheap], 1))
        assert stage(x).shape == (2, 16, 7, 5)


def test_published_names() -> None:
    names = set(GhostStage(4, 8, 4, block=block).state_dict())
    for name in ("base.0.weight", "layers.1.0.weight", "merge.1.weight", "merge.2.running_mean", "merge.4.weight"):
        assert name in names
    assert {"merge.5.bias", "cheap.0.weight", "cheap.1.bias", "end.0.weight"} <= names
    assert "merge.1.bias" not in names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 2}, "depth 2 of a G-Ghost stage leaves no thin block: at least 3"),
        ({"depth": 1, "form": FIGURE}, "at least 2"),
        ({"split": 1.0}, "split 1.0 of 8 channels leaves 0 thin"),
        ({"split": 0.0}, "and 0 cheap ones"),
        ({"multiple": 9}, "leaves 0 thin"),
        ({"cheap_size": 2}, "cheap kernel 2"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    asked: dict[str, object] = {"depth": 5, "form": CODE, **options}
    with pytest.raises(UserError, match=words):
        GhostStage(4, 8, block=block, **asked)  # pyright: ignore[reportArgumentType]
