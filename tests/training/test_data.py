# SPDX-License-Identifier: Apache-2.0
"""The sets against other readers of the same files, the splits against their promises, and every refusal."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ghostnets.errors import UserError
from ghostnets.training import cifar as sets
from ghostnets.training import data, image_folder, pixels
from ghostnets.training.data import Dataset, Images, hold_out, load_dataset, normalise
from ghostnets.training.split import stratified


@pytest.fixture(scope="session")
def cifar(data_root: Path) -> Dataset:
    return load_dataset("cifar10", data_dir=data_root)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def picture(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def colours(root: Path, classes: str = "ab", count: int = 10, side: int = 8) -> Path:
    """Plain squares: the k-th image of the c-th class is (c, k, 0) everywhere."""
    for label, name in enumerate(classes):
        for k in range(count):
            picture(root / name / f"{k:02}.png", np.full((side, side, 3), (label, k, 0), np.uint8))
    return root


# --- records and arithmetic


def test_labels_must_match_images() -> None:
    with pytest.raises(UserError, match="2 images cannot have 3 labels"):
        Images(pixels=torch.zeros(2, 1, 1, 1, dtype=torch.uint8), labels=torch.zeros(3))


def test_subset_takes_pixels_and_labels_alike() -> None:
    images = Images(pixels=torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), labels=torch.arange(5) * 10)
    for index in ([3, 1], torch.tensor([3, 1]), slice(1, 3)):
        part = images.subset(index)
        assert part.labels is not None
        assert (part.pixels.flatten() * 10).tolist() == part.labels.tolist()
        assert len(part) == 2


def test_subset_keeps_unlabelled_images_unlabelled() -> None:
    assert Images(pixels=torch.zeros(3, 1, 1, 1, dtype=torch.uint8), labels=None).subset([0]).labels is None


@given(
    st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False)
)
def test_normalise_is_the_formula(count: int, channels: int, height: int, width: int, random: Any) -> None:
    raw = np.array([random.randrange(256) for _ in range(count * channels * height * width)], np.uint8)
    raw = raw.reshape(count, channels, height, width)
    mean, std = [random.random() for _ in range(channels)], [random.uniform(0.1, 1) for _ in range(channels)]
    result = normalise(torch.from_numpy(raw), mean, std)
    expected = (raw / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalise_leaves_its_input_alone() -> None:
    raw = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    normalise(raw, (0.5,) * 3, (0.5,) * 3)
    assert (raw == 200).all()


# --- splits


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.data(), st.integers(0, 9))
def test_hold_out_parts_are_disjoint_complete_and_fair(labels: list[int], draw: st.DataObject, seed: int) -> None:
    n = draw.draw(st.integers(1, len(labels) - 1))
    numbers = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    rest, held = hold_out(Images(pixels=numbers, labels=torch.tensor(labels)), n, seed)
    assert len(held) == n
    kept, taken = rest.pixels.flatten().tolist(), held.pixels.flatten().tolist()
    assert sorted(kept + taken) == list(range(len(labels)))
    assert kept == sorted(kept)
    assert taken == sorted(taken)
    assert held.labels is not None
    assert held.labels.tolist() == [labels[k] for k in taken]
    for label in set(labels):
        fair = labels.count(label) * n / len(labels)
        assert fair - 1 < held.labels.tolist().count(label) < fair + 1


def test_split_follows_the_written_rule() -> None:
    labels = np.array([0, 1] * 10)
    expected = []
    for label in (0, 1):
        members = [k for k in range(20) if labels[k] == label]
        expected += sorted(members, key=lambda k: hashlib.sha256(f"7:{k}".encode()).hexdigest())[:3]
    assert np.flatnonzero(stratified(labels, 6, 7)).tolist() == sorted(expected)


def test_split_depends_on_the_seed() -> None:
    labels = np.zeros(100, dtype=np.int64)
    assert (stratified(labels, 50, 0) != stratified(labels, 50, 1)).any()


@pytest.mark.parametrize("n", [0, 4, -1])
def test_hold_out_must_leave_both_parts_something(n: int) -> None:
    images = Images(pixels=torch.zeros(4, 1, 1, 1, dtype=torch.uint8), labels=None)
    with pytest.raises(UserError, match=f"{n} of 4 images cannot be set aside"):
        hold_out(images, n, 0)


def test_loading_and_splitting_leave_the_random_state_alone(digits: Dataset) -> None:
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002 - the state watched
    load_dataset("digits")
    hold_out(digits.train, 100, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert numpy_before == str(np.random.get_state())  # noqa: NPY002 - same


# --- stores


def test_large_stores_are_mapped_and_hold_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (7, 3, 6, 5), dtype=torch.uint8)
    index = torch.tensor([6, 0, 0, 3])
    small = pixels.take(images, index), pixels.fit(images, size=(4, 4), channels=1)
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr(pixels, "CHUNK", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = pixels.take(images, index), pixels.fit(images, size=(4, 4), channels=1)
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))
    assert list(tmp_path.iterdir()) == []  # nothing to clean up, whatever happens to the process


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"do not fit into .*No space left.*TMPDIR"):
        pixels.empty((1, 1, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_agrees_with_pillow(channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    fitted = pixels.fit(torch.from_numpy(array).permute(2, 0, 1)[None], size=(12, 16), channels=channels)
    image = Image.fromarray(array).convert("RGB" if channels == 3 else "L").resize((16, 12), Image.Resampling.BILINEAR)
    expected = np.asarray(image).reshape(12, 16, channels).transpose(2, 0, 1)
    assert np.abs(fitted[0].numpy().astype(int) - expected).max() <= 1  # Pillow rounds between its two passes


def test_fit_repeats_grey_and_keeps_what_fits() -> None:
    grey = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(pixels.fit(grey, size=(4, 4), channels=3), grey.repeat(1, 3, 1, 1))
    assert pixels.fit(grey, size=(4, 4), channels=1) is grey


# --- digits


def test_digits_are_all_of_scikit_learns(digits: Dataset) -> None:
    raw: Any = sklearn.datasets.load_digits()
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    both = torch.cat([digits.train.pixels, digits.test.pixels])
    assert both.shape == (1797, 1, 32, 32)
    # Averaging the four pixels around each old pixel's centre undoes the drawing but for a blend with its neighbours:
    # (1, 14, 1)/16 along both axes, edges repeated.
    kernel = np.outer([1, 14, 1], [1, 14, 1]) / 256
    padded = np.pad(raw.images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    blended = np.einsum("nijyx,yx->nij", np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)), kernel)
    centres = both.double().unflatten(2, (8, 4)).unflatten(4, (8, 4))[:, 0, :, 1:3, :, 1:3].mean((2, 4)).numpy()
    aside = stratified(raw.target, 360, 0)
    order = np.concatenate([np.flatnonzero(~aside), np.flatnonzero(aside)])
    assert np.abs(centres - blended[order] * 255 / 16).max() <= 0.5
    assert digits.train.labels is not None
    assert digits.test.labels is not None
    assert torch.cat([digits.train.labels, digits.test.labels]).tolist() == raw.target[order].tolist()


def test_digits_are_drawn_by_the_bilinear_formula(digits: Dataset) -> None:
    raw: Any = sklearn.datasets.load_digits()
    first = np.flatnonzero(~stratified(raw.target, 360, 0))[0]
    places = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)  # half-pixel centres, edges repeated
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(8)))
    drawn = np.round(weights @ raw.images[first] @ weights.T * 255 / 16)
    assert (digits.train.pixels[0, 0].numpy() == drawn).all()


def test_digits_figures_are_those_of_the_training_images(digits: Dataset) -> None:
    values = digits.train.pixels.numpy() / 255
    assert digits.mean == (round(float(values.mean()), 4),)
    assert digits.std == (round(float(values.std()), 4),)


def test_digits_are_not_mirrored_and_evenly_split(digits: Dataset) -> None:
    assert not digits.augment.flip
    assert digits.test.labels is not None
    assert digits.test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_in_another_shape(digits: Dataset) -> None:
    wide = load_dataset("digits", size=(16, 24), channels=3)
    assert wide.test.pixels.shape == (360, 3, 16, 24)
    assert wide.mean == digits.mean * 3
    assert wide.std == digits.std * 3


# --- CIFAR-10


def test_cifar_agrees_with_another_reader(cifar: Dataset, data_root: Path) -> None:
    folder = data_root / "cifar-10-batches-bin"
    record = np.dtype([("label", "u1"), ("red", "u1", (32, 32)), ("green", "u1", (32, 32)), ("blue", "u1", (32, 32))])
    for images, names in ((cifar.train, list(sets.CIFAR10.train)), (cifar.test, ["test_batch.bin"])):
        assert images.labels is not None
        for k, name in enumerate(names):
            part = images.subset(slice(10_000 * k, 10_000 * (k + 1)))
            records = np.memmap(folder / name, dtype=record, mode="r")
            for channel, colour in enumerate(("red", "green", "blue")):
                assert (part.pixels[:, channel].numpy() == records[colour]).all()
            assert part.labels is not None
            assert (part.labels.numpy() == records["label"]).all()


def test_cifar_counts_and_names(cifar: Dataset, data_root: Path) -> None:
    assert cifar.train.labels is not None
    assert cifar.test.labels is not None
    assert cifar.train.labels.bincount().tolist() == [5000] * 10
    assert cifar.test.labels.bincount().tolist() == [1000] * 10
    names = (data_root / "cifar-10-batches-bin" / "batches.meta.txt").read_text(encoding="utf-8").split()
    assert cifar.classes == tuple(names)


def test_cifar_figures_are_imagenets_unless_others_are_asked_for(cifar: Dataset) -> None:
    assert cifar.mean == (0.485, 0.456, 0.406)
    assert cifar.std == (0.229, 0.224, 0.225)


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six hand-made files of two records each; record r of file f is labelled f + r and filled with 10 f + r."""
    folder = tmp_path / "tiny" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    tables: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for table, files in tables.items():
        for name in getattr(sets.CIFAR10, table):
            f = 0 if name == "test_batch.bin" else int(name[11])
            content = b"".join(bytes([f + r] + [10 * f + r] * 3072) for r in range(2))
            (folder / name).write_bytes(content)
            files[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    tiny = replace(sets.CIFAR10, train=tables["train"], test=tables["test"], train_records=2, test_records=2)
    monkeypatch.setitem(sets.SETS, "cifar10", tiny)
    return folder


def test_cifar_files_are_read_in_order(tiny_cifar: Path) -> None:
    tiny = load_dataset("cifar10", data_dir=tiny_cifar)
    assert tiny.train.labels is not None
    assert tiny.train.labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert tiny.train.pixels[:, 2, 31, 31].tolist() == [10, 11, 20, 21, 30, 31, 40, 41, 50, 51]
    assert tiny.test.pixels[:, 0, 0, 0].tolist() == [0, 1]


def test_cifar_is_found_in_the_folder_its_parent_and_the_environment(
    tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sets.locate(sets.CIFAR10, tiny_cifar, download=False) == tiny_cifar
    assert sets.locate(sets.CIFAR10, tiny_cifar.parent, download=False) == tiny_cifar
    monkeypatch.setenv("GHOSTNETS_DATA", str(tiny_cifar.parent))
    assert sets.locate(sets.CIFAR10, None, download=False) == tiny_cifar


def damage(name: str, content: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        changed = content((folder / name).read_bytes())
        (folder / name).unlink()
        if changed is not None:
            (folder / name).write_bytes(changed)

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (damage("data_batch_3.bin", lambda _: None), r"data_batch_3\.bin cannot be read \(No such file"),
        (damage("data_batch_2.bin", lambda old: old[:-1]), r"data_batch_2\.bin has 6,145 bytes instead of 6,146"),
        (damage("test_batch.bin", lambda old: b"\xff" + old[1:]), r"test_batch\.bin has MD5 \w+ instead of"),
    ],
)
def test_a_wrong_cifar_file_is_named(tiny_cifar: Path, act: Callable[[Path], None], message: str) -> None:
    act(tiny_cifar)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("cifar10", data_dir=tiny_cifar)
    assert "\n" not in str(caught.value)
    assert sets.CIFAR10.url in str(caught.value)


@pytest.fixture
def tiny_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two records a file; superclass 19, class 98 or 99, pixels filled with the class."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(b"".join(bytes([19, k] + [k] * 3072) for k in (98, 99)))
    monkeypatch.setitem(sets.SETS, "cifar100", replace(sets.CIFAR100, train_records=2, test_records=2))
    return folder


def test_cifar100_has_the_class_behind_the_superclass(tiny_cifar100: Path) -> None:
    tiny = load_dataset("cifar100", data_dir=tiny_cifar100)
    assert tiny.train.labels is not None
    assert tiny.train.labels.tolist() == [98, 99]
    assert tiny.train.pixels[:, 0, 0, 0].tolist() == [98, 99]
    assert tiny.test.pixels[:, 2, 31, 31].tolist() == [98, 99]
    assert len(set(tiny.classes)) == 100
    assert list(tiny.classes) == sorted(tiny.classes)
    assert (tiny.classes[98], tiny.classes[99]) == ("woman", "worm")


def test_a_label_that_no_class_has_is_named(tiny_cifar100: Path) -> None:
    (tiny_cifar100 / "test.bin").write_bytes(bytes([19, 100] + [0] * 3072) * 2)
    with pytest.raises(UserError, match=r"test\.bin has the label 100, and CIFAR-100 has 100 classes"):
        load_dataset("cifar100", data_dir=tiny_cifar100)


def test_a_data_dir_without_cifar_comes_before_the_other_places_and_gets_the_download(
    tmp_path: Path, tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    monkeypatch.setenv("GHOSTNETS_DATA", str(tiny_cifar))
    assert sets.locate(sets.CIFAR10, empty, download=False) == tiny_cifar
    assert sets.locate(sets.CIFAR10, tiny_cifar, download=False) == tiny_cifar
    monkeypatch.delenv("GHOSTNETS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="there is no CIFAR-10 here"):
        sets.locate(sets.CIFAR10, empty, download=False)
    monkeypatch.setattr(sets, "_download", lambda _, root: root / "downloaded")
    assert sets.locate(sets.CIFAR10, empty, download=True) == empty / "downloaded"


def test_a_data_dir_is_cifars_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is where CIFAR lies, and digits was asked"):
        load_dataset("digits", data_dir=tmp_path)


def test_whether_a_mirror_image_is_the_same_thing_may_be_said() -> None:
    assert not load_dataset("digits").augment.flip
    assert load_dataset("digits", flip=True).augment.flip


def test_without_a_download_the_address_and_the_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHOSTNETS_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"unpack https://\S+ into any folder .*--data-dir or GHOSTNETS_DATA"):
        load_dataset("cifar10", download=False)


# --- image folders


def test_folder_without_a_split_is_split_and_says_so(tmp_path: Path) -> None:
    dataset = load_dataset(str(colours(tmp_path / "set")), size=(8, 8))
    assert dataset.classes == ("a", "b")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert "4 of its 20 images" in dataset.notes[0]
    seen = []
    for part in (dataset.train, dataset.test):
        assert part.labels is not None
        assert part.pixels[:, 0, 0, 0].tolist() == part.labels.tolist()
        seen += [tuple(colour) for colour in part.pixels[:, :2, 4, 4].tolist()]
    assert sorted(seen) == [(label, k) for label in range(2) for k in range(10)]


@pytest.mark.parametrize("name", ["val", "test"])
def test_folder_with_a_split_keeps_it(tmp_path: Path, name: str) -> None:
    colours(tmp_path / "train", "xyz", 3)
    colours(tmp_path / name, "yz", 2)
    dataset = load_dataset(str(tmp_path), size=(8, 8))
    assert dataset.classes == ("x", "y", "z")
    assert dataset.train.labels is not None
    assert dataset.test.labels is not None
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.test.labels.tolist() == [1, 1, 2, 2]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("height", "width", "size"), [(100, 60, (28, 28)), (40, 90, (28, 28)), (50, 50, (14, 42)), (9, 9, (32, 32))]
)
def test_pictures_are_scaled_and_cropped_in_the_centre(
    tmp_path: Path, height: int, width: int, size: tuple[int, int]
) -> None:
    # A horizontal and a vertical ramp: what a pixel shows is where it came from.
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    result = image_folder.decode_image(picture(tmp_path / "ramp.png", ramp), size=size, channels=3).astype(float)
    assert result.shape == (3, *size)
    scale = max(int(size[0] / 0.875) / height, int(size[1] / 0.875) / width)
    for values, extent, length in ((result[0].mean(0), width, size[1]), (result[1].mean(1), height, size[0])):
        places = (np.arange(length) - (length - 1) / 2) / scale + (extent - 1) / 2
        expected = np.clip(places, 0, extent - 1) * 255 / (extent - 1)
        assert np.abs(values - expected).max() <= 255 / extent + 2  # half a pixel of rounding on either side


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (6, 7, 3), np.uint8)
    result = image_folder.decode_image(picture(tmp_path / "x.png", array), size=(6, 7), channels=3)
    assert (result == array.transpose(2, 0, 1)).all()


