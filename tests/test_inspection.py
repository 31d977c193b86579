# SPDX-License-Identifier: Apache-2.0
"""A whole inspection: the folder it leaves, what it is shown, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting.layers import maps_of
from ghostnets.inspecting.thumbnails import grey
from ghostnets.inspection import images_for, inspect, opened
from ghostnets.models.catalog import create_model
from ghostnets.records import Inspection, from_json, read_json
from ghostnets.training.data import normalise

MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_folder_holds_the_record_and_the_maps(pixels: Tensor, tmp_path: Path) -> None:
    model = create_model("resnet20").train()
    record = inspect(model, pixels, tmp_path / "out", mean=MEAN, std=STD, model_name="resnet20", data_name="noise")
    assert model.training
    assert from_json(Inspection, read_json(tmp_path / "out" / "inspection.json")) == record
    assert record.shown == "layer1.0"
    assert len(record.layers) == 19
    assert [stage.name for stage in record.stages] == ["layer1", "layer2", "layer3"]
    assert len(record.pairs) == 3
    with np.load(tmp_path / "out" / "maps.npz") as arrays:
        assert arrays["shown"].shape == (16, 32, 32)
        assert (arrays["image"] == pixels[0].permute(1, 2, 0).numpy()).all()
        assert arrays["layer:layer3.2.conv2"].shape == (64, 8, 8)
        assert len([name for name in arrays if name.startswith("layer:") and not name.endswith("#")]) == 19


def test_the_same_twice_is_the_same(pixels: Tensor, tmp_path: Path) -> None:
    model = create_model("ghost_resnet20").eval()
    first, second = (inspect(model, pixels, tmp_path / name, mean=MEAN, std=STD) for name in "ab")
    assert [layer.matches for layer in first.layers] == [layer.matches for layer in second.layers]
    assert first.pairs == second.pairs
    other = inspect(model, pixels, tmp_path / "a", mean=MEAN, std=STD, seed=1)  # in the place of the first
    assert [layer.matches for layer in other.layers] != [layer.matches for layer in first.layers]


def test_without_blocks_the_most_redundant_layer_is_shown(pixels: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    copies = nn.Conv2d(8, 8, 1, bias=False)
    nn.init.dirac_(copies.weight)
    with torch.no_grad():
        copies.weight[4:] = copies.weight[:4] * 2
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.ReLU(), copies, nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    record = inspect(model, pixels, tmp_path, mean=MEAN, std=STD)
    assert record.shown == "2"
    assert record.pairs[0].nmse[0] < 1e-6


def test_a_named_module_is_shown(pixels: Tensor, tmp_path: Path) -> None:
    record = inspect(create_model("resnet20"), pixels, tmp_path, mean=MEAN, std=STD, layer="layer2.1.bn1")
    assert record.shown == "layer2.1.bn1"
    assert all(pair.source != pair.target for pair in record.pairs)


def test_maps_that_say_nothing_make_a_record_too(pixels: Tensor, tmp_path: Path) -> None:
    model = create_model("resnet20")
    nn.init.constant_(model.get_submodule("conv1").weight, float("nan"))  # pyright: ignore[reportArgumentType]
    record = inspect(model, pixels, tmp_path, mean=MEAN, std=STD)
    assert record.pairs == ()
    assert {layer.note for layer in record.layers} == {"some of its maps are NaN or infinite"}


def test_a_ghost_module_is_drawn_with_the_plain_layer_beside_it(pixels: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghost, plain = create_model("ghost_resnet20").eval(), create_model("resnet20").eval()
    record = inspect(ghost, pixels, tmp_path / "a", mean=MEAN, std=STD, beside=plain)
    assert record.ghost == "layer1.0.conv2"  # the second that runs
    first = normalise(pixels[:1], MEAN, STD)
    with torch.no_grad(), np.load(tmp_path / "a" / "maps.npz") as arrays:
        whole = maps_of(ghost, "layer1.0.conv2", first)[0]
        assert (np.concatenate([arrays["ghost:computed"], arrays["ghost:made"]]) == grey(whole)).all()
        assert (arrays["ghost:plain"] == grey(maps_of(plain, "layer1.0.bn2", first)[0])).all()
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {"look-alikes.png", "ghost-module.png"}
    assert "beside them the maps of the plain layer" in (tmp_path / "a" / "report.html").read_text()
    for asked in ("layer2.1.conv1", "layer2.1.conv1.cheap_operation.0"):
        found = inspect(ghost, pixels, tmp_path / "b", mean=MEAN, std=STD, layer=asked)
        assert (found.ghost, found.shown) == ("layer2.1.conv1", asked)
    with pytest.raises(UserError, match=r"the network beside it has no convolution layer1\.0\.conv2"):
        inspect(ghost, pixels, tmp_path / "c", mean=MEAN, std=STD, beside=nn.Sequential(nn.Conv2d(3, 4, 1)))


@pytest.mark.parametrize(
    ("count", "layer", "message"),
    [(0, None, "there is no image"), (1, "layer9", "has no module 'layer9'"), (1, "linear", "gives out no maps")],
)
def test_nothing_is_left_of_what_is_refused(
    pixels: Tensor, tmp_path: Path, count: int, layer: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inspect(create_model("resnet20"), pixels[:count], tmp_path / "out", mean=MEAN, std=STD, layer=layer)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(pixels: Tensor, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"holds no inspection \(mine\.txt\)"):
        inspect(create_model("resnet20"), pixels, tmp_path, mean=MEAN, std=STD)


# --- networks and images by name


def test_a_trained_network_knows_its_images() -> None:
    known = opened("resnet20.digits")
    assert known.input_size == (1, 32, 32)
    drawn, notes = images_for(known, "digits", (), data_dir=None, count=5, seed=0)
    assert drawn.shape == (5, 1, 32, 32)
    assert notes == ()
    again, _ = images_for(known, "digits", (), data_dir=None, count=5, seed=0)
    other, _ = images_for(known, "digits", (), data_dir=None, count=5, seed=1)
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def test_weights_in_a_file_and_what_is_said_of_the_images(tmp_path: Path) -> None:
    model = create_model("resnet20", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    known = opened("resnet20", weights=tmp_path / "weights.pt", num_classes=7, mean=MEAN, size=(40, 48))
    assert known.input_size == (3, 40, 48)
    assert known.mean == MEAN
    assert all(torch.equal(t, known.model.state_dict()[n]) for n, t in model.state_dict().items())


def test_files_are_decoded_and_damaged_ones_told_of(tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 60, 3), 200, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    known = opened("resnet20.digits")
    found, notes = images_for(known, None, [tmp_path], data_dir=None, count=9, seed=0)
    assert found.shape == (1, 1, 32, 32)
    assert notes == (f"{tmp_path / 'b.png'} is no image, or cut short, and is left out",)
    with pytest.raises(UserError, match=r"no image that can be decoded: .*b\.png is no image, or cut short$"):
        images_for(known, None, [tmp_path / "b.png"], data_dir=None, count=9, seed=0)


def test_a_folder_s_training_images_are_drawn(tmp_path: Path) -> None:
    for part, shade in (("train", 10), ("val", 250)):
        for name in ("x", "y"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(4):
                Image.fromarray(np.full((32, 32), shade + k, np.uint8)).save(tmp_path / part / name / f"{k}.png")
    found, _ = images_for(opened("resnet20.digits"), str(tmp_path), (), data_dir=None, count=5, seed=0)
    assert len(found) == 5
    assert int(found.max()) <= 13


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        (None, (), "either image files or --data"),
        ("digits", ("a.png",), "either image files or --data"),
        ("nowhere", (), "there is no data set or folder 'nowhere'"),
    ],
)
def test_images_that_are_not_to_be_had_are_refused(data: str | None, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        images_for(opened("resnet20.digits"), data, [Path(f) for f in files], data_dir=None, count=5, seed=0)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match="resnet110 does not come trained"):
        opened("resnet110")
