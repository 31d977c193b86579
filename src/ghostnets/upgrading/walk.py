# SPDX-License-Identifier: Apache-2.0
"""Two networks side by side on all calibration images, computed step by step, in bounded memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from ghostnets.measure.trace import Env, Trace, compute
from ghostnets.upgrading.calibration import Chunks

MEMORY_LIMIT = 384 << 20  # bytes of kept activations; beyond it they wait on disk
EXACT_LIMIT = 256 << 20  # bytes of activations that would be kept in full; beyond it in half precision
HALF_RANGE = (1e-3, 1e3)  # of the largest value: half precision ends at 65504, and its steps are never below 6e-8


class Walk:
    """Both networks on all chunks, computed as far as they have been asked for.

    Values that some later node still needs are kept, in memory while they are few and on disk beyond that.
    """

    def __init__(self, recorded: Trace, original: nn.Module, student: nn.Module, chunks: Chunks, *, seed: int) -> None:
        self.recorded = recorded
        self.networks = (original, student)
        self.generator = torch.Generator().manual_seed(seed)
        self.done: tuple[set[fx.Node], set[fx.Node]] = (set(), set())
        self.unfitted: set[fx.Node] = set()
        """Layers of the student whose weights are still to come: nothing may be computed through them."""
        self.store = _Store()
        self.sizes: list[int] = []
        """Images in every chunk."""
        try:
            for chunk in chunks():
                self.store.put(len(self.store), ({recorded.input: chunk}, {recorded.input: chunk}))
                self.sizes.append(len(chunk))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove whatever waits on disk."""
        self.store.close()

    def some(self, images: int) -> dict[int, int]:
        """Every so-manieth chunk and how many images it holds: about ``images`` in all, or all there are."""
        every = max(1, sum(self.sizes) // images)
        return {number: size for number, size in enumerate(self.sizes) if number % every == 0}

    def visit(self, student_nodes: list[fx.Node], original_nodes: list[fx.Node]) -> Iterator[tuple[Env, Env]]:
        """Chunk by chunk the values of these nodes in the original and in the student, among others."""
        for number in range(len(self.store)):
            envs = self.store.get(number)
            for env, network, done, wanted in zip(
                envs, self.networks, self.done, (original_nodes, student_nodes), strict=True
            ):
                for node in wanted:
                    _ensure(network, node, env, done)
            yield envs
            for env, done in zip(envs, self.done, strict=True):
                for node in [n for n in env if all(user in done for user in n.users)]:
                    del env[node]
            self.store.put(number, envs)


@torch.no_grad()
def _ensure(network: nn.Module, wanted: fx.Node, env: Env, done: set[fx.Node]) -> None:
    """Compute ``wanted`` and whatever it still lacks."""
    waiting = [wanted]
    while waiting:
        node = waiting[-1]
        missing = [n for n in node.all_input_nodes if n not in env]
        if node in env or not missing:
            if node not in env:
                env[node] = compute(network, node, env)
                done.add(node)
            waiting.pop()
        waiting.extend(missing if node not in env else [])


class _Store:
    """Pairs of environments by number; in half precision, then on disk, as they become too many for memory.

    Half precision rounds to 1 part in 2000: far below the errors that are mostly corrected, but not below those of a
    network that was a Ghost network all along.
    """

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Env, Env]] = {}
        self.sizes: dict[int, int] = {}
        self.folder: Path | None = None
        self.small: dict[fx.Node, bool] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def put(self, number: int, envs: tuple[Env, Env]) -> None:
        first, second = envs
        if _size(envs) * max(len(self), 1) > EXACT_LIMIT:
            first, second = ({node: self._narrow(node, value) for node, value in env.items()} for env in envs)
        self.sizes[number] = _size((first, second))
        held = sum(self.sizes[n] for n in self.kept if n != number)
        if held + self.sizes[number] > MEMORY_LIMIT:
            first, second = self._spill(number, 0, first), self._spill(number, 1, second)
        self.kept[number] = (first, second)

    def _narrow(self, node: fx.Node, value: Any) -> Any:
        """Half precision where the first chunk's values stay far from its limits."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if node not in self.small:
            self.small[node] = HALF_RANGE[0] < float(value.abs().max()) < HALF_RANGE[1]
        return value.half() if self.small[node] else value

    def get(self, number: int) -> tuple[Env, Env]:
        first, second = self.kept[number]
        return {n: _widen(v) for n, v in first.items()}, {n: _widen(v) for n, v in second.items()}

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spill(self, number: int, side: int, env: Env) -> Env:
        """Tensors to one file; what stays behind are handles that read them back."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="ghostnets-walk-"))
        path = self.folder / f"{number}.{side}.safetensors"
        tensors = {str(i): v.contiguous() for i, v in enumerate(env.values()) if isinstance(v, Tensor)}
        save_file(tensors, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)  # what was read from the old file may still be mapped to it
        self.sizes[number] = 0
        return {n: _OnDisk(path, str(i)) if isinstance(v, Tensor) else v for i, (n, v) in enumerate(env.items())}


def _size(envs: tuple[Env, Env]) -> int:
    """Bytes; a tensor that both networks share counts once."""
    tensors = {id(v): v for env in envs for v in env.values() if isinstance(v, Tensor)}
    return sum(v.numel() * v.element_size() for v in tensors.values())


@dataclass(frozen=True)
class _OnDisk:
    path: Path
    key: str


def _widen(value: Any) -> Any:
    if isinstance(value, _OnDisk):
        with safe_open(value.path, framework="pt") as file:
            value = file.get_tensor(value.key)
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