def test_every_kind_of_picture_becomes_what_was_asked_for(tmp_path: Path) -> None:
    grey = np.array([[0, 64], [128, 255]], np.uint8)
    files = {
        "grey": Image.fromarray(grey),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
        "colour": Image.fromarray(np.stack([grey] * 3, 2)),
        "alpha": Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])),
        "palette": Image.fromarray(grey).convert("P"),
    }
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
        for channels in (1, 3):
            result = image_folder.decode_image(tmp_path / f"{name}.png", size=(2, 2), channels=channels)
            assert result.dtype == np.uint8
            assert (result == grey).all(), (name, channels)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    array[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90° clockwise to view"
    result = image_folder.decode_image(picture(tmp_path / "x.png", array, exif=exif), size=(8, 8), channels=1)
    assert (result[0, :4] == 255).all()  # bright at the top
    assert (result[0, 4:] == 0).all()


def test_a_broken_picture_is_named_and_left_out(tmp_path: Path) -> None:
    colours(tmp_path)
    broken = tmp_path / "b" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / "a" / "notes.txt").write_text("not a picture", encoding="utf-8")
    dataset = load_dataset(str(tmp_path), size=(8, 8))
    assert len(dataset.train) + len(dataset.test) == 19
    assert any("1 of 20 images" in note and str(broken) in note for note in dataset.notes)
    for part in (dataset.train, dataset.test):
        assert part.labels is not None
        assert part.pixels[:, 0, 0, 0].tolist() == part.labels.tolist()


