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

from torch import nn

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
    ``num_classes`` is asked for, the classifier starts anew. ``checkpoint_path`` is any file that ``load_weights``
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


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:  # noqa: A002, FBT001, FBT002 - timm's signature
    """The architectures whose names match ``filter`` (``*``, ``?``, ``[…]``), or with ``pretrained`` the trained ones."""
    names = [name for name in (TRAINED if pretrained else BUILDERS) if fnmatch.fnmatchcase(name, filter or "*")]
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
    """Timm's words for what a network is and, where its name stands for weights, for the images these expect."""
    first = next(key for key, module in model.named_modules() if isinstance(module, nn.Conv2d))
    architecture, _, tag = name.partition(".")
    known = {"architecture": architecture, "tag": tag, "classifier": model.classifier_name, "first_conv": first}
    if row is None:
        return {**known, "num_classes": model.num_classes, "input_size": (3, *model.input_size)}
    rest = {"mean": row.mean, "std": row.std, "license": row.license, "num_classes": len(row.classes)}
    size = (row.in_chans, *row.input_size)
    if isinstance(row, Weights):
        return {**known, **rest, "input_size": size}
    published = {"crop_pct": row.crop, "interpolation": row.interpolation, "input_size": size, "url": row.origin}
    return {**known, **rest, **published, **({"hf_hub_id": row.repository} if row.repository else {})}


def _build(architecture: str, given: Mapping[str, Any]) -> Backbone:
    builder = BUILDERS[architecture]
    known = inspect.signature(builder).parameters  # without the depth, which is bound already
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{architecture} has no option {key!r}: it takes {', '.join(known)}")
        if key in {"num_classes", "in_chans"} and (not isinstance(value, int) or value < 1):
            raise UserError(f"{key} {value!r} of {architecture} must be a whole number of at least 1")
    return builder(**given)


def _fill_from(row: Weights | Published, model: nn.Module, given: Mapping[str, Any]) -> None:
    if given["in_chans"] != row.in_chans:
        raise UserError(
            f"the weights of {row.architecture} were trained on {row.in_chans} channels, and in_chans "
            f"{given['in_chans']} was asked"
        )
    path = row.path
    tensors = read_weights(path)
    if given["num_classes"] != len(row.classes):
        tensors |= {key: value for key, value in model.state_dict().items() if key.startswith(f"{row.classifier}.")}
    fill(model, tensors, str(path))
