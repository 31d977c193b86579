# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: a torchvision that imports, two threads, one seed, and where the large data lies."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# A torchvision wheel built for CUDA cannot load its compiled part beside a CPU build of torch, and its import then
# fails with "operator torchvision::nms does not exist". Nothing here calls these operators, so declaring them is
# enough. Beside a torchvision that loads, a second declaration would clash: hence the look first.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_torchvision_operators() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        for compiled in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator)
        return library
    return None


_KEPT_ALIVE = _declare_torchvision_operators()  # the declarations go when the library object goes

hypothesis.settings.register_profile("ghostnets", deadline=None)  # the first call into torch is slow
hypothesis.settings.load_profile("ghostnets")

# Workers of pytest-xdist share the cores, and two thread pools that wait for each other are slower than none: one thread
# a worker, in the processes that tests start too.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Where the CIFAR-10 files and published weights lie; tests that need them are skipped elsewhere."""
    root = Path(os.environ.get("GHOSTNETS_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no data at {root}: set GHOSTNETS_DATA to a folder that holds it")
    return root
