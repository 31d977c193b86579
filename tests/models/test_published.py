# SPDX-License-Identifier: Apache-2.0
"""Published weights: fetched from where they lie, put there by hand, and read as they are."""

from __future__ import annotations

import dataclasses
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ghostnets import prediction, pretrained
from ghostnets.errors import UserError
from ghostnets.models import catalog, published
from ghostnets.models.catalog import create_model
from ghostnets.models.published import IMAGENET_MEAN, IMAGENET_STD, PUBLISHED, imagenet_classes
from ghostnets.prediction import load_classifier, predict
from ghostnets.pretrained import save_pretrained

SMALL = "g_ghost_regnetx_032"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A file as the authors save theirs: every name behind ``module.``, inside a training checkpoint."""
    model = create_model(SMALL)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    path = tmp_path / "g_ghost.pth"
    torch.save({"epoch": 120, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def row_at(monkeypatch: pytest.MonkeyPatch, address: str, **changes: Any) -> published.Published:
    row = dataclasses.replace(PUBLISHED[f"{SMALL}.in1k"], origin=address, **changes)
    for room in (catalog, pretrained, prediction):
        monkeypatch.setattr(room, "TRAINED", {**catalog.TRAINED, f"{SMALL}.in1k": row})
    return row


def test_the_authors_file_is_fetched_kept_and_loaded(authors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_at(monkeypatch, authors.as_uri())
    model = create_model(SMALL, pretrained=True)
    stored = torch.load(authors, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, stored[f"module.{key}"]) for key, tensor in model.state_dict().items())
    assert row.place.read_bytes() == authors.read_bytes()
    authors.unlink()
    again = create_model(f"{SMALL}.in1k", pretrained=True, num_classes=3)  # from where it is kept
    assert torch.equal(again.state_dict()["conv1.weight"], stored["module.conv1.weight"])
    assert again.pretrained_cfg["tag"] == "in1k"


def test_what_cannot_be_fetched_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = (tmp_path / "gone.pth").as_uri()
    row = row_at(monkeypatch, address)
    with pytest.raises(UserError) as caught:
        create_model(SMALL, pretrained=True)
    assert str(caught.value).endswith(f"get {address} on another machine and put it here as {row.place}")
    assert not list(row.place.parent.glob("*"))


def test_a_page_that_arrives_in_place_of_the_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "login.pth").write_text("<html>log in first</html>")
    row = row_at(monkeypatch, (tmp_path / "login.pth").as_uri())
    with pytest.raises(UserError, match=f"no file of weights and was deleted .* put it here as {row.place}"):
        create_model(SMALL, pretrained=True)
    assert not list(row.place.parent.glob("*"))


def test_a_file_of_another_network_is_refused_with_its_place(authors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_at(monkeypatch, authors.as_uri())
    row.place.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, row.place)
    with pytest.raises(UserError, match=f"{row.place} does not fit RegNet: .* missing .* 1 unexpected"):
        create_model(SMALL, pretrained=True)


def test_images_are_shown_as_its_publisher_showed_them_also_from_a_saved_folder(
    authors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_at(monkeypatch, authors.as_uri(), crop=0.5, interpolation="bicubic", input_size=(64, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    # By hand: the shorter side to 64 / 0.5 pixels, then the middle.
    large = Image.fromarray(pixels).resize((128, 142), Image.Resampling.BICUBIC).crop((32, 39, 96, 103))
    model = create_model(SMALL, pretrained=True).eval()
    x = torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1) / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    with torch.no_grad():
        wanted = model((x / torch.tensor(IMAGENET_STD).view(3, 1, 1))[None]).softmax(1)[0].max()
    save_pretrained(model, tmp_path / "saved")
    for source in (SMALL, f"{SMALL}.in1k", str(tmp_path / "saved")):
        (answer,) = predict(load_classifier(source), [tmp_path / "x.png"], top=1)
        assert answer.top[0][1] == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_row_is_a_network_of_a_thousand_classes_and_an_address(name: str) -> None:
    row = PUBLISHED[name]
    assert name.partition(".")[0] == row.architecture
    assert row.address.startswith("https://")
    assert row.origin.startswith("https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/")
    assert urllib.request.Request(row.address).host in {"huggingface.co", "github.com"}  # noqa: S310 - never opened
    with torch.device("meta"):
        model = create_model(name)
    assert model.num_classes == len(row.classes) == 1000
    assert any(key.startswith(f"{row.classifier}.") for key in model.state_dict())
    assert len(imagenet_classes()) == 1000
    assert 70 < row.top1 < 82
