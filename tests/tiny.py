# SPDX-License-Identifier: Apache-2.0
"""A network that is upgraded in a second, in the form in which users bring theirs: a file with a function."""

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """A stem, a residual block, a convolution with stride, a classifier; (N, 1, H, W) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.classifier(self.relu(self.bn3(self.down(x))).mean((2, 3)))


def build() -> TinyNet:
    """The network with weights that nobody trained, and norms that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = TinyNet()
        nn.init.normal_(network.classifier.weight, std=5.0)  # so that the answers depend on the images
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean = 0.1 * torch.randn(module.num_features)
                module.running_var = 0.5 + torch.rand(module.num_features)
    return network
