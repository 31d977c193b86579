# SPDX-License-Identifier: Apache-2.0
"""What every classifier here can do: a chain of steps, a head, and its maps on the way (timm's names for all of it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ghostnets.errors import UserError

POOLS = ("avg", "")
IMAGENET_SIZE, CIFAR_SIZE = (224, 224), (32, 32)


@dataclass(frozen=True)
class Feature:
    """One place where maps can be taken: the output of ``module``."""

    num_chs: int
    reduction: int
    """Pixels of the image to one of the map, along each axis."""
    module: str

    def __getitem__(self, key: str) -> int | str:
        """The same by name, as timm's dicts have it."""
        return asdict(self)[key]


class FeatureInfo(tuple[Feature, ...]):
    """The places, from the finest to the coarsest, with the methods of timm's."""

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """One figure of one place (a number), of some (a sequence) or of every place (None)."""
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (range(len(self)) if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Of one place, some or all."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Of one place, some or all."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Of one place, some or all."""
        return self.get("module", idx)

    def get_dicts(self) -> list[dict[str, Any]]:
        """Every place as a dict."""
        return [asdict(feature) for feature in self]


class Backbone(nn.Module):
    """A network whose ``forward`` is its ``steps`` one after the other, and then its head.

    A subclass sets the attributes below and defines ``steps`` and ``pre_logits``.
    """

    input_size: tuple[int, int] = IMAGENET_SIZE
    """(H, W) of the images it was designed for; others work too."""
    num_classes: int
    num_features: int
    """Channels of ``forward_features``."""
    head_hidden_size: int
    """Channels that the classifier reads."""
    drop_rate: float
    global_pool: str
    feature_info: FeatureInfo
    classifier_name: str
    pretrained_cfg: Mapping[str, Any] = MappingProxyType({})
    """What it is, and what its weights expect, in timm's words; ``create_model`` says it."""
    model_args: Mapping[str, Any] = MappingProxyType({})
    """What ``create_model`` gave the builder beside classes and channels."""
    grad_checkpointing: bool = False
    checkpointed: tuple[str, ...] = ("blocks", "layer")
    """How the names of the steps begin that are worth computing twice; stems and activations are not."""

    def __init__(self, *, num_classes: int, drop_rate: float, global_pool: str) -> None:
        super().__init__()
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.global_pool = checked_pool(global_pool, num_classes)

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of everything before the head, in order."""
        raise NotImplementedError

    def pre_logits(self, x: Tensor) -> Tensor:
        """(N, num_features, h, w) to (N, head_hidden_size), or maps where nothing is pooled."""
        return self.pooled(x)

    def pooled(self, x: Tensor) -> Tensor:
        """The mean of every map, (N, C); the maps themselves where ``global_pool`` is empty."""
        return x.mean((2, 3)) if self.global_pool else x

    def forward_features(self, x: Tensor) -> Tensor:
        """The last maps, (N, num_features, h, w)."""
        for name, step in self.steps():
            x = self._step(name, step, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - timm's signature
        """Logits (N, num_classes) of the last maps, or with ``pre_logits`` what the classifier reads."""
        x = F.dropout(self.pre_logits(x), self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: Literal[False] = False,
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: Literal[True],
    ) -> list[Tensor]: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """The last maps, and those at the places of ``feature_info`` that ``indices`` names: all, the last so many, or a list.

        ``stop_early`` computes nothing behind the last of them. ``norm`` and ``output_fmt`` are timm's: there is no norm
        behind the blocks, and maps are (N, C, H, W). Raises UserError where something else is asked.
        """
        if norm or output_fmt != "NCHW":
            raise UserError(f"norm={norm}, output_fmt={output_fmt!r}: maps are given as they are, NCHW")
        wanted = [self.feature_info[i].module for i in taken(indices, len(self.feature_info))]
        found: list[Tensor] = []
        for name, step in self.steps():
            x = self._step(name, step, x)
            if name in wanted:
                found.append(x)
                if stop_early and len(found) == len(wanted):
                    break
        return found if intermediates_only else (x, found)

    def _step(self, name: str, step: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and name.startswith(self.checkpointed):
            return checkpoint(step, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return step(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Keep only the maps between blocks while training, and compute the others again.

        Norms then see every batch twice, so their running statistics move as if the momentum were higher. Raises
        UserError for a network without blocks.
        """
        if enable and not self.checkpointed:
            raise UserError(f"{type(self).__name__} has no blocks that could be computed twice: train it without")
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of so many classes, none for 0; ``global_pool`` "avg" or "" where it is to change."""
        self.global_pool = checked_pool(self.global_pool if global_pool is None else global_pool, num_classes)
        self.num_classes = num_classes
        weight = next(self.parameters())
        fresh = classifier(self.head_hidden_size, num_classes)
        setattr(self, self.classifier_name, fresh.to(weight.device, weight.dtype).train(self.training))


class FeatureNet(nn.Module):
    """The steps of a network up to the last place asked for, under their own names: (N, C, H, W) to a list of maps."""

    def __init__(self, network: Backbone, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        places = taken(out_indices, len(network.feature_info))
        self.feature_info = FeatureInfo(network.feature_info[i] for i in places)
        names = [name for name, _ in network.steps()]
        self.order = names[: names.index(self.feature_info[-1].module) + 1]
        for top in dict.fromkeys(name.partition(".")[0] for name in self.order):
            own = [name for name in self.order if name.startswith(f"{top}.")]
            child = network.get_submodule(top)
            assert not own or isinstance(child, nn.Sequential)
            self.add_module(top, child[: len(own)] if isinstance(child, nn.Sequential) and own else child)

    def forward(self, x: Tensor) -> list[Tensor]:
        wanted = set(self.feature_info.module_name())
        found: list[Tensor] = []
        for name in self.order:
            x = self.get_submodule(name)(x)
            if name in wanted:
                found.append(x)
        return found


def taken(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Which of ``count`` places: all, the last so many, or those named, negative ones from the end; in order, at least one.

    Raises UserError where there is no such place.
    """
    if indices is None:
        return list(range(count))
    asked = range(count - indices, count) if isinstance(indices, int) else indices
    fits = 0 < indices <= count if isinstance(indices, int) else bool(asked) and all(-count <= i < count for i in asked)
    if not fits:
        raise UserError(f"out_indices {indices!r} do not fit a network with {count} places, 0 to {count - 1}")
    return sorted({index % count for index in asked})


def classifier(features: int, classes: int) -> nn.Module:
    """A linear layer, or for 0 classes nothing."""
    return nn.Linear(features, classes) if classes > 0 else nn.Identity()


def init_convolutions_(model: nn.Module) -> None:
    """Draw every convolution's weights by He et al. (arXiv:1502.01852), so that gradients keep their size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def checked_pool(name: str, num_classes: int) -> str:
    """The name of a pooling that exists. Raises UserError where it does not, or a classifier would be given maps."""
    if name not in POOLS:
        raise UserError(f"global_pool {name!r} is not known: choose 'avg', or '' for none")
    if not name and num_classes:
        raise UserError(f"without global_pool a classifier of {num_classes} classes has nothing to read: num_classes 0")
    return name
