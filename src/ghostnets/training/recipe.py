# SPDX-License-Identifier: Apache-2.0
"""Every knob of a training run in one frozen record; the named recipes are YAML files in the folder ``recipes``."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ghostnets.errors import UserError
from ghostnets.records import from_json, to_json

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the names are those of timm's flags where timm has the flag."""

    expected: str = "not measured"
    """What it reaches, in how much time, on which machine."""

    epochs: float = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Of all processes and accumulated parts together."""
    grad_accum_steps: int = 1
    """Parts of a process's share that go through the network one after the other, to save memory."""

    opt: Literal["sgd", "adamw", "lamb", "muon"] = "sgd"
    """What moves the weights."""
    lr: float = 0.1
    """Peak learning rate."""
    adamw_share: float = 0.1
    """The rate, as a share of Muon's, of what AdamW moves beside it: norms, biases, depthwise filters, the classifier."""
    momentum: float = 0.9
    """Of SGD, Nesterov's; the first beta of the others."""
    weight_decay: float = 5e-4
    """Of filters and matrices; norms and biases have none."""
    clip_grad: float | None = None
    """Largest norm of the whole gradient."""
    head_epochs: float = 0.0
    """For so long the classifier learns alone."""
    layer_decay: float = 1.0
    """The rate of every block as a share of that of the next."""

    sched: Literal["cosine", "step", "onecycle", "constant"] = "cosine"
    """The course of the learning rate behind the warm-up."""
    warmup_epochs: float = 0.0
    """Over which the rate rises in a straight line."""
    warmup_lr: float = 0.0
    """Where it rises from."""
    min_lr: float = 0.0
    """Where it ends."""
    decay_milestones: tuple[float, ...] = ()
    """Epochs after which sched step multiplies the rate by decay_rate."""
    decay_rate: float = 0.1
    """See decay_milestones."""

    smoothing: float = 0.0
    """Share of every label that is spread over all classes."""
    zero_init_last: bool = False
    """Whether the last norm of every residual branch starts at zero, where the weights are drawn: the network begins shallow."""
    drop: float | None = None
    """Dropout before the classifier (default: what the network has)."""

    padding: int | None = None
    """Pixels of border from which a crop of the old size is taken (default: what suits the images)."""
    reflect: bool = False
    """Whether that border mirrors the image instead of being black."""
    scale: tuple[float, float] | None = None
    """Least and largest share of a photograph's area that is cut out and resized."""
    hflip: Literal["none", "random", "alternate"] | None = None
    """Mirror images: half of all, or every other epoch the other half (default: random where the images allow it)."""
    aa: str | None = None
    """RandAugment as timm writes it: rand-m9-n2."""
    reprob: float = 0.0
    """Probability that a rectangle of an image is erased."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that the weights of two mixed images are drawn from."""
    cutmix: float = 0.0
    """The same for a rectangle of another image; with both above 0, one or the other, batch by batch."""
    mixup_off_epoch: float | None = None
    """From when on images are no longer mixed."""

    low_res: float = 1.0
    """Share of their sides that images are scaled down to at first, which is faster."""
    low_res_until: float = 0.0
    """For this share of the epochs."""
    low_res_grows: bool = False
    """Whether they are halfway back in the second half of that time, instead of growing all at once behind it."""

    model_ema_decay: float | None = None
    """Of the weights' moving average, a step; what is returned is the average then."""

    kd_model: str | None = None
    """The teacher: a folder, a network that comes trained, or file.py:factory (the file is run)."""
    kd_alpha: float = 0.5
    """Share of the loss that the teacher's answers are."""
    kd_temperature: float = 4.0
    """Of both answers' softmax, where they are compared."""
    kd_features: float = 0.0
    """Weight of the error of what the classifier reads, against the teacher's."""
    kd_views: int = 0
    """Draw images in so many epochs only: later ones repeat them, and what the teacher said is remembered (0: draw always)."""

    amp_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the convolutions and linear layers while training."""
    channels_last: bool = True
    """The order of maps in memory."""
    compile: bool = False
    """By torch.compile: minutes at first, then faster."""
    native: bool = True
    """Ghost modules by C of our own: on a CPU where a compiler is, channels_last, without compile or sync_bn."""
    sync_bn: bool = False
    """Whether batch norms see the whole batch, not the process's share of it."""

    def __post_init__(self) -> None:
        for names, low, high in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and low <= value <= high):
                    raise UserError(f"recipe: {name} {value:g} must lie between {low:g} and {high:g}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"recipe: scale {self.scale[0]:g},{self.scale[1]:g} must be two shares of an area, in order"
            )
        if not all(math.isfinite(epoch) and epoch >= 0 for epoch in self.decay_milestones):
            listed = ",".join(f"{epoch:g}" for epoch in self.decay_milestones)
            raise UserError(f"recipe: decay_milestones {listed} must be epochs, from 0 on")
        if self.sched == "step" and not self.decay_milestones:
            raise UserError("recipe: sched step needs decay_milestones, such as 82 123")
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"recipe: warmup_epochs {self.warmup_epochs:g} must not be more than epochs {self.epochs:g}"
            )

    def view(self, epoch: int) -> int:
        """The epoch whose order, crops and mixtures this one has: its own, or with kd_views the one that it repeats
        (Shen and Xing, arXiv:2112.01528).
        """
        return epoch % self.kd_views if self.kd_views else epoch


_RANGES = (
    ("epochs", 1e-6, 1e6),
    ("batch_size grad_accum_steps", 1, 1e7),
    ("lr adamw_share warmup_lr min_lr weight_decay kd_features mixup cutmix", 0, 1e6),
    ("momentum", 0, 0.9999),  # at 1 Adam's averages would never take anything in
    ("decay_rate reprob kd_alpha model_ema_decay low_res_until", 0, 1),
    ("smoothing drop", 0, 0.999),
    ("clip_grad kd_temperature", 1e-6, 1e6),
    ("warmup_epochs head_epochs mixup_off_epoch", 0, 1e6),
    ("layer_decay", 1e-3, 1),
    ("low_res", 0.1, 1),
    ("padding", 0, 512),
    ("kd_views", 0, 1e6),
)


class _Loader(yaml.SafeLoader):
    """As YAML 1.2 has it, ``1e-3`` is a number: PyYAML, which reads 1.1, wants ``1.0e-3``."""


class _Dumper(yaml.SafeDumper):
    """Quotes a word that ``_Loader`` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def recipe_names() -> list[str]:
    """Of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name or in that YAML file, with some knobs turned.

    Raises UserError where there is none, or where it holds an unknown knob or a value that does not fit one.
    """
    path = FOLDER / f"{source}.yaml" if source in recipe_names() else Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        hint = _hint(source, recipe_names())
        raise UserError(
            f"there is no recipe {source!r}{hint}: choose {', '.join(recipe_names())}, or name a .yaml file"
        )
    try:
        known = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe one
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a date, or of brackets without end
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(known, dict):
        raise UserError(f"{path} should hold knobs and their values, not {type(known).__name__}")
    knobs = [field.name for field in dataclasses.fields(Recipe)]
    given = {**known, **(overrides or {})}
    for name in given:
        if name not in knobs:
            where = path if name in known else "the recipe"
            raise UserError(f"{where} has an unknown knob {name!r}{_hint(str(name), knobs)}")
    try:
        return from_json(Recipe, given)
    except OverflowError:
        raise UserError(f"{path} holds a number that is too large") from None


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def as_yaml(recipe: Recipe) -> str:
    """The recipe as a file that ``load_recipe`` reads, every knob written out."""
    return yaml.dump(to_json(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
