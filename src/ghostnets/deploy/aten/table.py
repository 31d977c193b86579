# SPDX-License-Identifier: Apache-2.0
"""What each of ATen's operations becomes: a table, and the one function that looks into it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ghostnets.deploy.aten import layers, moves, pools
from ghostnets.deploy.aten.arithmetic import ARITHMETICS, negate, norm
from ghostnets.deploy.aten.builder import Builder, operation_of
from ghostnets.deploy.aten.refusals import USUAL
from ghostnets.deploy.aten.values import Value

Handler = Callable[..., Any]

LAYERS: Mapping[str, Handler] = {
    "conv2d": layers.conv2d,
    "linear": layers.linear,
    "batch_norm": norm,
    "_native_batch_norm_legit_no_training": norm,
    "cat": layers.concat,
    "concat": layers.concat,
    "softmax": layers.softmax,
    "_softmax": layers.softmax,
    "relu": lambda b, x: layers.activated(b, x, "relu"),
    "relu6": lambda b, x: layers.activated(b, x, "relu6"),
    "hardsigmoid": lambda b, x: layers.activated(b, x, "hard_sigmoid"),
    "hardswish": lambda b, x: layers.activated(b, x, "hard_swish"),
    "sigmoid": lambda b, x: layers.activated(b, x, "sigmoid"),
    "silu": lambda b, x: layers.activated(b, x, "silu"),
    "hardtanh": lambda b, x, *, min_val, max_val: layers.clamped(b, x, low=min_val, high=max_val),
    "clamp": lambda b, x, *, min, max: layers.clamped(b, x, low=min, high=max),  # noqa: A006
    "clamp_min": lambda b, x, *, min: layers.clamped(b, x, low=min),  # noqa: A006
    "neg": negate,
    "max_pool2d": pools.max_pool,
    "max_pool2d_with_indices": pools.max_pool_with_indices,
    "avg_pool2d": pools.mean_pool,
    "adaptive_avg_pool2d": pools.adaptive_mean,
    "_adaptive_avg_pool2d": pools.adaptive_mean,
    "adaptive_max_pool2d": pools.adaptive_max,
    "mean": pools.mean,
    "sum": pools.total,
    "amax": pools.greatest,
    "pad": moves.padded,
    "constant_pad_nd": moves.padded,
    "expand_as": moves.expanded,
    **dict.fromkeys(moves.KEPT, moves.kept),
    **dict.fromkeys(moves.DROPPED, moves.dropped),
    **ARITHMETICS,
}

SHAPED = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full empty_like new_empty".split())
"""These read only the shape of a tensor, so they are constants."""

SEVERAL = frozenset((*ARITHMETICS, "cat", "concat", "expand_as", "type_as"))
"""These may read several values."""

UPSAMPLINGS = frozenset(("upsample_nearest2d", "_upsample_nearest_exact2d"))

_NO_RESULT = frozenset("_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range".split())


def translated(b: Builder, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call becomes when its arguments are values, constants and numbers: operations, or a constant.

    Raises UnsupportedLayer where nothing stands for it.
    """
    name = operation_of(node)
    if node.target is operator.getitem:
        return _item(b, *args)
    if name in _NO_RESULT:
        return None
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        raise b.refused("runs code of its own")
    values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
    if not values or name in SHAPED:
        return _constant(b, node.target, args, kwargs)
    given = _named(node.target, args, kwargs)
    first = given.get("x", given.get("tensors"))
    if name in moves.RESHAPES and isinstance(first, Value):
        return first.reshaped(b.site.shape)
    if not {name} & (LAYERS.keys() | moves.MOVES | UPSAMPLINGS):
        raise b.refused()
    if name not in SEVERAL and (len(values) > 1 or values[0] is not first):
        raise b.refused("has weights or places that depend on the image", USUAL)
    if name in UPSAMPLINGS:
        return moves.upsampled(b, values[0], node.target, {key: own for key, own in given.items() if key != "x"})
    if name in moves.MOVES:
        return _moved(values[0], _out_of_place(node.target), args, kwargs)
    return LAYERS[name](b, **given)


def _named(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, those left out too; the tensor that is read is called ``x``."""
    given: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):  # noqa: SLF001 - the one way to know their names
        name = "x" if argument.name in {"self", "input"} else argument.name
        if index < len(args):
            given[name] = args[index]
        elif argument.name in kwargs:
            given[name] = kwargs[argument.name]
        elif argument.has_default_value():
            given[name] = argument.default_value
    return given


def _item(b: Builder, parts: Any, index: int) -> Any:
    part = parts[index]
    if part is None:
        raise b.refused("reads where the greatest values lie", "the nearest is the values alone")
    return part


def _moved(value: Value, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    numbers = value.numbers().contiguous()
    args, kwargs = pytree.tree_map(lambda leaf: numbers if leaf is value else leaf, (args, dict(kwargs)))
    return pytree.tree_map(lambda part: value.of(part) if isinstance(part, Tensor) else part, target(*args, **kwargs))


def _constant(b: Builder, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What does not depend on the image is computed now."""
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise b.refused("draws random numbers", "draw them only while the network trains")

    def real(leaf: Any) -> Any:
        return torch.zeros(leaf.shape) if isinstance(leaf, Value) else leaf

    args, kwargs = pytree.tree_map(real, (args, dict(kwargs)))
    return target(*args, **kwargs)


def _out_of_place(target: Any) -> Any:
    name = target.overloadpacket.__name__
    if not name.endswith("_"):
        return target
    return getattr(getattr(torch.ops.aten, name.rstrip("_")), target._overloadname)  # noqa: SLF001 - the same overload
