# SPDX-License-Identifier: Apache-2.0
"""``list``, ``info`` and ``predict`` as real commands, on images of every kind."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghostnets.models.catalog import create_model, list_models
from ghostnets.training.data import load_dataset
from verbs import ghostnets

COMMAND = [sys.executable, "-c", "from ghostnets.cli.app import main; main()"]
DIGITS = "resnet20.digits"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, check=False)


def digit(number: int) -> Image.Image:
    return Image.fromarray(load_dataset("digits").test.pixels[number, 0].numpy())


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """The same digit as nine kinds of file, and one that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    grey = digit(0)
    grey.save(folder / "a_grey.png")
    grey.convert("RGB").save(folder / "b_colour.bmp")
    grey.convert("RGBA").save(folder / "c_alpha.png")
    grey.convert("CMYK").save(folder / "d_print.tif")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "e_deep.png")
    grey.save(folder / "f_moving.gif", save_all=True, append_images=[Image.new("L", (32, 32))])
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter to the right before it is shown
    grey.rotate(90).save(folder / "g_turned.jpg", exif=exif, quality=95)
    grey.convert("P").save(folder / "h_palette.png")
    grey.save(folder / "i_web.webp", lossless=True)
    (folder / "z_broken.png").write_bytes(b"no image")
    return folder


def test_every_kind_of_image_and_a_broken_one(album: Path) -> None:
    done = run(album.parent, "predict", DIGITS, "album", "--json", "--batch-size", "4")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "album/z_broken.png is no image" in done.stderr
    assert done.stderr.splitlines()[-1] == "ghostnets: 1 of 10 images could not be read"
    answers = json.loads(done.stdout)
    model = create_model(DIGITS, pretrained=True).eval()
    x = (torch.from_numpy(np.asarray(digit(0)).copy())[None, None] / 255 - 0.3047) / 0.3231
    with torch.no_grad():
        shares = model(x).softmax(1)[0]
    wanted = [str(place) for place in shares.argsort(descending=True)[:5].tolist()]
    for answer in answers[:-1]:
        assert answer["top"][0]["class"] == wanted[0], answer["path"]
        assert len(answer["top"]) == 5
    exact = answers[0]["top"]
    assert [a["class"] for a in exact] == wanted
    assert [a["probability"] for a in exact] == pytest.approx(
        shares.sort(descending=True).values[:5].tolist(), abs=1e-5
    )
    assert answers[-1] == {"path": "album/z_broken.png", "error": answers[-1]["error"]}


def test_a_folder_gives_a_table_and_a_file_words(album: Path) -> None:
    (album / "z_broken.png").unlink()
    done = run(album.parent, "predict", DIGITS, "album", "--top", "2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 9
    assert set(rows[0]) == {"path", "class1", "probability1", "class2", "probability2"}
    one = run(album.parent, "predict", DIGITS, "album/a_grey.png", "--top", "2")
    assert one.returncode == 0, one.stderr
    path, first, second = one.stdout.splitlines()
    assert path == rows[0]["path"] == "album/a_grey.png"
    assert first.split()[1] == rows[0]["class1"]
    assert second.split()[1] == rows[0]["class2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", DIGITS], "there is nothing to predict"),
        (["predict", DIGITS, "empty"], "empty holds no images"),
        (["predict", DIGITS, "a.png", "--top", "0"], "--top 0"),
        (["predict", "resnet110", "a.png"], "resnet110 does not come trained"),
        (["predict", "empty", "a.png"], "config.json"),
        (["info", "resnet57"], "did you mean resnet56"),
        (["info", "ghostnet_100", "--input-size", "224"], "--input-size '224' is not understood"),
        (["info", "vgg16", "--input-size", "8,8"], "vgg16 does not run on images of 8×8 pixels"),
        (["list", "nothing*"], "no network is called 'nothing*'"),
    ],
)
def test_bad_input_in_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = ghostnets(tmp_path, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "predict", DIGITS, "gone.png")
    assert done.returncode == 1
    assert "gone.png does not exist" in done.stderr


def test_info_counts_what_the_paper_counts(tmp_path: Path) -> None:
    done = run(tmp_path, "info", "ghostnet_100", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["total"] == {"params": 5_182_508, "macs": 141_150_512}
    assert sum(layer["params"] for layer in told["layers"]) == 5_182_508
    assert sum(layer["macs"] for layer in told["layers"]) == 141_150_512
    first = told["layers"][0]
    assert (first["name"], first["shape"], first["activation_bytes"]) == (
        "conv_stem",
        [16, 112, 112],
        4 * 16 * 112 * 112,
    )
    table = run(tmp_path, "info", "ghostnet_100").stdout
    assert "5,182,508" in table
    assert "141,150,512" in table
    assert "blocks.6.3.ghost1.primary_conv.0" in table
    assert "Counted on the network itself" in table
    assert "ghostnet_100.in1k: 73.958 % top-1 (timm's results-imagenet.csv), Apache-2.0" in table


def test_list_is_the_catalogue(tmp_path: Path) -> None:
    assert run(tmp_path, "list").stdout.split() == list_models()
    assert json.loads(run(tmp_path, "list", "g_ghost_*", "--json").stdout) == list_models("g_ghost_*")
    assert run(tmp_path, "list", "--pretrained").stdout.split() == list_models(pretrained=True)
