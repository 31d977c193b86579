# SPDX-License-Identifier: Apache-2.0
"""What is saved comes back, in a process that has never seen it, and nothing but what was saved."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ghostnets.blocks.branches import fold_branches
from ghostnets.errors import UserError
from ghostnets.models.catalog import create_model
from ghostnets.models.ghostnet import V2
from ghostnets.models.resnet import CifarResNet
from ghostnets.pretrained import from_pretrained, load_factory, save_pretrained
from ghostnets.records import Budget, Plan
from ghostnets.training.data import Augment, Dataset, Images
from ghostnets.upgrading.convert import convert
from ghostnets.upgrading.plan import plan

TINY = Path(__file__).with_name("tiny.py")
TINY_SOURCE = f"{TINY}:build"


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = Images(pixels=torch.zeros(10, 1, 16, 16, dtype=torch.uint8), labels=torch.arange(10))
    return Dataset(
        name="made up", train=made, test=made, classes=tuple("0123456789"), mean=(0.5,), std=(0.25,),
        augment=Augment(padding=0, flip=False),
    )  # fmt: skip


def converted(original: nn.Module) -> tuple[nn.Module, Plan]:
    """Every site a Ghost module, with gathers behind those on the residual stream."""
    decided = plan(original, images(8), Budget(ratio=2))
    return convert(original, decided, images(8), rows=600).model.eval(), decided


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, nn.Module, Plan]:
    """Original, upgraded, plan."""
    original = load_factory(TINY, "build").eval()
    return original, *converted(original)


@pytest.fixture
def saved(tmp_path: Path, tiny: tuple[nn.Module, nn.Module, Plan], dataset: Dataset) -> Path:
    original, upgraded, decided = tiny
    folder = tmp_path / "saved"
    save_pretrained(upgraded, folder, original=original, plan=decided, dataset=dataset, source=TINY_SOURCE)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_fresh_process_gives_the_same_logits(tmp_path: Path, dataset: Dataset) -> None:
    original = create_model("resnet20", in_chans=1).eval()
    upgraded, decided = converted(original)
    save_pretrained(upgraded, tmp_path, original=original, plan=decided, dataset=dataset, source="resnet20")
    x = images(4)
    save_file({"x": x}, tmp_path / "x.st")
    code = (
        "import ghostnets, torch; from safetensors.torch import load_file, save_file\n"
        "network = ghostnets.from_pretrained('.')\n"
        "assert not network.training\n"
        "with torch.no_grad(): save_file({'y': network(load_file('x.st')['x'])}, 'y.st')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        # Not to the bit: the other process may have another number of threads.
        torch.testing.assert_close(load_file(tmp_path / "y.st")["y"], upgraded(x), rtol=1e-5, atol=1e-5)


def test_weights_come_back_bit_for_bit_gathers_included(saved: Path, tiny: tuple[nn.Module, nn.Module, Plan]) -> None:
    _, upgraded, decided = tiny
    assert {"gather", "folded"} <= {d.order for d in decided.decisions}
    again = from_pretrained(saved, trust_code=True)
    assert again.state_dict().keys() == upgraded.state_dict().keys()
    for name, tensor in upgraded.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again(images(3)), upgraded(images(3)))


def test_config_says_what_the_network_is_for(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["model"] == {"file": "tiny.py", "factory": "build"}
    assert (config["in_chans"], config["num_classes"], config["input_size"]) == (1, 10, [1, 16, 16])
    assert (config["mean"], config["std"], len(config["classes"])) == ([0.5], [0.25], 10)
    assert [e["name"] for e in config["edits"]] == ["conv1", "conv2", "down"]
    assert str(saved) not in (saved / "config.json").read_text()


def test_a_file_of_code_runs_only_for_who_trusts_it(saved: Path, tiny: tuple[nn.Module, nn.Module, Plan]) -> None:
    assert (saved / "tiny.py").read_bytes() == TINY.read_bytes()
    (saved / "tiny.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(UserError, match="trust_code=True, or pass the original network as base="):
        from_pretrained(saved)
    with torch.no_grad():
        again = from_pretrained(saved, base=tiny[0])
        assert torch.equal(again(images(3)), tiny[1](images(3)))


def test_no_file_outside_the_folder_is_run(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    edit(saved, lambda config: config["model"].update(file="../evil.py"))
    with pytest.raises(UserError, match=r"evil\.py cannot be read"):
        from_pretrained(saved, trust_code=True)


def test_a_network_from_memory_needs_its_like(
    tmp_path: Path, tiny: tuple[nn.Module, nn.Module, Plan], dataset: Dataset
) -> None:
    original, upgraded, decided = tiny
    save_pretrained(upgraded, tmp_path, original=original, plan=decided, dataset=dataset)
    with pytest.raises(UserError, match=r"from a network in memory \(.*TinyNet\): pass one of that class as base="):
        from_pretrained(tmp_path)
    untrained = load_factory(TINY, "TinyNet")
    before = {name: tensor.clone() for name, tensor in untrained.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path, base=untrained)(images(3)), upgraded(images(3)))
    assert all(torch.equal(before[name], tensor) for name, tensor in untrained.state_dict().items())
    assert untrained.training


def test_a_base_of_another_kind_is_refused_by_the_layer(saved: Path) -> None:
    with pytest.raises(UserError, match="CifarResNet is not the network that was upgraded: it has no bn3"):
        from_pretrained(saved, base=with_conv("down"))
    with pytest.raises(
        UserError, match="CifarResNet is not the network that was upgraded: conv2 is no convolution of it"
    ):
        from_pretrained(saved, base=create_model("resnet20"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ghostnet_050", {"width": 0.3, "drop_rate": 0.1}), ("ghost_resnet20", {"ratio": 3}), ("ghostnetv3_050", {}),
        ("g_ghost_regnetx_002", {"mix": False, "form": "figure"}), ("vgg16", {}),
    ],
)  # fmt: skip
def test_any_network_of_the_catalogue_comes_back(
    tmp_path: Path, dataset: Dataset, name: str, options: dict[str, Any]
) -> None:
    model = create_model(name, num_classes=5, in_chans=1, **options).eval()
    model.reset_classifier(10)
    save_pretrained(model, tmp_path, dataset=dataset)
    again = from_pretrained(tmp_path)
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert not again.training
    assert json.loads((tmp_path / "config.json").read_text())["model"] == {
        "name": name, **({"options": options} if options else {}),
    }  # fmt: skip


def test_folded_branches_come_back_folded(tmp_path: Path, dataset: Dataset) -> None:
    model = fold_branches(create_model("ghostnetv3_050", num_classes=10, in_chans=1).eval())
    save_pretrained(model, tmp_path, dataset=dataset)
    again = from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(again(torch.ones(1, 1, 64, 64)), model(torch.ones(1, 1, 64, 64)))


def test_a_trained_network_knows_what_it_is_for(tmp_path: Path) -> None:
    save_pretrained(create_model("resnet20.digits", pretrained=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["mean"], config["input_size"], config["classes"]) == ([0.3047], [1, 32, 32], list("0123456789"))


def test_what_cannot_be_known_is_asked_for(tmp_path: Path, dataset: Dataset) -> None:
    fresh = create_model("resnet20", in_chans=1)
    out = tmp_path / "out"
    for model in (fresh, create_model("resnet20.digits", pretrained=True, num_classes=4), nn.Linear(2, 2)):
        with pytest.raises(UserError, match="is not known: pass dataset="):
            save_pretrained(model, out)
    with pytest.raises(UserError, match="tells 7 classes apart, and the images have 10"):
        save_pretrained(create_model("resnet20", num_classes=7, in_chans=1), out, dataset=dataset)
    with pytest.raises(UserError, match="original and plan belong together"):
        save_pretrained(fresh, out, dataset=dataset, original=fresh)
    with pytest.raises(UserError, match="resnet20 is for another network than this CifarResNet"):
        save_pretrained(create_model("resnet20"), out, dataset=dataset)
    with pytest.raises(UserError, match="which no file can hold"):
        save_pretrained(create_model("ghostnet_050", num_classes=10, version=V2), out, dataset=dataset)
    assert not out.exists()
    save_pretrained(CifarResNet(3, in_chans=1), out, dataset=dataset)  # not by create_model: its class alone is known
    with pytest.raises(UserError, match=r"in memory \(ghostnets.models.resnet.CifarResNet\): pass one of that class"):
        from_pretrained(out)


def with_conv(name: str) -> nn.Module:
    network = create_model("resnet20")
    for module in ("conv1", "bn1", "conv2", "bn2", "relu"):
        setattr(network, module, nn.Conv2d(8, 8, 1))
    setattr(network, name, nn.Conv2d(8, 8, 1))
    return network


def test_weights_that_do_not_fit_are_listed(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["alien"] = torch.zeros(1)
    tensors["classifier.weight"] = torch.zeros(3, 12)
    del tensors["classifier.bias"]
    save_file(tensors, saved / "model.safetensors")
    listed = "1 missing (classifier.bias); 1 unexpected (alien); 1 of another shape (classifier.weight 3×12 instead of 10×12)"
    with pytest.raises(UserError, match=re.escape(listed)):
        from_pretrained(saved, trust_code=True)


def test_a_source_that_is_another_network_is_refused_before_anything_is_written(
    tmp_path: Path, tiny: tuple[nn.Module, nn.Module, Plan], dataset: Dataset
) -> None:
    original, upgraded, decided = tiny
    out = tmp_path / "out"
    with pytest.raises(UserError, match="resnet20 is for another network than this TinyNet"):
        save_pretrained(upgraded, out, original=original, plan=decided, dataset=dataset, source="resnet20")
    with pytest.raises(UserError, match="the plan is for another network than this TinyNet: they differ in conv1"):
        save_pretrained(original, out, original=original, plan=decided, dataset=dataset, source=TINY_SOURCE)
    assert not out.exists()


def test_saving_twice_gives_the_same_bytes(
    saved: Path, tmp_path: Path, tiny: tuple[nn.Module, nn.Module, Plan], dataset: Dataset
) -> None:
    original, upgraded, decided = tiny
    again = tmp_path / "again"
    save_pretrained(upgraded, again, original=original, plan=decided, dataset=dataset, source=TINY_SOURCE)
    for file in saved.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(schema=99), "has schema 99"),
        (lambda config: config.pop("edits"), r"lacks \['edits'\]"),
        (lambda config: config["model"].update(name="resnet21"), "there is no network 'resnet21'"),
    ],
)
def test_a_config_that_says_something_else_is_refused(saved: Path, change: Any, message: str) -> None:
    edit(saved, change)
    with pytest.raises(UserError, match=message):
        from_pretrained(saved, trust_code=True)


def test_what_is_missing_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors do not exist"):
        from_pretrained(saved, trust_code=True)
    shutil.rmtree(saved)
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(:", "fails with SyntaxError"),
        ("import no_such_module", "fails with ModuleNotFoundError: No module named 'no_such_module'"),
        ("def other(): pass", "has no function 'build'"),
        ("def build(): return 3", "returns int: it must return the network"),
        ("def build(): return {}['x']", "fails with KeyError: 'x'"),
        ("def build(): return (1).y", "fails with AttributeError"),
    ],
)
def test_a_factory_that_fails_says_how(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    path = list(sys.path)
    with pytest.raises(UserError, match=re.escape(message)):
        load_factory(file, "build")
    assert sys.path == path


def test_neighbours_of_the_factory_are_kept_and_found_in_a_fresh_process(tmp_path: Path, dataset: Dataset) -> None:
    folder, out = tmp_path / "code", tmp_path / "out"
    folder.mkdir()
    (folder / "model.py").write_text(
        "from torch import nn\ndef head():\n    from shapes import inner\n    return nn.Linear(inner(), 10)\n"
    )
    (folder / "mine.py").write_text(
        "from torch import nn\nfrom model import head\n"
        "def build(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head())\n"
    )
    (folder / "shapes").mkdir()
    (folder / "shapes" / "__init__.py").write_text("from shapes.sizes import inner\n")
    (folder / "shapes" / "sizes.py").write_text("def inner(): return 4\n")
    (folder / "unused.py").write_text("raise SystemExit('it ran')\n")
    source = f"{folder / 'mine.py'}:build"
    save_pretrained(load_factory(folder / "mine.py", "build"), out, dataset=dataset, source=source)
    shutil.rmtree(folder)
    kept = {file.relative_to(out).as_posix() for file in out.rglob("*.py")}
    assert kept == {"mine.py", "model.py", "shapes/__init__.py", "shapes/sizes.py"}
    code = f"import ghostnets; print(ghostnets.from_pretrained({str(out)!r}, trust_code=True)[3].out_features)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "10\n", done.stderr


def test_a_factory_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import Net\ndef build(): return Net()\n")
    assert type(load_factory(tmp_path / "mine.py", "build")).__name__ == "Net"
    with pytest.raises(UserError, match="cannot be read"):
        load_factory(tmp_path / "other.py", "build")
