# SPDX-License-Identifier: Apache-2.0
"""Every network by name: a dict of builders, and of those the ones that come trained."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.models import ghostnet, regnet, resnet, vgg
from ghostnets.models.backbone import Backbone, FeatureNet
from ghostnets.models.published import PUBLISHED, Published
from ghostnets.models.weights import WEIGHTS, Weights, fill, load_weights, read_weights

BUILDERS: Mapping[str, Callable[..., Backbone]] = {
    **ghostnet.BUILDERS,
    **regnet.BUILDERS,
    **resnet.BUILDERS,
    **vgg.BUILDERS,
}
"""Architecture -> what builds it from ``num_classes``, ``in_chans`` and its own keywords."""

TRAINED: Mapping[str, Weights | Published] = {**WEIGHTS, **PUBLISHED}
"""Name with tag -> its weights: those in the package, and those that others have published."""


@overload
def create_model(
    name: str,
    pretrained: bool = False,  # noqa: FBT001, FBT002 - timm's signature
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    checkpoint_path: str | Path | None = None,
    features_only: Literal[False] = False,
    **kwargs: Any,
) -> Backbone: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,  # noqa: FBT001, FBT002 - timm's signature
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    checkpoint_path: str | Path | None = None,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> FeatureNet: ...


def create_model(
    name: str,
    pretrained: bool = False,  # noqa: FBT001, FBT002 - timm's signature
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    checkpoint_path: str | Path | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> Backbone | FeatureNet:
    """The network of that name, ``architecture`` or ``architecture.tag``, in train mode.

    A tag brings the classes and channels of its weights, ``pretrained`` the weights themselves; where another
    ``num_classes`` is asked for, the classifier starts anew (0: there is none), and where other ``in_chans``, the first
    convolution is fitted to them. ``checkpoint_path`` is any file that ``load_weights``
    reads. With ``features_only`` it ends before the head and gives the last maps of every size, or those of
    ``out_indices``, the finest first. Keywords go to the builder, those that are None left out.

    Raises UserError where a name, a keyword or a file does not fit.
    """
    trained = _trained(name, pretrained=pretrained)
    row = TRAINED[trained] if trained is not None else None
    if pretrained and checkpoint_path is not None:
        raise UserError("a network takes its weights from the package (pretrained) or from checkpoint_path, not both")
    asked = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    given = {key: value for key, value in asked.items() if value is not None}
    if row is not None:
        given = {"num_classes": len(row.classes), "in_chans": row.in_chans, **given}
    model = _build(name.partition(".")[0], given)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    if pretrained:
        assert row is not None
        _fill_from(row, model, given)
    model.pretrained_cfg = _described(trained or name, model, row)
    model.model_args = {key: value for key, value in given.items() if key not in {"num_classes", "in_chans"}}
    if features_only:
        return FeatureNet(model, out_indices)
    if out_indices is not None:
        raise UserError(f"out_indices {out_indices!r} belong to features_only=True, which is not asked for")
    return model


def list_models(
    filter: str | Sequence[str] = "",  # noqa: A002 - timm's name
    pretrained: bool = False,  # noqa: FBT001, FBT002 - timm's signature
    exclude_filters: str | Sequence[str] = "",
) -> list[str]:
    """The architectures whose names match ``filter`` (``*``, ``?``, ``[…]``; several: any of them), or with ``pretrained``
    the trained ones; a filter without a tag matches all tags. Less those that match ``exclude_filters``.
    """

    def matches(name: str, patterns: str | Sequence[str]) -> bool:
        wanted = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch.fnmatchcase(own, p) for p in wanted for own in (name, name.partition(".")[0]))

    names = [
        name for name in (TRAINED if pretrained else BUILDERS)
        if matches(name, filter or "*") and not (exclude_filters and matches(name, exclude_filters))
    ]  # fmt: skip
    return sorted(names, key=lambda name: [(part.isdigit(), part.zfill(6)) for part in re.split(r"(\d+)", name)])


def _trained(name: str, *, pretrained: bool) -> str | None:
    """The weights a name stands for. A name without a tag stands for the first trained ones of its architecture."""
    if name in TRAINED:
        return name
    if name not in BUILDERS:
        known = [*BUILDERS, *TRAINED]
        close = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"ghostnets list names all {len(BUILDERS)}"
        raise UserError(f"there is no network {name!r}: {hint}")
    if not pretrained:
        return None
    trained = [tagged for tagged, row in TRAINED.items() if row.architecture == name]
    if not trained:
        raise UserError(f"{name} does not come trained; these do: {', '.join(list_models(pretrained=True))}")
    return trained[0]


def _described(name: str, model: Backbone, row: Weights | Published | None) -> dict[str, Any]:
    """Timm's words for what a network is, and for the images its weights expect: those its name stands for, else those
    that others have published for it.
    """
    first, conv = first_convolution(model)
    architecture, _, tag = name.partition(".")
    known = {
        "architecture": architecture, "tag": tag, "classifier": model.classifier_name, "first_conv": first,
        "num_classes": model.num_classes, "input_size": (conv.in_channels, *model.input_size),
    }  # fmt: skip
    shown = row or next((r for r in PUBLISHED.values() if r.architecture == architecture), None)
    if shown is None:
        return known
    images = {"mean": shown.mean, "std": shown.std, "crop_pct": shown.crop, "interpolation": shown.interpolation}
    if row is None:
        return {**known, **images}
    about = {
        "license": row.license, "num_classes": len(row.classes), "input_size": (row.in_chans, *row.input_size),
    }  # fmt: skip
    if isinstance(row, Weights):
        return {**known, **images, **about}
    return {**known, **images, **about, "url": row.origin, **({"hf_hub_id": row.repository} if row.repository else {})}


def _build(architecture: str, given: Mapping[str, Any]) -> Backbone:
    builder = BUILDERS[architecture]
    known = inspect.signature(builder).parameters  # without the depth, which is bound already
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{architecture} has no option {key!r}: it takes {', '.join(known)}")
        least = {"num_classes": 0, "in_chans": 1}.get(key)
        if least is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"{key} {value!r} of {architecture} must be a whole number of at least {least}")
    return builder(**given)


def _fill_from(row: Weights | Published, model: nn.Module, given: Mapping[str, Any]) -> None:
    """The row's weights; a classifier of other classes stays as it was drawn, a first convolution reads other channels."""
    path = row.path
    tensors = read_weights(path)
    if given["num_classes"] != len(row.classes):
        own = {key: value for key, value in model.state_dict().items() if key.startswith(f"{row.classifier}.")}
        tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{row.classifier}.")} | own
    if given["in_chans"] != row.in_chans:
        first, _ = first_convolution(model)
        tensors[f"{first}.weight"] = for_channels(tensors[f"{first}.weight"], given["in_chans"])
    fill(model, tensors, str(path))


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that reads the image."""
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight (out, in, k, k) for another number of image channels, as timm has it: for grey images
    the sum, else the filters over and over, weaker by as much as there are more channels.
    """
    weight = weight.float()
    if channels == 1:
        return weight.sum(1, keepdim=True)
    have = weight.shape[1]
    return weight.repeat(1, -(-channels // have), 1, 1)[:, :channels] * (have / channels)
