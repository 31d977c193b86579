# SPDX-License-Identifier: Apache-2.0
"""Folders of networks on the Hugging Face hub: fetched into its usual cache, and published there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ghostnets.errors import MissingExtra, UserError
from ghostnets.records import read_json

CONFIG, WEIGHTS_FILE, CARD = "config.json", "model.safetensors", "README.md"

NEEDED = (CONFIG, WEIGHTS_FILE)
WITH_THEM = ("plan.json", "upgrade.json", "report.html", "model.onnx")
"""What else is published where it is there, with the Python files that ``config.json`` names."""


def is_repository(source: str) -> bool:
    """Whether this can be the name of a repository on the hub, ``owner/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def fetch_folder(repository: str) -> Path:
    """The repository's folder in the hub's cache, with what loading a network needs; fetched where it is not there.

    Raises UserError where it cannot be had, MissingExtra without huggingface_hub.
    """
    hub = _library(f"{repository} is no folder here, and fetching it from the Hugging Face hub")
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=[*NEEDED, "*.py"]))
    except Exception as error:  # the library has dozens of kinds, all of them "could not be had"
        raise UserError(
            f"{repository} is no folder here, and the hub does not give it ({reason(error)}): get its {CONFIG} and "
            f"{WEIGHTS_FILE} from https://huggingface.co/{repository} on another machine and name their folder"
        ) from error


def push_to_hub(directory: str | Path, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Publish what ``save_pretrained`` or an upgrade left in ``directory`` as ``repository``, in one commit.

    ``from_pretrained(repository)`` loads it from there. A repository that does not exist is made; where the folder has
    no README.md, one is written for it. Without a ``token`` the one is used that ``hf auth login`` has kept. Returns
    the commit's address.

    Raises UserError where the folder holds no network or the hub refuses, MissingExtra without huggingface_hub.
    """
    directory = Path(directory)
    hub = _library("publishing on the Hugging Face hub")
    missing = [name for name in NEEDED if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory} holds no saved network: it lacks {' and '.join(missing)}")
    if not is_repository(repository):
        raise UserError(f"{repository!r} is no name of a repository: it should look like owner/name")
    config = read_json(directory / CONFIG)
    own = [name for name in (*NEEDED, *WITH_THEM, *code_files(config), CARD) if (directory / name).is_file()]
    files: dict[str, Path | bytes] = {name: directory / name for name in own}
    if CARD not in files:
        files[CARD] = card(repository, config).encode()
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        done = api.create_commit(repository, operations, commit_message="A network saved by ghostnets")
    except Exception as error:  # as above
        raise UserError(
            f"{repository} could not be published ({reason(error)}): log in with hf auth login, or pass a token that "
            "may write there"
        ) from error
    return str(done.commit_url)


def code_files(config: dict[str, Any]) -> list[str]:
    """The Python files beside a ``config.json`` that build its network: never one outside its folder."""
    model = config["model"]
    named = [Path(name) for name in (model.get("file"), *model.get("beside", ())) if name]
    return [path.as_posix() for path in named if not path.is_absolute() and ".." not in path.parts]


def card(repository: str, config: dict[str, Any]) -> str:
    """A README.md for the hub: how to load the network, and what it expects."""
    model = config["model"]
    name = model.get("name") or model.get("factory") or model.get("class_name")
    ghosts = len(config["edits"])
    made = f", {ghosts} of whose convolutions are Ghost modules" if ghosts else ""
    channels, height, width = config["input_size"]
    return f"""---
library_name: ghostnets
pipeline_tag: image-classification
---

# {repository}

`{name}`{made}: images of {height}×{width} pixels and {channels} channel{"s" if channels > 1 else ""} to {config["num_classes"]} classes.

```python
import ghostnets

network = ghostnets.from_pretrained("{repository}")  # in evaluation mode
```

Images are scaled to 0…1, then normalised with mean {_figures(config["mean"])} and standard deviation {_figures(config["std"])}.
"""


def _figures(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _library(feature: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra(feature, "hub") from None
    return huggingface_hub


def reason(error: Exception) -> str:
    """The first two lines of what the library says: the first alone is often a bare number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
