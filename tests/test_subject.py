# SPDX-License-Identifier: Apache-2.0
"""The network that a command names, the images it says it expects, and the images it is tried on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ghostnets.models.catalog import create_model
from ghostnets.pretrained import save_pretrained
from ghostnets.subject import described, opened, pixels_for
from ghostnets.training.data import load_dataset
from tiny import build


def colour(**says: object) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    if says:
        network.pretrained_cfg = says  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return network


def test_what_a_network_says_of_itself_counts_and_imagenet_fills_in() -> None:
    known = described(colour(mean=[0.1, 0.2, 0.3], input_size=[3, 20, 30]))
    assert (known.mean, known.std, known.input_size) == ((0.1, 0.2, 0.3), (0.229, 0.224, 0.225), (3, 20, 30))
    plain = described(colour())
    assert (plain.mean, plain.input_size) == ((0.485, 0.456, 0.406), (3, 224, 224))
    grey = described(build())
    assert grey.input_size == (1, 224, 224)
    assert grey.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert not plain.model.training


def test_a_saved_network_brings_its_size_normalisation_and_classes(tmp_path: Path) -> None:
    network = create_model("resnet20.digits", pretrained=True).eval()
    save_pretrained(network, tmp_path / "net")
    known, notes = opened(str(tmp_path / "net"), size=(16, 24))
    assert notes == ()
    assert (known.input_size, known.mean, known.std) == ((1, 16, 24), (0.3047,), (0.3231,))
    assert known.classes == tuple("0123456789")
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(known.model(images), network(images))


def test_a_users_network_stays_as_its_file_makes_it(tmp_path: Path) -> None:
    """Its norms have seen nothing, and still keep their statistics: another network would be exported otherwise."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))\n"
    )
    known, notes = opened(f"{tmp_path}/net.py:build", seed=3)
    again, _ = opened(f"{tmp_path}/net.py:build", seed=3)
    norm = known.model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    assert notes == ()
    for one, other in zip(known.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_untrained_weights_of_the_catalogue_are_drawn_with_norms_that_have_seen_images() -> None:
    known, (note,) = opened("resnet20", size=(8, 8))
    assert note.startswith("nobody trained the weights of resnet20, they are drawn: resnet20.cifar10")
    means = [part.running_mean for part in known.model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(isinstance(mean, Tensor) and bool(mean.any()) for mean in means)


@pytest.mark.parametrize(
    ("file", "asked"), [("request.json", {"data": "digits"}), ("state.json", {"request": {"data": "digits"}})]
)
def test_a_folder_is_tried_on_what_it_was_trained_on(tmp_path: Path, file: str, asked: dict[str, object]) -> None:
    (tmp_path / file).write_text(json.dumps(asked))
    pixels = pixels_for(described(build(), (1, 32, 32)), str(tmp_path), 3, seed=0)
    assert pixels.of == "test images of digits"
    assert torch.equal(pixels.values, load_dataset("digits").test.pixels[:3])


def test_images_of_a_folder_are_taken_where_they_can_be_decoded(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs" / "cat"
    photographs.mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 100, 50)).save(photographs / "a.png")
    (photographs / "b.png").write_bytes(b"none")
    (tmp_path / "request.json").write_text(json.dumps({"data": str(tmp_path / "photographs")}))
    pixels = pixels_for(described(colour(), (3, 8, 9)), str(tmp_path), 5, seed=0)
    assert pixels.of == "images of photographs"
    assert pixels.values.shape == (1, 3, 8, 9)
    assert pixels.values[0, :, 4, 4].tolist() == [200, 100, 50]


def test_others_are_tried_on_views_of_photographs_or_on_noise() -> None:
    from sklearn.datasets import load_sample_images

    views = pixels_for(described(colour(), (3, 21, 34)), "net.py:build", 4, seed=1)
    assert (views.of, views.values.shape, views.values.dtype) == (
        "views of two photographs",
        (4, 3, 21, 34),
        torch.uint8,
    )
    averages = np.array([image.mean((0, 1)) for image in load_sample_images().images])  # pyright: ignore[reportAttributeAccessIssue]
    near = [int(np.abs(averages - view.float().mean((1, 2)).numpy()).sum(1).argmin()) for view in views.values]
    assert near == [0, 1, 0, 1]  # a temple under a bright sky, a flower before dark leaves
    assert torch.equal(views.values, pixels_for(described(colour(), (3, 21, 34)), "x", 4, seed=1).values)
    assert not torch.equal(views.values, pixels_for(described(colour(), (3, 21, 34)), "x", 4, seed=2).values)

    noise = pixels_for(described(build(), (1, 64, 64)), "net.py:build", 2, seed=1)
    assert noise.of == "noise"
    assert noise.values.float().std() == pytest.approx(73.9, abs=3)  # of all bytes alike: 256 / sqrt(12)
