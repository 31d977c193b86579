# SPDX-License-Identifier: Apache-2.0
"""Trains the embedded network: a ResNet-20 for the handwritten digits that come with scikit-learn.

    python tools/train_digits.py [--out FILE] [--seed N]

Writes half-precision weights, reads them back, and says what the file that is written gets right on the test images.
The test images choose nothing: no epoch, no setting. What it prints belongs into ``models/weights.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from ship import halved
from torch import nn

import ghostnets
from ghostnets.measure.accuracy import top1
from ghostnets.models.resnet import cifar_resnet
from ghostnets.models.weights import load_weights
from ghostnets.training.augment import batches, random_crop_flip
from ghostnets.training.data import Dataset, Images, load_dataset, normalise
from ghostnets.training.draw import generator, whole

OUT = Path(ghostnets.__file__).parent / "models" / "data" / "resnet20_digits.safetensors"

EPOCHS = 60
BATCH_SIZE = 64
PEAK_LR = 0.1  # as He et al. (arXiv:1512.03385, section 4.2), reached by a warm-up and left by a cosine
WARMUP = 0.1  # of all steps
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
PADDING = 3  # pixels of black border: a digit has little of its own


def main() -> None:
    """Train, write, read back, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    say = Console(soft_wrap=True).print

    digits = load_dataset("digits")
    started = time.monotonic()
    model = train(digits, seed=asked.seed, say=say)
    seconds = time.monotonic() - started

    written = write(model, digits, asked.out, seed=asked.seed)
    stored = cifar_resnet(20, in_chans=1)
    load_weights(stored, asked.out)
    say(f"{seconds:.0f} s, torch {torch.__version__}, {torch.get_num_threads()} threads")
    say(f"{asked.out.name}: {len(written)} bytes, SHA-256 {hashlib.sha256(written).hexdigest()}")
    for name, images in (("training", digits.train), ("test", digits.test)):
        say(f"{accuracy(stored, images, digits):.2f} % of {len(images)} {name} images")


def train(digits: Dataset, *, seed: int, say: Callable[[str], None]) -> nn.Module:
    """A ResNet-20 after all epochs, in eval mode."""
    torch.manual_seed(seed)
    model = cifar_resnet(20, in_chans=1).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(decayed(model), lr=PEAK_LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps = EPOCHS * (len(digits.train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step / steps))
    step = 0
    for epoch in range(EPOCHS):
        total = 0.0
        for pixels, labels in batches(digits.train, batch_size=BATCH_SIZE, seed=seed, epoch=epoch, drop_last=True):
            moved = random_crop_flip(
                pixels, padding=PADDING, flip=False, draw=whole(generator(seed, 1, step), len(pixels))
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(normalise(moved, digits.mean, digits.std))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            total += float(loss.detach())
        say(f"epoch {epoch + 1}/{EPOCHS}: loss {total * EPOCHS / steps:.3f}")
    return model.eval()


def decayed(model: nn.Module) -> list[dict[str, object]]:
    """Parameter groups: weight decay for the matrices, none for norms and biases."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def rate(done: float) -> float:
    """The share of the peak learning rate once this share of all steps is done."""
    return done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


def write(model: nn.Module, digits: Dataset, path: Path, *, seed: int) -> bytes:
    """The file's bytes: half-precision weights that say themselves what they are."""
    about = {
        "architecture": "resnet20",
        "data": digits.name,
        "in_chans": 1,
        "classes": digits.classes,
        "mean": digits.mean,
        "std": digits.std,
        "seed": seed,
        "epochs": EPOCHS,
        "recipe": "tools/train_digits.py",
        "license": "Apache-2.0",
    }
    written = halved(model, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written)
    return written


def accuracy(model: nn.Module, images: Images, digits: Dataset) -> float:
    """Percent right."""
    drawn = batches(images, batch_size=256, shuffle=False)
    return top1(model, ((normalise(pixels, digits.mean, digits.std), labels) for pixels, labels in drawn))


if __name__ == "__main__":
    main()
