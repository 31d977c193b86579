# SPDX-License-Identifier: Apache-2.0
"""Two networks that others have trained on ImageNet, from the files in GHOSTNETS_DATA (else ../shared/data): real input for
inspect, upgrade and validate.

ghostnets inspect benchmarks/imagenet_networks.py:squeezenet --data ../shared/data/imagenette --input-size 227,227 \
    --mean 0.48235,0.45882,0.40784 --std 0.0039216,0.0039216,0.0039216 --out build/squeezenet
ghostnets inspect benchmarks/imagenet_networks.py:mobilenet_v2 --data ../shared/data/imagenette \
    --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out build/mobilenet
python benchmarks/imagenet_networks.py      the accuracy of both on Imagenette's test photographs, 1000 ways
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(os.environ.get("GHOSTNETS_DATA") or Path(__file__).parents[2] / "shared" / "data")

WNIDS = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497, "n03394916": 566,
    "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


class Fire(nn.Module):
    """A 1×1 convolution, and beside each other a 1×1 and a 3×3 one over it (Iandola et al., arXiv:1602.07360)."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_act = nn.Conv2d(channels, squeeze, 1), nn.ReLU()
        self.expand1x1, self.expand1x1_act = nn.Conv2d(squeeze, expand, 1), nn.ReLU()
        self.expand3x3, self.expand3x3_act = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_act(self.squeeze(x))
        return torch.cat([self.expand1x1_act(self.expand1x1(x)), self.expand3x3_act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for colours in the order blue, green, red; it turns them round itself."""

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128),
            Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x[:, [2, 1, 0]])).mean((2, 3))


class SameConv(nn.Conv2d):
    """TensorFlow's padding: what is odd of it goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (k, _), (s, _) = self.kernel_size, self.stride
        lacking = [max((-(-side // s) - 1) * s + k - side, 0) for side in x.shape[2:]]
        top, left = lacking[0] // 2, lacking[1] // 2
        return super().forward(F.pad(x, (left, lacking[1] - left, top, lacking[0] - top)))


class Inverted(nn.Module):
    """Wide, depthwise, narrow (Sandler et al., arXiv:1801.04381), norms folded."""

    def __init__(self, channels: int, wide: int, out: int, stride: int) -> None:
        super().__init__()
        if wide != channels:
            self.expand, self.expand_act = nn.Conv2d(channels, wide, 1), nn.ReLU6()
        self.depthwise, self.depthwise_act = SameConv(wide, wide, 3, stride, groups=wide), nn.ReLU6()
        self.project = nn.Conv2d(wide, out, 1)
        self.same = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_act(self.expand(x)) if hasattr(self, "expand") else x
        y = self.project(self.depthwise_act(self.depthwise(y)))
        return x + y if self.same else y


class MobileNetV2(nn.Module):
    """1001 outputs, of which the first, the background, is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_act = SameConv(3, 32, 3, 2), nn.ReLU6()
        self.blocks = nn.Sequential()
        channels = 32
        for factor, out, count, stride in (  # arXiv:1801.04381, Table 2
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for k in range(count):
                self.blocks.append(Inverted(channels, channels * factor, out, stride if k == 0 else 1))
                channels = out
        self.last, self.last_act = nn.Conv2d(320, 1280, 1), nn.ReLU6()
        self.classifier = nn.Conv2d(1280, 1001, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last_act(self.last(self.blocks(self.stem_act(self.stem(x)))))
        return self.classifier(x.mean((2, 3), keepdim=True)).flatten(1)[:, 1:]


def squeezenet() -> SqueezeNet:
    """With its weights."""
    network = SqueezeNet()
    stored = load_file(DATA / "weights" / "squeezenet1_1_imagenet.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return network.eval()


def mobilenet_v2() -> MobileNetV2:
    """With its weights, which lie in the order in which the convolutions run."""
    network = MobileNetV2()
    stored = load_file(DATA / "weights" / "mobilenet_v2_imagenet_folded.safetensors")
    rows = json.loads((DATA / "weights" / "mobilenet_v2_imagenet_folded.layers.json").read_text())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [list(conv.weight.shape) for conv in convolutions] == [row["weight_shape"] for row in rows]
    for k, conv in enumerate(convolutions):
        assert conv.bias is not None
        conv.weight.data.copy_(stored[f"{k:02}.weight"])
        conv.bias.data.copy_(stored[f"{k:02}.bias"])
    return network.eval()


NETWORKS = {  # size, mean and standard deviation
    squeezenet: ((227, 227), (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3),
    mobilenet_v2: ((224, 224), (0.5,) * 3, (0.5,) * 3),
}


def main() -> None:
    """Print the accuracy of both."""
    from ghostnets.training.data import normalise
    from ghostnets.training.image_folder import decode_image

    files = [(path, WNIDS[path.parent.name]) for path in sorted((DATA / "imagenette" / "val").glob("*/*.JPEG"))]
    for build, (size, mean, std) in NETWORKS.items():
        network, right = build(), 0
        with torch.no_grad():
            for start in range(0, len(files), 50):
                part = files[start : start + 50]
                pixels = torch.stack(
                    [torch.from_numpy(decode_image(path, size=size, channels=3).copy()) for path, _ in part]
                )
                answers = network(normalise(pixels, mean, std)).argmax(1)
                right += int((answers == torch.tensor([label for _, label in part])).sum())
        print(f"{build.__name__}: {100 * right / len(files):.1f} % of {len(files)} photographs")


if __name__ == "__main__":
    main()
