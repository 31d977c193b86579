# SPDX-License-Identifier: Apache-2.0
"""Every module comes back in its own mode, whatever happens in between."""

from __future__ import annotations

import pytest
from torch import nn

from ghostnets.measure.modes import evaluating


def mixed() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Sequential(nn.ReLU()))
    model[1].eval()
    return model


def test_all_are_in_evaluation_and_each_comes_back() -> None:
    first, second = mixed(), nn.Sequential(nn.ReLU()).eval()
    with evaluating(first, second):
        assert not any(module.training for network in (first, second) for module in network.modules())
    assert [module.training for module in first.modules()] == [True, True, False, True, True]
    assert not any(module.training for module in second.modules())


def test_also_after_an_error() -> None:
    model = mixed()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
