# SPDX-License-Identifier: Apache-2.0
"""Photographs decoded by workers: every picture shows its number, so that what came can be counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from ghostnets.errors import MissingExtra, UserError
from ghostnets.training.data import Augment
from ghostnets.training.decoding import RATIO, random_box
from ghostnets.training.draw import seed_of
from ghostnets.training.feed import Drawn, Share, places
from ghostnets.training.image_folder import decode_image
from ghostnets.training.pictures import FilePictures, HubPictures, PictureFeed, labels_of, load_hub
from ghostnets.training.recipe import Recipe

SIZE = (6, 5)
ALONE = Share()

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores is what is tested
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forks, from 3.12 on
]


def numbered(root: Path, count: int, side: int = 8) -> FilePictures:
    """The k-th picture is the colour (k, 2 k, 3 k) everywhere, and its label is 100 + k."""
    files: list[tuple[Path, int]] = []
    for k in range(count):
        path = root / f"{k:02}.png"
        Image.fromarray(np.full((side, side, 3), (k, 2 * k, 3 * k), np.uint8)).save(path)
        files.append((path, 100 + k))
    return FilePictures(files, 3)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> FilePictures:
    return numbered(tmp_path_factory.mktemp("ten"), 10)


def feed(pictures: FilePictures | HubPictures, **options: Any) -> PictureFeed:
    return PictureFeed(pictures, SIZE, Augment(padding=0, flip=False), **options)


def shown(pixels: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """The numbers of the pictures in a batch, after all their pixels and their labels have been found to agree."""
    numbers = labels - 100
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (len(labels), 3, *SIZE)
    colours = numbers[:, None] * torch.tensor([1, 2, 3])
    assert torch.equal(pixels.long(), colours[:, :, None, None].expand(pixels.shape))
    return numbers.tolist()


def drawn(
    pictures: FilePictures, batch: int = 4, share: Share = ALONE, *, steps: int, start: int = 0, seed: int = 3,
    recipe: Recipe | None = None, **options: Any,
) -> list[Drawn]:  # fmt: skip
    recipe = recipe or Recipe(batch_size=batch)
    return list(islice(feed(pictures, **options).training(recipe, share, seed=seed, start=start), steps))


def damage(pictures: FilePictures, *numbers: int) -> None:
    for number in numbers:
        path = pictures.files[number][0]
        path.write_bytes(path.read_bytes()[:40])


def one_sentence(text: str) -> bool:
    return "\n" not in text and "Traceback" not in text


# --- training


@pytest.mark.parametrize("workers", range(5))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_picture_of_the_whole_batches_comes_once_an_epoch(ten: FilePictures, world: int, workers: int) -> None:
    batches = [
        (one.epoch, one.step, number)
        for rank in range(world)
        for one in drawn(ten, 4, Share(rank, world), steps=4, workers=workers)
        for number in shown(one.pixels, one.labels)
    ]
    expected = [
        (place.epoch, place.step, number)
        for place in islice(places(10, Recipe(batch_size=4), Share(), seed=3, start=0), 4)
        for number in place.index.tolist()
    ]
    assert sorted(batches) == sorted(expected)
    for epoch in (0, 1):
        seen = [number for e, _, number in batches if e == epoch]
        assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_draws_the_same(ten: FilePictures, workers: int) -> None:
    recipe = Recipe(batch_size=4, scale=(0.3, 1))
    alone = drawn(ten, recipe=recipe, steps=5)
    helped = drawn(ten, recipe=recipe, steps=5, workers=workers)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert one.index is not None
        assert other.index is not None
        assert torch.equal(one.index, other.index)
        assert (one.epoch, one.step) == (other.epoch, other.step)


@pytest.fixture
def noise(tmp_path: Path) -> FilePictures:
    """Pictures of which every crop is another."""
    source = np.random.default_rng(0)
    files: list[tuple[Path, int]] = []
    for k in range(6):
        Image.fromarray(source.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        files.append((tmp_path / f"{k}.png", k))
    return FilePictures(files, 3)


@pytest.mark.parametrize("start", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_where_it_stopped(noise: FilePictures, start: int, workers: int) -> None:
    recipe = Recipe(batch_size=3, scale=(0.2, 0.8))
    through = drawn(noise, recipe=recipe, steps=start + 2)
    resumed = drawn(noise, recipe=recipe, steps=2, start=start, workers=workers)
    for one, other in zip(through[start:], resumed, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert (one.epoch, one.step) == (other.epoch, other.step)


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_shares_side_by_side_are_the_batch_of_one(noise: FilePictures, world: int) -> None:
    recipe = Recipe(batch_size=5, scale=(0.2, 0.8))
    alone = drawn(noise, recipe=recipe, steps=3)
    shared = [drawn(noise, recipe=recipe, share=Share(rank, world), steps=3) for rank in range(world)]
    for k, whole in enumerate(alone):
        assert torch.equal(torch.cat([process[k].pixels for process in shared]), whole.pixels)
        assert torch.equal(torch.cat([process[k].labels for process in shared]), whole.labels)


def test_every_epoch_cuts_out_something_else(noise: FilePictures) -> None:
    epochs = drawn(noise, recipe=Recipe(batch_size=6, scale=(0.2, 0.8)), steps=4)
    first = torch.stack([one.pixels[one.labels == 0][0] for one in epochs])
    assert len({tuple(image.flatten().tolist()) for image in first}) == 4


def test_what_is_cut_out_fills_the_image(tmp_path: Path) -> None:
    # A horizontal and a vertical ramp: what a pixel shows is where it came from.
    ramp = np.zeros((200, 160, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(160)[None, :], np.arange(200)[:, None]
    files = [(tmp_path / f"{k}.png", k) for k in range(8)]
    for path, _ in files:
        Image.fromarray(ramp).save(path)
    scale = (0.1, 0.5)
    (one,) = drawn(FilePictures(files, 3), recipe=Recipe(batch_size=8, scale=scale), steps=1, seed=7)
    for pixels, label in zip(one.pixels.double(), one.labels.tolist(), strict=True):
        left, top, right, bottom = random_box((160, 200), scale, np.random.default_rng(seed_of(7, 4, 0, label)))
        across = left + (right - left) * (torch.arange(SIZE[1]) + 0.5) / SIZE[1] - 0.5
        down = top + (bottom - top) * (torch.arange(SIZE[0]) + 0.5) / SIZE[0] - 0.5
        assert float((pixels[0] - across).abs().max()) <= 4  # at the edge of the picture the filter has but one side
        assert float((pixels[1] - down[:, None]).abs().max()) <= 4


def test_without_a_scale_pictures_are_trained_on_as_they_are_tested(noise: FilePictures) -> None:
    (one,) = drawn(noise, recipe=Recipe(batch_size=6), steps=1)
    for pixels, label in zip(one.pixels, one.labels.tolist(), strict=True):
        expected = decode_image(noise.files[label][0], size=SIZE, channels=3, rescale=True)
        assert (pixels.numpy() == expected).all()


def test_rand_augment_changes_what_is_cut_out_and_nothing_that_is_tested(noise: FilePictures) -> None:
    pytest.importorskip("torchvision")
    plain, changed = (drawn(noise, recipe=Recipe(batch_size=6, aa=aa), steps=1)[0] for aa in (None, "rand-m9-n2"))
    again = drawn(noise, recipe=Recipe(batch_size=6, aa="rand-m9-n2"), steps=1, workers=2)[0]
    assert not torch.equal(plain.pixels, changed.pixels)
    assert torch.equal(changed.pixels, again.pixels)


# --- testing


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_is_tested_once_and_in_order(ten: FilePictures, world: int, workers: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        for pixels, labels in feed(ten, workers=workers).testing(3, Share(rank, world)):
            assert 1 <= len(labels) <= 3
            seen += shown(pixels, labels)
    assert seen == list(range(10))


def test_pictures_are_tested_as_a_folder_is_read(noise: FilePictures) -> None:
    ((pixels, labels),) = feed(noise, crop=0.7, interpolation="bicubic").testing(10, Share())
    assert labels.tolist() == list(range(6))
    for image, (path, _) in zip(pixels, noise.files, strict=True):
        expected = decode_image(path, size=SIZE, channels=3, crop=0.7, interpolation="bicubic", rescale=True)
        assert (image.numpy() == expected).all()


def test_grey_pictures_have_one_channel(ten: FilePictures) -> None:
    ((pixels, _),) = feed(FilePictures(ten.files, 1)).testing(10, Share())
    assert pixels.shape == (10, 1, *SIZE)


def test_fewer_pictures_than_processes_are_tested_once(tmp_path: Path) -> None:
    two = feed(numbered(tmp_path, 2))
    assert [shown(*batch) for rank in range(3) for batch in two.testing(4, Share(rank, 3))] == [[0], [1]]


# --- the rectangle that is cut out

SCALES = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair)))


@given(st.integers(1, 500), st.integers(1, 500), SCALES, st.integers(0, 2**32))
def test_the_box_lies_inside_the_image(width: int, height: int, scale: tuple[float, float], seed: int) -> None:
    left, top, right, bottom = random_box((width, height), scale, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(st.integers(60, 500), st.integers(60, 500), SCALES, st.integers(0, 2**32))
def test_the_box_has_a_share_and_a_form_that_were_asked_for(
    width: int, height: int, scale: tuple[float, float], seed: int
) -> None:
    left, top, right, bottom = random_box((width, height), scale, np.random.default_rng(seed))
    w, h = right - left, bottom - top
    assert (w - 0.5) / (h + 0.5) <= RATIO[1]  # each side is rounded
    assert (w + 0.5) / (h - 0.5) >= RATIO[0]
    assert (w - 0.5) * (h - 0.5) <= scale[1] * width * height or (w, h) == _largest(width, height)
    assert (w + 0.5) * (h + 0.5) >= scale[0] * width * height or (w, h) == _largest(width, height)


def _largest(width: int, height: int) -> tuple[int, int]:
    """The largest rectangle in the middle that is neither too wide nor too high: what is left when no draw fits."""
    if width / height > RATIO[1]:
        return round(height * RATIO[1]), height
    if width / height < RATIO[0]:
        return width, round(width / RATIO[0])
    return width, height


@pytest.mark.parametrize("size", [(100, 400), (400, 100), (300, 250)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    width, height = size
    scale, blank = (0.08, 1.0), torch.empty(3, height, width)
    theirs: list[tuple[float, ...]] = []
    for _ in range(1500):
        top, left, h, w = transforms.RandomResizedCrop.get_params(blank, scale, RATIO)
        theirs.append((w * h / (width * height), math.log(w / h), left / width, top / height))
    numbers = np.random.default_rng(0)
    ours: list[tuple[float, ...]] = []
    for _ in range(1500):
        left, top, right, bottom = random_box(size, scale, numbers)
        w, h = right - left, bottom - top
        ours.append((w * h / (width * height), math.log(w / h), left / width, top / height))
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        found: Any = stats.ks_2samp(mine, other)
        assert found.pvalue > 0.001  # of equal distributions, one test in a thousand falls below


@pytest.mark.parametrize("size", [(100, 900), (900, 100), (37, 400)])
def test_where_nothing_fits_the_middle_is_torchvisions(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    top, left, h, w = transforms.RandomResizedCrop.get_params(torch.empty(3, size[1], size[0]), (1.0, 1.0), RATIO)
    assert random_box(size, (1.0, 1.0), np.random.default_rng(0)) == (left, top, left + w, top + h)
    assert (w, h) == _largest(*size)


# --- damaged pictures


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_told_once_and_replaced_by_the_next(tmp_path: Path, workers: int) -> None:
    pictures = numbered(tmp_path, 10)
    damage(pictures, 4)
    told: list[str] = []
    damaged = feed(pictures, max_bad=1, told=told.append, workers=workers)
    batches = list(islice(damaged.training(Recipe(batch_size=5), Share(), seed=0, start=0), 6))
    assert len(told) == 1
    assert one_sentence(told[0])
    assert f"{pictures.files[4][0]} cannot be decoded (" in told[0]
    assert list(damaged.damaged.reasons) == [str(pictures.files[4][0])]
    for one in batches:
        assert one.index is not None
        assert shown(one.pixels, one.labels) == [5 if k == 4 else k for k in one.index.tolist()]


def test_the_last_picture_is_replaced_by_the_first(tmp_path: Path) -> None:
    pictures = numbered(tmp_path, 4)
    damage(pictures, 3)
    (one,) = drawn(pictures, 4, steps=1, max_bad=1)
    assert sorted(shown(one.pixels, one.labels)) == [0, 0, 1, 2]


def test_a_missing_picture_counts_as_damaged(tmp_path: Path) -> None:
    pictures = numbered(tmp_path, 4)
    pictures.files[1][0].unlink()
    told: list[str] = []
    drawn(pictures, 4, steps=1, max_bad=1, told=told.append)
    assert len(told) == 1
    assert "No such file" in told[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_damaged_picture_too_many_ends_the_run_and_names_them(tmp_path: Path, workers: int) -> None:
    pictures = numbered(tmp_path, 10)
    damage(pictures, 2, 7, 8)
    with pytest.raises(UserError, match="3 images cannot be decoded, and --max-bad allows 2") as caught:
        drawn(pictures, 5, steps=4, max_bad=2, workers=workers)
    assert all(str(pictures.files[k][0]) in str(caught.value) for k in (2, 7, 8))
    assert one_sentence(str(caught.value))


def test_no_damaged_picture_is_allowed_unless_asked_for(tmp_path: Path) -> None:
    pictures = numbered(tmp_path, 4)
    damage(pictures, 0)
    with pytest.raises(UserError, match=r"1 images cannot be decoded, and --max-bad allows 0: .*00\.png"):
        drawn(pictures, 4, steps=1)


def test_a_long_row_of_damaged_pictures_is_skipped_too(tmp_path: Path) -> None:
    """As a copy leaves them that stopped when the disk was full."""
    pictures = numbered(tmp_path, 18)
    damage(pictures, *range(3, 18))
    skipping = feed(pictures, max_bad=15)
    batches = list(islice(skipping.training(Recipe(batch_size=6), Share(), seed=0, start=0), 3))
    for one in batches:
        assert one.index is not None
        assert shown(one.pixels, one.labels) == [k if k < 3 else 0 for k in one.index.tolist()]
    assert sorted(skipping.damaged.reasons) == [str(pictures.files[k][0]) for k in range(3, 18)]


@pytest.mark.parametrize("workers", [0, 1])
def test_where_every_picture_is_damaged_nothing_can_be_learned(tmp_path: Path, workers: int) -> None:
    pictures = numbered(tmp_path, 4)
    damage(pictures, *range(4))
    with pytest.raises(UserError, match="not one of 4 images can be decoded") as caught:
        drawn(pictures, 4, steps=1, max_bad=100, workers=workers)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_not_tested_and_every_other_is_once(tmp_path: Path, workers: int) -> None:
    pictures = numbered(tmp_path, 7)
    damage(pictures, 0, 1, 5)
    told: list[str] = []
    damaged = feed(pictures, max_bad=3, told=told.append, workers=workers)
    assert [k for batch in damaged.testing(2, Share()) for k in shown(*batch)] == [2, 3, 4, 6]
    assert len(told) == 3


def test_a_damaged_picture_is_counted_once_however_often_it_is_drawn(tmp_path: Path) -> None:
    pictures = numbered(tmp_path, 4)
    damage(pictures, 2)
    told: list[str] = []
    drawn(pictures, 4, steps=10, max_bad=1, told=told.append)
    assert len(told) == 1


# --- sets of the hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library datasets, which sees no network and keeps its files in the test's folder."""
    library = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


