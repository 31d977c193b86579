# SPDX-License-Identifier: Apache-2.0
"""An exported file gives what PyTorch gives, at any batch size; a file that does not is not left lying about."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.deploy.onnx import export_onnx
from ghostnets.deploy.verify import verify_onnx
from ghostnets.errors import GhostnetsError, MissingExtra, UserError
from ghostnets.models.catalog import create_model

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Small(nn.Module):
    """One of everything that an upgraded network has."""

    def __init__(self) -> None:
        super().__init__()
        self.ghost = GhostModule(3, 8, kernel_size=3, ratio=3, relu=True)
        self.gather = ChannelGather(8)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(self.ghost(x))
        return self.linear(torch.relu(x + self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    model.gather.set_(torch.randperm(8))
    model(torch.randn(64, 3, 9, 9))  # norms with statistics of their own
    return model


@pytest.fixture(scope="module")
def exported(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(small, torch.randn(1, 3, 9, 9), tmp_path_factory.mktemp("onnx") / "deep" / "small.onnx")


def test_the_file_is_one_valid_model_of_any_batch_size(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["small.onnx"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    (dims,) = [value.type.tensor_type.shape.dim for value in model.graph.input]
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 9, 9]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_file_says_nothing_about_this_machine(exported: Path) -> None:
    data = exported.read_bytes()
    for folder in (Path(__file__).parents[2], Path(torch.__file__).parent, Path(sys.prefix), exported.parent):
        assert str(folder).encode() not in data
    assert b"stack_trace" not in data


def test_the_reference_evaluator_agrees(exported: Path, small: nn.Module) -> None:
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(exported))  # plain numpy, no runtime
    small.eval()
    for count in (1, 3):
        x = torch.randn(count, 3, 9, 9)
        (found,) = evaluator.run(None, {"images": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, small(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_right_file_is_verified_and_everything_stays(exported: Path, small: nn.Module, count: int) -> None:
    small.train()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    found = verify_onnx(small, exported, torch.randn(count, 3, 9, 9))
    assert found.n == count
    assert found.max_rel < 1e-5
    assert 0 <= found.max_abs < 1e-4
    assert found.top1_agreement == 100
    assert found.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert all(module.training for module in small.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert exported.is_file()


def test_the_figures_of_a_wrong_file_are_said_and_it_is_removed(
    exported: Path, small: nn.Module, tmp_path: Path
) -> None:
    model = onnx.load(exported)
    bias = next(i for i in model.graph.initializer if list(i.dims) == [4])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[2] += 0.125  # one logit is off by this, exactly
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    path = tmp_path / "wrong.onnx"
    onnx.save(model, path)
    with pytest.raises(GhostnetsError, match=r"wrong.onnx disagrees .* removed: on 5 images .* up to 0\.125"):
        verify_onnx(small, path, torch.randn(5, 3, 9, 9))
    assert not path.exists()


def test_a_file_of_one_batch_size_is_removed(small: nn.Module, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(GhostnetsError, match="does not run on 5 images, so it was removed"):
        verify_onnx(small, tmp_path / "fixed.onnx", torch.randn(5, 3, 9, 9))
    assert not any(tmp_path.iterdir())


def test_files_and_images_that_are_none_are_refused(small: nn.Module, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        verify_onnx(small, tmp_path / "none.onnx", torch.randn(1, 3, 9, 9))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(UserError, match="no ONNX file"):
        verify_onnx(small, tmp_path / "junk.onnx", torch.randn(1, 3, 9, 9))
    with pytest.raises(UserError, match="without images"):
        verify_onnx(small, exported, torch.randn(0, 3, 9, 9))
    assert (tmp_path / "junk.onnx").exists()  # it was not ours


def test_nothing_is_said_while_exporting(small: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(small, torch.randn(2, 3, 9, 9), tmp_path / "a.onnx")
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


def test_the_embedded_network_is_exported_right(tmp_path: Path) -> None:
    model = create_model("resnet20.digits", pretrained=True)
    path = export_onnx(model, torch.zeros(1, 1, 32, 32), tmp_path / "digits.onnx")
    assert verify_onnx(model, path, torch.randn(20, 1, 32, 32)).top1_agreement == 100
    weights = sum(p.numel() for n, p in model.named_parameters() if "bn" not in n)
    assert 4 * weights < path.stat().st_size < 1.2 * 4 * weights


class Ragged(nn.Module):
    """Its output size depends on values, which a graph cannot hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_select(x > 0).unflatten(0, (int(x.shape[0]), -1))


def test_networks_that_cannot_be_exported_leave_nothing(tmp_path: Path, small: nn.Module) -> None:
    with pytest.raises(UserError, match="Ragged cannot be"):
        export_onnx(Ragged(), torch.ones(2, 3, 4, 4), tmp_path / "a.onnx")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        export_onnx(small, torch.randn(1, 3, 9, 9), tmp_path / "file" / "a.onnx")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        export_onnx(small, torch.randn(1, 3, 9, 9), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("absent", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(
    absent: str, small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=r"ghostnets\[onnx\]"):
        export_onnx(small, torch.randn(1, 3, 9, 9), tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"ghostnets\[onnx\]"):
        verify_onnx(small, tmp_path / "a.onnx", torch.randn(1, 3, 9, 9))


def test_the_room_loads_without_the_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime')))\n"
        "import ghostnets.deploy.onnx, ghostnets.deploy.verify"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
