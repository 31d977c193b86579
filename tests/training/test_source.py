# SPDX-License-Identifier: Apache-2.0
"""Every kind of data by its name: what is trained and tested on, against the files that were put there."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ghostnets.errors import UserError
from ghostnets.training.data import IMAGENET_MEAN, IMAGENET_STD, load_dataset
from ghostnets.training.feed import Feed, MemoryFeed, Share
from ghostnets.training.pictures import PictureFeed
from ghostnets.training.shards import ShardFeed
from ghostnets.training.source import Asked, Source, open_source


def square(*colour: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), colour, np.uint8))


def colours(root: Path, classes: str = "ab", count: int = 10) -> Path:
    """Plain squares: the k-th image of the c-th class is (c, k, 0) everywhere."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(count):
            square(label, k, 0).save(root / name / f"{k:02}.png")
    return root


def shown(feed: Feed) -> list[tuple[int, int]]:
    """The class and the number that the images of ``colours`` show, after their labels have been found to agree."""
    seen: list[tuple[int, int]] = []
    for pixels, labels in feed.testing(7, Share()):
        assert pixels[:, 0, 2, 2].tolist() == labels.tolist()
        seen += [(label, k) for label, k in pixels[:, :2, 2, 2].tolist()]
    return seen


def both(source: Source) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return shown(source.train), shown(source.test)


ALL = [(label, k) for label in range(2) for k in range(10)]


# --- sets in memory


def test_digits_are_the_data_set() -> None:
    source, known = open_source(Asked(data="digits")), load_dataset("digits")
    assert isinstance(source.train, MemoryFeed)
    assert isinstance(source.test, MemoryFeed)
    assert torch.equal(source.train.images.pixels, known.train.pixels)
    assert torch.equal(source.test.images.pixels, known.test.pixels)
    assert (source.classes, source.mean, source.std) == (known.classes, known.mean, known.std)
    assert source.input_size == (1, 32, 32)
    assert source.train.augment == known.augment


def test_the_last_training_images_can_be_held_out() -> None:
    source, known = open_source(Asked(data="digits", hold_out=100)), load_dataset("digits")
    assert isinstance(source.train, MemoryFeed)
    assert isinstance(source.test, MemoryFeed)
    assert known.train.labels is not None
    for feed, part in ((source.train, slice(None, -100)), (source.test, slice(-100, None))):
        assert feed.images.labels is not None
        assert torch.equal(feed.images.pixels, known.train.pixels[part])
        assert torch.equal(feed.images.labels, known.train.labels[part])


@pytest.mark.parametrize("hold_out", [-1, 1437, 2000])
def test_as_many_as_there_are_cannot_be_held_out(hold_out: int) -> None:
    with pytest.raises(UserError, match=f"--hold-out {hold_out} must leave at least one of 1437 training images"):
        open_source(Asked(data="digits", hold_out=hold_out))


def test_digits_in_colour_have_the_figures_of_every_channel() -> None:
    source = open_source(Asked(data="digits", channels=3, size=(16, 24), flip=True))
    assert source.input_size == (3, 16, 24)
    assert source.mean == load_dataset("digits").mean * 3
    assert source.train.augment.flip


def test_figures_asked_for_are_taken() -> None:
    source = open_source(Asked(data="digits", mean=(0.5,), std=(0.25,)))
    assert (source.mean, source.std) == ((0.5,), (0.25,))


# --- folders