def test_a_folder_of_only_broken_pictures_is_refused(tmp_path: Path) -> None:
    for path in colours(tmp_path).rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"has no training image that can be decoded: 20 of 20 .* and 10 more"):
        load_dataset(str(tmp_path), size=(8, 8))


def test_folders_without_enough_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no class folders"):
        load_dataset(str(tmp_path))
    (tmp_path / "only").mkdir()
    with pytest.raises(UserError, match="holds 1 class folder:"):
        load_dataset(str(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_dataset(str(tmp_path))


def test_a_test_class_unknown_in_training_is_refused(tmp_path: Path) -> None:
    colours(tmp_path / "train", "ab", 1)
    colours(tmp_path / "test", "ac", 1)
    with pytest.raises(UserError, match="holds the class 'c', which no training folder has"):
        load_dataset(str(tmp_path))


def test_folder_figures_in_grey_are_the_average(tmp_path: Path) -> None:
    dataset = load_dataset(str(colours(tmp_path)), size=(8, 8), channels=1)
    assert dataset.mean == (pytest.approx(0.449),)
    assert dataset.std == (pytest.approx(0.226),)


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean 0.5,0.5 has 2 figures for 1 channels: give 1"),
        ({"std": (0.0,)}, "std 0 must be finite and above 0"),
        ({"mean": (float("nan"),)}, "mean nan must be finite"),
        ({"size": (0, 8)}, "image size 0×8 must be at least 1×1"),
        ({"channels": 2}, "2 channels cannot be made"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset("digits", **options)


def test_an_unknown_name_gets_the_known_ones_and_the_closest() -> None:
    with pytest.raises(UserError, match=r"'cifar-10': choose digits, cifar10, cifar100 or a folder .*mean 'cifar10'"):
        load_dataset("cifar-10")


def test_every_name_in_the_list_loads(tiny_cifar: Path, tiny_cifar100: Path) -> None:
    folders = {"cifar10": tiny_cifar, "cifar100": tiny_cifar100}
    assert tuple(load_dataset(name, data_dir=folders.get(name)).name for name in data.NAMES) == data.NAMES
    assert all(name in (inspect.getdoc(load_dataset) or "") for name in data.NAMES)
