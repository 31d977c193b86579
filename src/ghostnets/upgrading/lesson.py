# SPDX-License-Identifier: Apache-2.0
"""What is asked of the student: on every batch, to give the original's values at the end of its blocks, and its answers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostnets.measure.trace import Env, Trace, compute

STRIDE = 2
"""One block in so many is compared, the next ones at the next turn: neighbours err much alike, and comparing all of them
takes a tenth of the time."""


NO_LABEL = -1
"""In the place of a label: nobody knows what the image shows, or it shows two things at once."""


class Lesson:
    """The original's side of a recovery: its values on a batch, and how far the student is from them.

    Loss = ``blocks`` · mean over blocks of (squared error / variance) + ``answers`` · mean over images of the divergence
    of the student's answer from the right one: the label where an image has one, else the original's own softmax. The
    variances are the original's on the ``example`` (N, C, H, W).
    """

    def __init__(
        self,
        recorded: Trace,
        original: nn.Module,
        example: Tensor,
        *,
        blocks: float,
        answers: float,
        stride: int = STRIDE,
    ) -> None:
        self.recorded = recorded
        self.original = original.requires_grad_(False)
        self.blocks, self.answers = blocks, answers
        self.stride = stride
        self.joints = block_outputs(recorded) if blocks else ()
        self.sums = frozenset(node for node in recorded.nodes if _ends_sum(node, recorded))
        with torch.no_grad():
            _, values = self._forward(self.original, example, self.joints)
        self.spread = {node: max(float(value.float().var()), 1e-12) for node, value in values.items()}

    def loss(self, student: nn.Module, x: Tensor, labels: Tensor, turn: int) -> Tensor:
        """Of a normalised batch (N, C, H, W) and its labels (N,), ``NO_LABEL`` where an image has none.

        The number of the ``turn`` decides which blocks are compared.
        """
        joints = self.joints[turn % self.stride :: self.stride] or self.joints
        with torch.no_grad():
            wanted, targets = self._forward(self.original, x, joints)
        logits, values = self._forward(student, x, joints)
        loss = logits.new_zeros(())
        for node in joints:
            weight = self.blocks / len(joints) / self.spread[node] / targets[node].numel()
            loss = loss + weight * squared_error(values[node], targets[node])
        if self.answers:
            loss = loss + self.answers * divergence(logits, labels, wanted)
        return loss

    def _forward(
        self, network: nn.Module, x: Tensor, joints: Sequence[fx.Node]
    ) -> tuple[Tensor, dict[fx.Node, Tensor]]:
        """Logits in float32, and the value of every joint; others are forgotten as soon as nobody needs them."""
        env: Env = {self.recorded.input: x}
        waiting = {node: len(node.users) + (node in joints) for node in self.recorded.nodes}
        for node in self.recorded.nodes[1:-1]:
            sources = node.all_input_nodes
            if node in self.sums and waiting[sources[0]] == 1:
                env[node] = env[sources[0]].relu_()  # nobody else reads the sum, nor does its gradient
            else:
                env[node] = compute(network, node, env)
            for source in sources:
                waiting[source] -= 1
                if not waiting[source]:
                    del env[source]
        return env[self.recorded.output].float(), {node: env[node] for node in joints}


def divergence(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Kullback–Leibler, in nats an image, from the label where there is one, else from the softmax of ``wanted`` (N, K)."""
    told = labels != NO_LABEL
    by_label = F.cross_entropy(logits[told], labels[told], reduction="sum")
    by_original = F.kl_div(logits[~told].log_softmax(1), wanted[~told].log_softmax(1), log_target=True, reduction="sum")
    return (by_label + by_original) / len(logits)


def _ends_sum(node: fx.Node, recorded: Trace) -> bool:
    """Whether this is the ReLU of a sum of two maps of one shape."""
    if not isinstance(recorded.module_of(node), nn.ReLU):
        return False
    (sum_,) = node.all_input_nodes
    shapes = {recorded.shapes.get(n) for n in (sum_, *sum_.all_input_nodes)}
    return sum_.target is operator.add and len(shapes) == 1


class _SquaredError(torch.autograd.Function):
    """Half-precision maps in, float32 sum out, three passes over memory in all; the built-in one takes nine."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, wanted: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        difference = made - wanted
        ctx.save_for_backward(difference)
        # Without naming float32, in which it is summed up all the same: that would convert the whole map before.
        return torch.linalg.vector_norm(difference).float().square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        return difference * (2 * grad).to(difference.dtype), None


def squared_error(made: Tensor, wanted: Tensor) -> Tensor:
    """The sum of squared differences; gradients reach ``made`` alone."""
    return _SquaredError.apply(made, wanted)  # pyright: ignore[reportReturnType]


def block_outputs(recorded: Trace) -> tuple[fx.Node, ...]:
    """The maps that everything after them is made from, and that a convolution or the head reads: block by block.

    A node is one if, once it is computed, no earlier value is needed any more.
    """
    done: set[fx.Node] = set()
    alive: set[fx.Node] = set()
    found: list[fx.Node] = []
    for node in recorded.nodes[:-1]:
        done.add(node)
        alive = {n for n in alive | {node} if any(user not in done for user in n.users)}
        is_map = node in recorded.shapes and len(recorded.shapes[node]) == 4 and node is not recorded.input
        if (
            alive == {node}
            and is_map
            and not any(isinstance(recorded.module_of(u), nn.BatchNorm2d) for u in node.users)
        ):
            if len(node.users) == 1 and _is_activation(next(iter(node.users)), recorded):
                continue
            found.append(node)
    return tuple(found)


def _is_activation(node: fx.Node, recorded: Trace) -> bool:
    return (
        len(node.all_input_nodes) == 1 and "relu" in f"{node.target} {type(recorded.module_of(node)).__name__}".lower()
    )