def asked(root: Path, **options: Any) -> Asked:
    return Asked(data=str(root), size=(8, 8), **options)


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_folder_with_a_split_keeps_it(tmp_path: Path, name: str) -> None:
    colours(tmp_path / "train")
    colours(tmp_path / name, count=3)
    source = open_source(asked(tmp_path))
    assert both(source) == (ALL, [(label, k) for label in range(2) for k in range(3)])
    assert isinstance(source.train, PictureFeed)
    assert source.classes == ("a", "b")
    assert source.notes == ()
    assert (source.mean, source.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert source.input_size == (3, 8, 8)


def test_a_folder_without_a_split_gets_the_one_that_is_read_into_memory(tmp_path: Path) -> None:
    source, read = open_source(asked(colours(tmp_path))), load_dataset(str(tmp_path), size=(8, 8))
    train, test = both(source)
    for seen, images in ((train, read.train), (test, read.test)):
        assert seen == [(label, k) for label, k in images.pixels[:, :2, 2, 2].tolist()]
    assert source.notes == read.notes
    assert sorted(train + test) == ALL


def test_held_out_files_are_training_files(tmp_path: Path) -> None:
    colours(tmp_path / "train")
    colours(tmp_path / "test", count=1)
    train, test = both(open_source(asked(tmp_path, hold_out=8)))
    assert len(test) == 8
    assert sorted(train + test) == ALL
    assert {label for label, _ in test} == {0, 1}
    with pytest.raises(UserError, match="--hold-out 20 must leave at least one of 20"):
        open_source(asked(tmp_path, hold_out=20))


def test_a_folder_in_grey_has_one_figure(tmp_path: Path) -> None:
    source = open_source(asked(colours(tmp_path), channels=1))
    assert source.input_size == (1, 8, 8)
    assert source.mean == (pytest.approx(0.449),)
    pixels, _ = next(source.test.testing(3, Share()))
    assert pixels.shape == (3, 1, 8, 8)


def test_a_folder_is_tested_at_224_unless_asked_otherwise(tmp_path: Path) -> None:
    source = open_source(Asked(data=str(colours(tmp_path, count=2))))
    assert source.input_size == (3, 224, 224)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    colours(tmp_path / "train")
    colours(tmp_path / "test")
    (tmp_path / "train" / "nobody").mkdir()
    with pytest.raises(UserError, match="the class 'nobody' without a training image: add some, or remove its folder"):
        open_source(asked(tmp_path))


def test_a_test_class_unknown_in_training_is_named(tmp_path: Path) -> None:
    colours(tmp_path / "train", "ab", 1)
    colours(tmp_path / "test", "ac", 1)
    with pytest.raises(UserError, match="holds the class 'c', which no training folder has"):
        open_source(asked(tmp_path))


def test_a_folder_may_be_called_like_a_tar_file(tmp_path: Path) -> None:
    source = open_source(asked(colours(tmp_path / "my.targets")))
    assert isinstance(source.train, PictureFeed)


def test_damaged_files_are_told_and_counted(tmp_path: Path) -> None:
    colours(tmp_path / "train")
    colours(tmp_path / "test")
    broken = tmp_path / "test" / "a" / "03.png"
    broken.write_bytes(b"nothing")
    told: list[str] = []
    source = open_source(asked(tmp_path, max_bad=1), told=told.append)
    assert both(source) == (ALL, [pair for pair in ALL if pair != (0, 3)])
    assert len(told) == 1
    assert str(broken) in told[0]
    with pytest.raises(UserError, match=r"--max-bad allows 0: .*03\.png"):
        both(open_source(asked(tmp_path)))


# --- sets of the hub


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library datasets, which sees no network and keeps its files in the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def hub(library: Any, root: Path, **parts: Iterable[tuple[int, int]]) -> Asked:
    """A set whose splits hold squares of these classes and numbers; the class -1 is none."""
    kinds = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    root.mkdir()
    for name, part in parts.items():
        pairs = list(part)
        columns = {"image": [square(max(c, 0), k, 0) for c, k in pairs], "label": [c for c, _ in pairs]}
        library.Dataset.from_dict(columns, features=kinds).to_parquet(root / f"{name}.parquet")
    return Asked(data=f"hf:{root}", size=(8, 8))


def test_a_set_of_the_hub_keeps_its_splits(library: Any, tmp_path: Path) -> None:
    source = open_source(hub(library, tmp_path / "set", train=ALL, test=[(1, 4), (0, 7)]))
    assert both(source) == (ALL, [(1, 4), (0, 7)])
    assert source.classes == ("cat", "dog")
    assert source.notes == ()


def test_test_images_without_labels_are_passed_over(library: Any, tmp_path: Path) -> None:
    """As those of ImageNet on the hub are."""
    source = open_source(hub(library, tmp_path / "set", train=ALL, test=[(-1, 1)], validation=[(1, 4)]))
    assert both(source) == (ALL, [(1, 4)])


@pytest.mark.parametrize("parts", [{}, {"test": [(-1, 1)]}])
def test_a_set_without_a_test_split_gives_a_fifth_of_every_class(
    library: Any, tmp_path: Path, parts: dict[str, Any]
) -> None:
    source = open_source(hub(library, tmp_path / "set", train=ALL, **parts))
    train, test = both(source)
    assert sorted(train + test) == ALL
    assert [label for label, _ in test] == [0, 0, 1, 1]
    assert any("no test split with labels: 4 of its 20 training images" in note for note in source.notes)


def test_training_images_of_the_hub_can_be_held_out(library: Any, tmp_path: Path) -> None:
    known = hub(library, tmp_path / "set", train=ALL, test=[(1, 4)])
    source = open_source(replace(known, hold_out=6))
    train, test = both(source)
    assert sorted(train + test) == ALL
    assert [label for label, _ in test] == [0, 0, 0, 1, 1, 1]
    assert source.notes == ()
    with pytest.raises(UserError, match="--hold-out 20 must leave at least one of 20"):
        open_source(replace(known, hold_out=20))


def test_training_images_without_labels_are_refused(library: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training images without a label"):
        open_source(hub(library, tmp_path / "set", train=[(0, 1), (-1, 2)], test=[(1, 4)]))


def test_a_set_of_the_hub_without_training_images_is_refused(library: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no training images: it has test"):
        open_source(hub(library, tmp_path / "set", test=[(1, 4)]))


# --- shards


def shard(path: Path, pairs: Iterable[tuple[int, int]]) -> None:
    with tarfile.open(path, "w") as tar:
        for label, k in pairs:
            file = io.BytesIO()
            square(label, k, 0).save(file, "PNG")
            for suffix, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                head = tarfile.TarInfo(f"{label}-{k}.{suffix}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Asked:
    pytest.importorskip("webdataset")
    for k in range(2):
        shard(tmp_path / f"train-{k}.tar", ALL[10 * k : 10 * k + 10])
    shard(tmp_path / "val.tar", [(1, 4), (0, 7)])
    return Asked(
        data=str(tmp_path / "train-{0..1}.tar"), val_data=str(tmp_path / "val.tar"), num_classes=2, size=(8, 8)
    )


def test_shards_are_trained_and_tested_on(shards: Asked) -> None:
    source = open_source(shards)
    assert both(source) == (ALL, [(1, 4), (0, 7)])
    assert isinstance(source.train, ShardFeed)
    assert (len(source.train), len(source.test)) == (20, 2)
    assert source.classes == ("0", "1")
    assert source.input_size == (3, 8, 8)


def test_shards_are_not_counted_where_their_samples_are_told(shards: Asked) -> None:
    Path(shards.data.replace("{0..1}", "0")).write_bytes(b"no tar file")
    assert len(open_source(replace(shards, train_samples=1234)).train) == 1234
    with pytest.raises(UserError, match=r"train-0\.tar cannot be read"):
        len(open_source(shards).train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_data": None}, "name those to test on with --val-data"),
        ({"num_classes": None}, "does not say how many classes there are: give --num-classes"),
        ({"hold_out": 3}, "--hold-out takes training images aside, and shards have no order"),
        ({"val_data": "absent.tar"}, r"there is no shard absent\.tar"),
    ],
)
def test_what_shards_cannot_say_must_be_given(shards: Asked, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(replace(shards, **change))


# --- what is the same, and what is not


def test_unknown_data_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"no data set or folder 'cifar11': choose digits, cifar10, .*hf:NAME, or shards"
    ):
        open_source(Asked(data="cifar11"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "2 channels cannot be made from an image"),
        ({"size": (0, 8)}, "image size 0×8 must be at least 1×1"),
        ({"mean": (0.5, 0.5)}, "mean 0.5,0.5 has 2 figures for 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "std 0.5,0,0.5 must be finite and above 0"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(replace(asked(colours(tmp_path, count=2)), **options))


def test_other_data_has_another_fingerprint(tmp_path: Path) -> None:
    colours(tmp_path / "one", count=2)
    colours(tmp_path / "two", count=2)
    colours(tmp_path / "three", "abc", count=2)
    everything = [
        Asked(data="digits"),
        Asked(data="digits", hold_out=10),
        Asked(data="digits", hold_out=11),
        Asked(data="digits", mean=(0.5,)),
        Asked(data="digits", std=(0.5,)),
        Asked(data="digits", size=(16, 16)),
        Asked(data="digits", channels=3),
        *(asked(tmp_path / name) for name in ("one", "three")),
    ]
    prints = [open_source(one).fingerprint() for one in everything]
    assert len(set(prints)) == len(prints)
    assert prints == [open_source(one).fingerprint() for one in everything]
    assert open_source(asked(tmp_path / "two")).fingerprint() == prints[-2]  # a folder may move


def test_an_image_more_is_another_fingerprint(tmp_path: Path) -> None:
    before = open_source(asked(colours(tmp_path))).fingerprint()
    for name in ("20", "21"):
        square(0, 1, 0).save(tmp_path / "a" / f"{name}.png")
    assert open_source(asked(tmp_path)).fingerprint() != before


def test_a_described_source_has_everything_but_images(tmp_path: Path) -> None:
    source = open_source(asked(colours(tmp_path), flip=False))
    described = source.described()
    assert (len(described.train), len(described.test)) == (0, 0)
    assert described.train.pixels.shape[1:] == source.input_size
    assert (described.classes, described.mean, described.std) == (source.classes, source.mean, source.std)
    assert (described.name, described.augment) == (source.name, source.train.augment)
    assert not described.augment.flip