def hub_folder(library: Any, root: Path, count: int, *, labelled: bool = True) -> Path:
    images = [Image.fromarray(np.full((8, 8, 3), (k, 2 * k, 3 * k), np.uint8)) for k in range(count)]
    columns: dict[str, Any] = {"picture": images}
    kinds: dict[str, Any] = {"picture": library.Image()}
    if labelled:
        columns["kind"] = [100 + k for k in range(count)]
        kinds["kind"] = library.ClassLabel(names=[f"class {k}" for k in range(100 + count)])
    root.mkdir()
    library.Dataset.from_dict(columns, features=library.Features(kinds)).to_parquet(root / "train.parquet")
    return root


def test_a_set_of_the_hub_is_a_set_of_pictures(offline: Any, tmp_path: Path) -> None:
    found, image, label = load_hub(str(hub_folder(offline, tmp_path / "set", 6)))
    assert (image, label) == ("picture", "kind")
    pictures = HubPictures(found["train"], image, labels_of(found["train"], label), 3)
    assert len(pictures) == 6
    assert pictures.name(4) == "image 4"
    assert [pictures.label(k) for k in range(6)] == [100 + k for k in range(6)]
    seen = [k for batch in feed(pictures, workers=2).testing(4, Share()) for k in shown(*batch)]
    assert seen == list(range(6))


