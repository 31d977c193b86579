# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards against the plain tar files they are: every sample shows its number, so that what came can be counted."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ghostnets.errors import MissingExtra, UserError
from ghostnets.training.data import Augment
from ghostnets.training.feed import Drawn, Share
from ghostnets.training.image_folder import decode_image
from ghostnets.training.recipe import Recipe
from ghostnets.training.shards import ShardFeed, count_samples, expand

pytest.importorskip("webdataset")

SIZE = (6, 5)
ALONE = Share()

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores is what is tested
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forks, from 3.12 on
]


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def plain(number: int) -> dict[str, bytes]:
    """The files of a sample: the colour (k, 2 k, 3 k) everywhere, and the label k."""
    pixels = np.full((8, 8, 3), (number, 2 * number, 3 * number), np.uint8)
    return {"png": encoded(pixels), "cls": str(number).encode()}


def write(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for suffix, content in files.items():
                head = tarfile.TarInfo(f"{key}.{suffix}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))
    return str(path)


def shard(path: Path, numbers: Iterable[int], **odd: dict[str, bytes]) -> str:
    """Plain samples, but for some that are called by their key, such as ``k3``."""
    return write(path, {f"k{number}": odd.get(f"k{number}", plain(number)) for number in numbers})


def even(root: Path, shards: int = 12, each: int = 2) -> tuple[str, ...]:
    """Shards that any few readers share evenly."""
    return tuple(shard(root / f"{k:02}.tar", range(k * each, (k + 1) * each)) for k in range(shards))


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return even(tmp_path_factory.mktemp("dozen"))


def feed(shards: Sequence[str], count: int, **options: Any) -> ShardFeed:
    return ShardFeed(tuple(shards), count, SIZE, 3, Augment(padding=0, flip=False), **options)


def shown(pixels: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """The numbers of the samples in a batch, after all their pixels and their labels have been found to agree."""
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (len(labels), 3, *SIZE)
    colours = labels[:, None] * torch.tensor([1, 2, 3])
    assert torch.equal(pixels.long(), colours[:, :, None, None].expand(pixels.shape))
    return labels.tolist()


def drawn(
    images: ShardFeed, batch: int, share: Share = ALONE, *, steps: int, start: int = 0, seed: int = 3,
    scale: tuple[float, float] | None = None,
) -> list[Drawn]:  # fmt: skip
    recipe = Recipe(batch_size=batch, scale=scale)
    return list(islice(images.training(recipe, share, seed=seed, start=start), steps))


def one_sentence(text: str) -> bool:
    return "\n" not in text and "Traceback" not in text


# --- training


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("workers", "buffer"), [(0, 3), (0, 2000), (1, 2000), (2, 3)])
def test_every_sample_comes_once_a_pass(dozen: tuple[str, ...], world: int, workers: int, buffer: int) -> None:
    steps = 2  # of 12 of the 24 samples
    processes = [
        drawn(feed(dozen, 24, workers=workers, buffer=buffer), 12, Share(rank, world), steps=3 * steps)
        for rank in range(world)
    ]
    for epoch in range(3):
        own = [one for process in processes for one in process[epoch * steps : (epoch + 1) * steps]]
        assert sorted(number for one in own for number in shown(one.pixels, one.labels)) == list(range(24))
        assert [(one.epoch, one.step) for one in own] == [(epoch, step) for _ in range(world) for step in range(steps)]
        assert {one.index for one in own} == {None}


def test_readers_of_unequal_shards_go_round_their_own(tmp_path: Path) -> None:
    lengths = (3, 4, 5, 2)
    first = [sum(lengths[:k]) for k in range(4)]
    shards = [shard(tmp_path / f"{k}.tar", range(first[k], first[k] + lengths[k])) for k in range(4)]
    batches = drawn(feed(shards, 14, workers=2), 2, steps=30)
    for worker, own in ((0, (0, 2)), (1, (1, 3))):
        numbers = [number for k in own for number in range(first[k], first[k] + lengths[k])]
        seen = [number for one in batches[worker::2] for number in shown(one.pixels, one.labels)]
        for lap in range(len(seen) // len(numbers)):
            assert sorted(seen[lap * len(numbers) : (lap + 1) * len(numbers)]) == numbers


def test_every_pass_and_every_seed_has_another_order(dozen: tuple[str, ...]) -> None:
    orders = [
        tuple(
            number
            for one in drawn(feed(dozen, 24), 12, steps=2, start=2 * epoch, seed=seed)
            for number in one.labels.tolist()
        )
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert tuple(range(24)) not in orders


def test_samples_of_one_shard_do_not_stay_together(tmp_path: Path) -> None:
    shards = even(tmp_path, shards=2, each=20)
    (one,) = drawn(feed(shards, 40), 20, steps=1)
    from_the_first = sum(number < 20 for number in shown(one.pixels, one.labels))
    assert 3 <= from_the_first <= 17  # 10 on average, with a standard deviation of 1.6


def test_every_pass_begins_with_another_shard(dozen: tuple[str, ...]) -> None:
    """However small the buffer is that their samples are drawn from."""
    passes = drawn(feed(dozen, 24, buffer=0), 24, steps=8)
    assert len({int(one.labels[0]) // 2 for one in passes}) > 3


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Six shards of pictures of which every crop is another."""
    root, source = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    return tuple(
        write(
            root / f"{k}.tar",
            {
                f"{j}": {
                    "cls": str(3 * k + j).encode(),
                    "png": encoded(source.integers(256, size=(20, 16, 3), dtype=np.uint8)),
                }
                for j in range(3)
            },
        )
        for k in range(6)
    )


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 3)])
def test_a_run_goes_on_where_it_stopped(noise: tuple[str, ...], world: int, workers: int) -> None:
    def run(steps: int, start: int) -> list[Drawn]:
        images = feed(noise, 18, workers=workers, buffer=4)
        return drawn(images, 4, Share(world - 1, world), steps=steps, start=start, scale=(0.2, 0.8))

    through = run(13, 0)
    for start in (1, 2, 3, 11) if workers else range(12):
        for one, other in zip(through[start : start + 2], run(2, start), strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)
            assert (one.epoch, one.step) == (other.epoch, other.step)


def test_every_pass_cuts_out_something_else(noise: tuple[str, ...]) -> None:
    passes = drawn(feed(noise, 18), 18, steps=4, scale=(0.2, 0.8))
    crops = {tuple(one.pixels[one.labels == 5].flatten().tolist()) for one in passes}
    assert len(crops) == 4


def test_processes_never_draw_the_same(noise: tuple[str, ...]) -> None:
    seen = [
        {number for one in drawn(feed(noise, 18), 6, Share(rank, 3), steps=9) for number in one.labels.tolist()}
        for rank in range(3)
    ]
    assert sorted(number for own in seen for number in own) == list(range(18))


def test_rand_augment_changes_what_is_trained_on(noise: tuple[str, ...]) -> None:
    pytest.importorskip("torchvision")
    batches = [
        next(feed(noise, 18, workers=workers).training(Recipe(batch_size=18, aa=aa), Share(), seed=1, start=0))
        for aa, workers in ((None, 0), ("rand-m9-n2", 0), ("rand-m9-n2", 1))
    ]
    assert torch.equal(batches[0].labels, batches[1].labels)
    assert not torch.equal(batches[0].pixels, batches[1].pixels)
    assert torch.equal(batches[1].pixels, batches[2].pixels)


def test_drawing_leaves_the_random_state_alone(dozen: tuple[str, ...]) -> None:
    before = torch.get_rng_state()
    drawn(feed(dozen, 24), 12, steps=3, scale=(0.2, 0.8))
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_samples_are_refused(dozen: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="24 training images do not fill one batch of 25"):
        drawn(feed(dozen, 24), 25, steps=1)


def test_too_few_shards_are_refused(dozen: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"5 shards cannot be shared by 3 processes with 2 readers each: .*--workers"):
        drawn(feed(dozen[:5], 10, workers=2), 6, Share(0, 3), steps=1)


# --- testing


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shards", [2, 5])  # also fewer than there are readers
def test_every_sample_is_tested_once(dozen: tuple[str, ...], world: int, workers: int, shards: int) -> None:
    images = feed(dozen[:shards], 2 * shards, workers=workers)
    batches = [batch for rank in range(world) for batch in images.testing(3, Share(rank, world))]
    assert sorted(number for batch in batches for number in shown(*batch)) == list(range(2 * shards))
    assert {len(labels) for _, labels in batches} <= {1, 2, 3}


def test_samples_are_tested_as_a_folder_is_read(noise: tuple[str, ...], tmp_path: Path) -> None:
    ((pixels, labels),) = feed(noise[:1], 3).testing(10, Share())
    with tarfile.open(noise[0]) as tar:
        tar.extractall(tmp_path, filter="data")
    for image, label in zip(pixels, labels.tolist(), strict=True):
        expected = decode_image(tmp_path / f"{label}.png", size=SIZE, channels=3, rescale=True)
        assert (image.numpy() == expected).all()


def test_other_files_of_a_sample_and_capitals_are_no_matter(tmp_path: Path) -> None:
    files = plain(7)
    sample = {"json": b"{}", "PNG": files["png"], "CLS": b" 7\n", "txt": b"seven"}
    ((pixels, labels),) = feed([write(tmp_path / "a.tar", {"deep/down/x": sample})], 1).testing(4, Share())
    assert shown(pixels, labels) == [7]


def test_a_stream_is_read_like_the_file(dozen: tuple[str, ...]) -> None:
    streams = expand("::".join(f"pipe:cat '{path}'" for path in dozen[:3]))
    files, streamed = (drawn(feed(names, 6), 3, steps=4) for names in (dozen[:3], streams))
    assert [one.labels.tolist() for one in files] == [one.labels.tolist() for one in streamed]


# --- samples that cannot be used

BROKEN = {
    "no image": ({"png": b"nothing", "cls": b"3"}, "cannot identify image file"),
    "half an image": ({"png": plain(3)["png"][:50], "cls": b"3"}, ""),
    "a word": ({"png": plain(3)["png"], "cls": b"three"}, "its label 'three' is no number"),
    "a negative": ({"png": plain(3)["png"], "cls": b"-3"}, "its label '-3' is no number"),
    "bytes": ({"png": plain(3)["png"], "cls": b"\xff\x00"}, "is no number"),
    "without a label": ({"png": plain(3)["png"]}, "its label '' is no number"),
    "without an image": ({"txt": b"three", "cls": b"3"}, "it has no image"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_used_is_told_once_and_skipped(tmp_path: Path, kind: str, workers: int) -> None:
    files, why = BROKEN[kind]
    path = shard(tmp_path / "a.tar", range(6), k3=files)
    told: list[str] = []
    images = feed([path], 6, max_bad=1, told=told.append, workers=workers)
    for one in drawn(images, 6, steps=3):
        seen = shown(one.pixels, one.labels)
        assert len(seen) == 6
        assert set(seen) == {0, 1, 2, 4, 5}
    assert len(told) == 1
    assert told[0].startswith(f"{path}: k3 cannot be decoded (")
    assert why in told[0]
    assert one_sentence(told[0])
    assert list(images.damaged.reasons) == [f"{path}: k3"]
    tested = feed([path], 6, max_bad=1, workers=workers).testing(4, Share())
    assert sorted(number for batch in tested for number in shown(*batch)) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_one_sample_too_many_ends_the_run_and_names_them(tmp_path: Path, workers: int) -> None:
    nothing = {"png": b"nothing", "cls": b"1"}
    path = shard(tmp_path / "a.tar", range(6), k1=nothing, k4=nothing, k5={"cls": b"5"})
    with pytest.raises(UserError, match="3 images cannot be decoded, and --max-bad allows 2: ") as caught:
        drawn(feed([path], 6, max_bad=2, workers=workers), 6, steps=1)
    assert all(f"{path}: k{k}" in str(caught.value) for k in (1, 4, 5))
    assert one_sentence(str(caught.value))


def test_no_broken_sample_is_allowed_unless_asked_for(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3), k1={"png": b"nothing", "cls": b"1"})
    with pytest.raises(UserError, match=r"1 images cannot be decoded, and --max-bad allows 0: .*a\.tar: k1"):
        list(feed([path], 3).testing(3, Share()))


def test_a_run_with_broken_samples_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(7), k3={"png": b"nothing", "cls": b"3"})
    through = drawn(feed([path], 7, max_bad=1), 3, steps=9)
    for start in range(8):
        (one,) = drawn(feed([path], 7, max_bad=1), 3, steps=1, start=start)
        assert one.labels.tolist() == through[start].labels.tolist()


def test_a_batch_without_one_sound_sample_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(2), k0={"cls": b"0"}, k1={"cls": b"1"})
    with pytest.raises(UserError, match="not one sample of a whole batch can be used"):
        drawn(feed([path], 2, max_bad=9), 2, steps=1)


# --- files that are no shards


@pytest.mark.parametrize(
    ("size", "workers"),
    [
        (100, 0),
        (4 * 512, 0),
        (4 * 512, 1),
        (4 * 512 + 100, 0),
        (5 * 512 + 40, 0),
        (5 * 512 + 40, 1),
        (6 * 512, 0),
        (24 * 512, 0),
    ],
)
def test_a_truncated_shard_is_one_sentence(tmp_path: Path, size: int, workers: int) -> None:
    """Cut in the first head, between two samples, in a head, in an image, between two files, before the last block."""
    path = shard(tmp_path / "a.tar", range(6))
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    for read in (
        lambda: drawn(feed([path], 6, workers=workers), 6, steps=1),
        lambda: list(feed([path], 6, workers=workers).testing(6, Share())),
        lambda: [count_samples([path])],
    ):
        with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file of samples: \w+") as caught:
            read()
        assert one_sentence(str(caught.value))
        assert str(caught.value).count("a.tar") == 1


@settings(max_examples=60)
@given(cut=st.integers(0, 10240))
def test_wherever_a_shard_is_cut_all_of_it_comes_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.tar"
    shard(path, range(4))
    path.write_bytes(path.read_bytes()[:cut])
    seen: list[int] = []
    try:
        for batch in feed([str(path)], 4).testing(2, Share()):
            seen += shown(*batch)
        refused = None
    except UserError as error:
        refused = str(error)
    if refused is None:
        assert seen == list(range(4))
    else:
        assert one_sentence(refused)
        assert "a.tar cannot be read as a tar file of samples: " in refused


def test_a_stream_that_fails_behind_the_last_sample_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    with pytest.raises(UserError, match="exit 3"):
        count_samples([f"pipe:cat '{path}'; exit 3"])


def test_a_stream_that_says_more_than_the_tar_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    assert count_samples([f"pipe:cat '{path}'; head -c 1000000 /dev/zero"]) == 3


def test_a_compressed_shard_is_read_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    ((pixels, labels),) = feed([str(packed)], 3).testing(4, Share())
    assert shown(pixels, labels) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_no_tar_is_one_sentence(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar file at all" * 100)
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file of samples: ") as caught:
        drawn(feed([str(path)], 6, workers=workers), 6, steps=1)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_without_samples_is_one_sentence(tmp_path: Path, workers: int) -> None:
    path = write(tmp_path / "a.tar", {})
    with pytest.raises(UserError, match=r"a\.tar hold no sample") as caught:
        drawn(feed([path], 6, workers=workers), 6, steps=1)
    assert one_sentence(str(caught.value))


def test_a_shard_that_has_gone_is_one_sentence(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    Path(path).unlink()
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file of samples: No such file") as caught:
        count_samples([path])
    assert one_sentence(str(caught.value))


def test_a_stream_that_fails_is_one_sentence() -> None:
    with pytest.raises(UserError, match="pipe:exit 3 cannot be read as a tar file of samples: ") as caught:
        count_samples(expand("pipe:exit 3"))
    assert one_sentence(str(caught.value))


# --- counting and names


def test_samples_are_counted_by_their_labels(tmp_path: Path) -> None:
    shards = [shard(tmp_path / "a.tar", range(5)), shard(tmp_path / "b.tar", range(3), k1={"png": plain(1)["png"]})]
    with tarfile.open(shards[0]) as one, tarfile.open(shards[1]) as other:
        labels = [name for name in one.getnames() + other.getnames() if name.endswith(".cls")]
    assert count_samples(shards) == len(labels) == 7


def test_braces_and_stars_stand_for_shards_in_order(tmp_path: Path) -> None:
    paths = [shard(tmp_path / f"train-{k:03}.tar", [k]) for k in (2, 10, 0, 1, 11)]
    assert expand(str(tmp_path / "train-{000..002}.tar")) == tuple(sorted(paths)[:3])
    assert expand(str(tmp_path / "train-{000,011}.tar")) == (paths[2], paths[4])
    assert expand(str(tmp_path / "*.tar")) == tuple(sorted(paths))
    assert expand(str(tmp_path / "train-01*.tar")) == tuple(sorted(paths)[3:])
    assert expand(paths[0]) == (paths[0],)


def test_a_relative_name_is_looked_for_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "a.tar", [1])
    monkeypatch.chdir(tmp_path)
    assert expand("*.tar") == expand("{a..a}.tar") == ("a.tar",)


def test_streams_are_not_looked_for(tmp_path: Path) -> None:
    names = ("https://example.org/a-0.tar", "https://example.org/a-1.tar")
    assert expand("https://example.org/a-{0..1}.tar") == names
    assert expand(f"pipe:cat {tmp_path}/none.tar") == (f"pipe:cat {tmp_path}/none.tar",)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    even(tmp_path, shards=3)
    with pytest.raises(UserError, match=r"there is no shard .*03\.tar: name tar files"):
        expand(str(tmp_path / "{00..04}.tar"))
    with pytest.raises(UserError, match=r"there is no shard .*\*\.tgz: name tar files"):
        expand(str(tmp_path / "*.tgz"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingExtra, match="needs the extra 'webdataset'"):
        expand("a.tar")
