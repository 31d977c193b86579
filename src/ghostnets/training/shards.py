# SPDX-License-Identifier: Apache-2.0
"""Images in WebDataset shards, tar files read from front to back: local, or streamed from anywhere that wds can open.

A sample is an image (``.jpg``, ``.png``, …) and its label (``.cls``, a number in words) under one name. Every process, and in
it every worker, reads shards of its own, so that the images are never anywhere twice.
"""

from __future__ import annotations

import glob
import io
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ghostnets.errors import MissingExtra, UserError
from ghostnets.training import image_folder
from ghostnets.training.data import Augment
from ghostnets.training.decoding import Cutter, Damaged, loader, why
from ghostnets.training.draw import seed_of
from ghostnets.training.feed import Drawn, Share, digest, steps_per_epoch
from ghostnets.training.recipe import Recipe

BUFFER = 2000
"""Samples that a worker keeps to draw the next one from."""

LABEL = "cls"

BLOCK = 512
"""Bytes; a tar file is made of such blocks, and ends with empty ones (POSIX.1-2017, pax)."""

Read = tuple[Tensor, Tensor, dict[str, str]]
"""Pixels, labels, and why which samples cannot be used."""


def expand(pattern: str) -> tuple[str, ...]:
    """The shards that a name such as ``train-{000..146}.tar`` or ``folder/*.tar`` stands for, in order.

    Raises UserError where there is none, MissingExtra without the library.
    """
    library = _library()
    found = tuple(sorted(glob.glob(pattern)) if "*" in pattern else library.shardlists.expand_urls(pattern))  # noqa: PTH207 - it may be absolute
    missing = [
        shard for shard in found if "://" not in shard and not shard.startswith("pipe:") and not Path(shard).is_file()
    ]
    if missing or not found:
        raise UserError(
            f"there is no shard {missing[0] if missing else pattern}: name tar files, such as train-{{000..146}}.tar"
        )
    return found


