# SPDX-License-Identifier: Apache-2.0
"""Trained weights: the checkpoints that come with the package, and reading any file of weights into a network."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ghostnets.errors import UserError

PYTORCH = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
"""Endings of files that torch.save writes."""

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
"""Where training scripts put the weights beside their other state; averaged weights first, as in timm."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel, AveragedModel and torch.compile put before every name."""

BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Counters that no output depends on: files of old PyTorch versions lack the first, averaged ones have the second, and
a profiler left the others in published ones (facts C.4)."""

RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\.(primary_rpr|cheap_rpr|dw_rpr)_(conv\.\d+|scale)\.bn\.", r".\1_\2.bn1."),  # the authors' GhostNetV3
    (r"^s(\d)\.b(\d+)\.", lambda found: f"layer{found[1]}.{int(found[2]) - 1}."),  # timm's RegNets, and below
    (r"^stem\.(conv|bn)\.", r"\g<1>1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.bn\.", r".bn\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"^head\.fc\.", "fc."),
)
"""Pattern and replacement: what others call a parameter that the network here has under its published name."""

PLAIN: list[Any] = [argparse.Namespace]
"""What training scripts (timm's) keep beside the weights and what runs no code when it is read: their own options."""

LISTED = 5
"""Names of a kind in one message; the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint in the package: what it is, what it expects, and how good it was measured to be."""

    architecture: str
    file: str
    sha256: str
    license: str
    data: str
    in_chans: int
    input_size: tuple[int, int]
    """(H, W)"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    crop: float = 0.875
    """Share of the resized image's short side, where an image has another size."""
    interpolation: str = "bilinear"
    rescale: bool = False
    """Whether an image of the input's size is resized and cropped like any other."""
    classifier: str
    """The layer whose rows are the classes: it starts anew where another number of classes is asked for."""
    top1: float
    """Percent of the test images."""
    measured: str
    """On what, and by what, ``top1`` was measured."""

    @property
    def path(self) -> Path:
        """Where the file lies. Raises UserError where it is not the file that was measured."""
        path = Path(__file__).parent / "data" / self.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise UserError(f"{self.file} is missing from this installation or damaged: install ghostnets again")
        return path


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _cifar10(architecture: str, sha256: str, right: int) -> Weights:
    """Trained by us, with so many of the 10,000 test images right; ``tools/ship.py`` prints the call."""
    return Weights(
        architecture=architecture,
        file=f"{architecture}_cifar10.safetensors",
        sha256=sha256,
        license="Apache-2.0",
        data="cifar10",
        in_chans=3,
        input_size=(32, 32),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=CIFAR_10,
        classifier="linear",
        top1=right / 100,
        measured=f"{right:,} of the 10,000 test images right, float32; one run, docs/cards/{architecture}.cifar10.md",
    )


WEIGHTS: Mapping[str, Weights] = {
    "resnet56.cifar10": _cifar10("resnet56", "ad8d22075a34036c269ff2f96cb1915e0ea0c993cb3c082de43f457376a43d90", 9358),
    "ghost_resnet56.cifar10": _cifar10(
        "ghost_resnet56", "ec1aa9d27c8097e0c1fb428c6e73d00b24e3a3b14a9dfd683f0d1c5709d824c8", 9327
    ),
    "resnet20.cifar10": _cifar10("resnet20", "4797a92f0ee56ca537ac7ca2eca0553d1c39fdf5238bc90c3fc63b607482e616", 9232),
    "ghost_resnet20.cifar10": _cifar10(
        "ghost_resnet20", "898b9ede299433486b11b5802b4eaae74853cea6f4eca4133887bbefd7cd821f", 9018
    ),
    "resnet20.digits": Weights(
        architecture="resnet20",
        file="resnet20_digits.safetensors",
        sha256="98aff53e625631520413dc9f28d5557d8947d80eca696958d3eb985117b59f80",
        license="Apache-2.0",
        data="digits",
        in_chans=1,
        input_size=(32, 32),
        mean=(0.3047,),
        std=(0.3231,),
        classes=tuple("0123456789"),
        classifier="linear",
        top1=99.17,
        measured="357 of the 360 test images right, float32; one run of tools/train_digits.py, seed 0",
    ),
}
"""Name with tag -> its weights."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill ``model`` with the weights in ``path``: all of them, or none if anything does not fit.

    Raises UserError where the file cannot be read, does not fit the network, or holds NaN or infinite weights.
    """
    fill(model, read_weights(path), str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, or in a PyTorch file that is read without running code from it.

    Out of a training checkpoint come its weights, averaged ones before raw ones; prefixes of wrappers are removed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"weights {path} do not exist")
    if not path.is_file():
        raise UserError(f"weights {path} are not a file")
    if path.suffix == ".safetensors":
        found: Any = _read_safetensors(path)
    elif path.suffix in PYTORCH:
        found = _read_pytorch(path)
    else:
        ending = f"end in {path.suffix!r}" if path.suffix else "have no ending"
        raise UserError(f"weights {path} {ending}: give .safetensors or one of {', '.join(PYTORCH)}")
    return _tensors(found, path)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``model``, in its own dtype, if they are exactly its weights; ``source`` names them."""
    wanted = model.state_dict()
    tensors = {_own_name(name, wanted): tensor for name, tensor in tensors.items()}
    missing = [name for name in wanted if name not in tensors and not _is_bookkeeping(name)]
    unexpected = [name for name in tensors if name not in wanted and not _is_bookkeeping(name)]
    shared = {name: tensor for name, tensor in tensors.items() if name in wanted}
    shapes = [
        f"{name} {_size(tensor)} instead of {_size(wanted[name])}"
        for name, tensor in shared.items()
        if tensor.shape != wanted[name].shape
    ]
    problems = [_list("missing", missing), _list("unexpected", unexpected), _list("of another shape", shapes)]
    if any(problems):
        raise UserError(f"{source} does not fit {type(model).__name__}: {'; '.join(filter(None, problems))}")
    cast = {name: tensor.to(wanted[name].dtype) for name, tensor in shared.items()}
    for name, tensor in cast.items():
        if tensor.is_floating_point() and not shared[name].is_floating_point():
            raise UserError(f"{source}: {name} holds {shared[name].dtype} values, which are no weights as they stand")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds NaN or infinite values")
    model.load_state_dict({**wanted, **cast})


def _own_name(name: str, wanted: Collection[str]) -> str:
    """What the network calls this parameter; the name itself where it is not known by another."""
    own = name
    for pattern, replacement in RENAMED:
        own = re.sub(pattern, replacement, own)
    return own if name not in wanted and own in wanted else name


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or cut short: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_pytorch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's remarks on unusual pickles: they end in a refusal below
            with torch.serialization.safe_globals(PLAIN):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - damage raises anything, and PyTorch's words advise weights_only=False
        program = isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)
        named = re.search(r"GLOBAL (\S+) w", str(error))
        raise UserError(
            f"{path} is refused: it holds more than tensors{f' ({named[1]})' if named else ''}, and opening that could "
            "run code; save the network's state_dict() alone, best as .safetensors"
            if program
            else f"{path} is no PyTorch file of weights, or cut short"
        ) from None


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(found, Mapping) and (inner := next((w for w in WRAPPERS if _wraps(found, w)), None)):
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds no weights: a state_dict() was expected")
    odd = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise UserError(f"{path} holds no weights: {odd!r} is no tensor, and a state_dict() has only tensors")
    tensors = {str(name): value for name, value in found.items()}
    while (prefix := next((p for p in PREFIXES if _all_start(tensors, p)), None)) is not None:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _all_start(names: Iterable[str], prefix: str) -> bool:
    """Whether every name starts so; AveragedModel keeps its own counter without the prefix."""
    return all(name.startswith(prefix) for name in names if name != "n_averaged")


def _wraps(found: Mapping[Any, Any], name: str) -> bool:
    return isinstance(found.get(name), Mapping) and bool(found[name])


def _is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in BOOKKEEPING


def _list(what: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {what} ({', '.join(names[:LISTED])}{more})"


def _size(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "scalar"