def test_a_damaged_image_of_a_set_of_the_hub_is_skipped(offline: Any, tmp_path: Path) -> None:
    found, image, label = load_hub(str(hub_folder(offline, tmp_path / "set", 4)))
    rows = [dict(row) for row in found["train"]]
    rows[1][image] = {"bytes": b"nothing", "path": None}
    told: list[str] = []
    damaged = feed(HubPictures(rows, image, labels_of(found["train"], label), 3), max_bad=1, told=told.append)
    assert [k for batch in damaged.testing(4, Share()) for k in shown(*batch)] == [0, 2, 3]
    assert [sentence[:27] for sentence in told] == ["image 1 cannot be decoded ("]


def test_a_set_of_the_hub_whose_images_are_files_is_read(ten: FilePictures) -> None:
    rows = [{"image": {"bytes": None, "path": str(path)}, "label": label} for path, label in ten.files]
    pictures = HubPictures(rows, "image", np.array([row["label"] for row in rows]), 3)
    seen = [k for batch in feed(pictures).testing(4, Share()) for k in shown(*batch)]
    assert seen == list(range(10))


def test_a_set_of_the_hub_without_labels_is_refused(offline: Any, tmp_path: Path) -> None:
    root = hub_folder(offline, tmp_path / "set", 2, labelled=False)
    with pytest.raises(UserError, match=r"no column of images with one of class labels: it has picture$"):
        load_hub(str(root))


def test_a_set_that_is_not_there_is_one_sentence(offline: Any, tmp_path: Path) -> None:
    assert offline.config.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="absent cannot be had from the Hugging Face hub or its cache: ") as caught:
        load_hub(str(tmp_path / "absent"))
    assert one_sentence(str(caught.value))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hf:any/thing needs the extra 'datasets'"):
        load_hub("any/thing")