@dataclass
class ShardFeed:
    """The samples of some shards."""

    shards: tuple[str, ...]
    count: int | None
    """How many; where nobody says, they are counted once somebody asks."""
    size: tuple[int, int]
    """(H, W)"""
    channels: int
    augment: Augment
    workers: int = 0
    max_bad: int = 0
    told: Callable[[str], None] = lambda _: None
    buffer: int = BUFFER
    damaged: Damaged = field(init=False)

    def __post_init__(self) -> None:
        self.damaged = Damaged(self.max_bad, self.told)

    def __len__(self) -> int:
        if self.count is None:
            self.count = count_samples(self.shards)
        return self.count

    def digest(self, world: int) -> str:
        """Which samples come when depends on who reads them."""
        return digest([Path(shard).name for shard in self.shards], len(self), self.buffer, max(self.workers, 1), world)

    def training(self, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Drawn]:
        """An epoch is as many batches as the samples fill; which samples they hold depends on the number of processes and
        workers, for each of them goes round its own shards.
        """
        steps = steps_per_epoch(len(self), recipe.batch_size)
        self._enough(share)
        local = len(range(recipe.batch_size)[share.of(recipe.batch_size)])
        stream = _Stream(self, share, local, recipe=recipe, seed=seed, start=start)
        for step, (pixels, labels, broken) in enumerate(self._loader(stream, start), start=start):
            self.damaged.add_(broken)
            if not len(labels):
                raise UserError(f"{', '.join(broken)}: not one sample of a whole batch can be used")
            yield Drawn(pixels, labels, step // steps, step % steps, None)

    def testing(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        stream = _Stream(self, share, batch_size, recipe=None, seed=0, start=0)
        for pixels, labels, broken in self._loader(stream, 0):
            self.damaged.add_(broken)
            if len(labels):
                yield pixels, labels

    def _enough(self, share: Share) -> None:
        readers = share.world * max(self.workers, 1)
        if len(self.shards) < readers:
            raise UserError(
                f"{len(self.shards)} shards cannot be shared by {share.world} processes with {max(self.workers, 1)} "
                "readers each: ask for fewer --workers, or cut the set into more shards"
            )

    def _loader(self, stream: _Stream, start: int) -> Iterator[Read]:
        """Batches in the order of the steps: a loader starts with worker 0, wherever the run was."""
        batches: Any = stream
        if self.workers:
            stream.first = start % self.workers
            batches = loader(stream, self.workers)
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def count_samples(shards: Sequence[str]) -> int:
    """How many samples there are, by reading all shards once."""
    return sum(1 for sample in _samples(shards) if LABEL in sample)


class _Stream(IterableDataset[Read | UserError]):
    """The batches one worker makes of its own shards."""

    def __init__(
        self, feed: ShardFeed, share: Share, batch: int, *, recipe: Recipe | None, seed: int, start: int
    ) -> None:
        self.feed, self.share, self.batch, self.recipe, self.seed, self.start = feed, share, batch, recipe, seed, start
        self.cutter = Cutter(feed.size, recipe)
        self.first = 0
        """The worker whose turn the first batch is."""

    def __iter__(self) -> Iterator[Read | UserError]:
        """Batches, and last what went wrong: raised in a worker, it would arrive with the worker's traceback in it."""
        try:
            yield from self._batches()
        except UserError as error:
            yield error

    def _batches(self) -> Iterator[Read]:
        info = get_worker_info()
        place, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        worker = (place + self.first) % workers
        own = self.feed.shards[self.share.rank * workers + worker :: self.share.world * workers]
        skip = self.batch * len(range(worker, self.start, workers))  # samples of this worker before the run stopped
        if self.recipe is None:
            numbered = enumerate(_samples(own))
        else:
            one_pass = sum(1 for _ in _samples(own)) if skip else 0
            passes, rest = divmod(skip, one_pass) if one_pass else (0, 0)
            numbered = islice(enumerate(self._endless(own, passes), start=skip - rest), rest, None)
        while drawn := list(islice(numbered, self.batch)):
            yield self._batch(drawn, worker)

    def _batch(self, drawn: Sequence[tuple[int, dict[str, Any]]], worker: int) -> Read:
        sound: list[tuple[np.ndarray, int] | None] = []
        broken: dict[str, str] = {}
        for number, sample in drawn:
            try:
                opened = partial(_opened, sample, self.feed.channels)
                image = self.cutter(opened, seed_of(self.seed, 4, self.share.rank, worker, number))
                sound.append((image, _label(sample)))
            except Exception as error:  # noqa: BLE001 - decoders raise nearly anything on a damaged file
                sound.append(None)
                name = f"{sample['__url__']}: {sample['__key__']}"
                broken[name] = why(error)
        found = [pair for pair in sound if pair is not None]
        if (
            self.recipe is not None and found
        ):  # a sound one fills the place, so that a run can be gone on with by counting
            found = [pair or found[0] for pair in sound]
        shape = (0, self.feed.channels, *self.feed.size)
        pixels = np.stack([image for image, _ in found]) if found else np.zeros(shape, dtype=np.uint8)
        return torch.from_numpy(pixels), torch.tensor([label for _, label in found], dtype=torch.long), broken

    def _endless(self, shards: Sequence[str], epoch: int) -> Iterator[dict[str, Any]]:
        """Round and round the shards from a pass on, in another order every time, through a buffer that samples are drawn
        from; every pass has all of them.
        """
        while True:
            numbers = random.Random(seed_of(self.seed, 5, self.share.rank, epoch))  # noqa: S311 - no secret
            order = list(shards)
            numbers.shuffle(order)
            waiting: list[dict[str, Any]] = []
            empty = True
            for sample in _samples(order):
                empty = False
                waiting.append(sample)
                if len(waiting) > self.feed.buffer:
                    k = numbers.randrange(len(waiting))
                    waiting[k], waiting[-1] = waiting[-1], waiting[k]
                    yield waiting.pop()
            numbers.shuffle(waiting)
            yield from waiting
            if empty:
                raise UserError(f"{', '.join(shards)} hold no sample: an image and its .cls under one name")
            epoch += 1


def _opened(sample: dict[str, Any], channels: int) -> Image.Image:
    suffix = next((key for key in sample if f".{key}" in image_folder.SUFFIXES), None)
    if suffix is None:
        raise ValueError("it has no image")
    return image_folder.open_image(io.BytesIO(sample[suffix]), channels)


def _label(sample: dict[str, Any]) -> int:
    text = sample.get(LABEL, b"").decode("utf-8", "replace").strip()
    if re.fullmatch(r"\d+", text) is None:
        raise ValueError(f"its label {text!r} is no number")
    return int(text)


def _samples(shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every sample of the shards, its files by their suffixes. Raises UserError where a shard cannot be read."""
    library = _library()
    for shard in shards:
        try:
            yield from library.tariterators.group_by_keys(_files(shard))
        except Exception as error:  # the library has many kinds, all of them "could not be read"
            said = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
            said = " ".join(str(said).partition(" @ ")[0].split())  # behind it, the library tells what it read from
            raise UserError(f"{shard} cannot be read as a tar file of samples: {said}") from error


def _files(shard: str) -> Iterator[dict[str, Any]]:
    """Every file of the shard. Raises nearly anything where it cannot be read, or is not whole."""
    library = _library()
    stream = library.gopen(shard)
    try:
        whole = _Whole(stream)
        yield from library.tariterators.tar_file_expander([{"url": shard, "stream": whole}], eof_value=None)
        whole.finish()
        stream.close()  # a command that failed says so here
    finally:
        with suppress(Exception):  # a command whose output nobody reads to the end may say anything
            stream.close()


class _Whole:
    """What a shard is read through, to see whether it ends as a tar file does: the library takes one that was cut off
    between two files, or in the head of one, for a shorter one.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.head, self.tail = stream, b"", b""

    def read(self, size: int) -> bytes:
        found = self.stream.read(size)
        self.head = self.head or found[:BLOCK]
        self.tail = (self.tail + found)[-BLOCK:]
        return found

    def finish(self) -> None:
        """Read the rest. Raises EOFError where the last block is not empty; a compressed file knows its end itself."""
        while self.read(20 * BLOCK):
            pass
        if self.head[257:262] == b"ustar" and self.tail.strip(b"\0"):
            raise EOFError("unexpected end of data")


def _library() -> Any:
    try:
        import webdataset
    except ImportError:
        raise MissingExtra("WebDataset shards", "webdataset") from None
    return webdataset
