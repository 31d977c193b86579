# SPDX-License-Identifier: Apache-2.0
"""The hub's own library against a server on this machine that speaks as much of the hub's protocol as it needs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import ghostnets
from ghostnets.errors import MissingExtra, UserError
from ghostnets.hub import is_repository, push_to_hub
from ghostnets.models import published
from ghostnets.models.published import PUBLISHED
from ghostnets.pretrained import from_pretrained, load_factory
from ghostnets.training.data import Augment, Dataset, Images

pytest.importorskip("huggingface_hub", reason="needs the extra hub")


class Hub(ThreadingHTTPServer):
    """Keeps what is committed, by repository and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def head(self) -> str:
        return hashlib.sha1(str(self.commits).encode(), usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride] - always ours

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("authorization") != "Bearer hf_good":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.files.setdefault(name, {})
            self.server.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":  # the head of README.md
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
            self.answer(200, {"files": modes})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.commits += 1
            address = f"{self.server.url}/{name}/commit/{self.server.head}"
            self.answer(200, {"commitUrl": address, "commitOid": self.server.head})
        else:
            self.answer(404, {"error": self.path})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            name, kind, _ = re.split("/(revision|tree)/", path.removeprefix("/api/models/"), maxsplit=1)
            files = self.server.files.get(name)
            if files is None:
                self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
            elif kind == "tree":
                self.answer(200, [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()])
            else:
                siblings = [{"rfilename": file} for file in files]
                self.answer(
                    200, {"id": name, "modelId": name, "sha": self.server.head, "siblings": siblings, "tags": []}
                )
            return
        name, _, rest = path.lstrip("/").partition("/resolve/")
        content = self.server.files.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            self.answer(404, {"error": "Entry not found"}, **{"X-Error-Code": "EntryNotFound"})
        else:
            tag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self.answer(200, content, **{"ETag": f'"{tag}"', "X-Repo-Commit": self.server.head})

    def answer(self, code: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server gives it
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = tmp_path / "saved"
    ghostnets.save_pretrained(ghostnets.create_model("resnet20.digits", pretrained=True), saved)
    return saved


def run(code: str, hub: Hub, home: Path, *, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """A fresh process, because the library reads its settings once."""
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "no_proxy": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": str(int(offline)),
        "XDG_CACHE_HOME": str(home / "ours"),
    }  # fmt: skip
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_what_is_pushed_comes_back(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "plan.json").write_text("{}")
    (folder / "secret.txt").write_text("not to be published")
    pushed = run(
        f"import ghostnets; print(ghostnets.push_to_hub({str(folder)!r}, 'me/digits', private=True, token='hf_good'))",
        hub, tmp_path,
    )  # fmt: skip
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.url}/me/digits/commit/{hub.head}"
    there = hub.files["me/digits"]
    assert set(there) == {"config.json", "model.safetensors", "plan.json", "README.md"}
    assert there["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert 'ghostnets.from_pretrained("me/digits")' in there["README.md"].decode()
    assert hub.private["me/digits"]
    code = (
        "import ghostnets, torch; network = ghostnets.from_pretrained('me/digits')\n"
        "print(float(network(torch.ones(1, 1, 32, 32)).detach().square().sum()))"
    )
    for offline in (False, True):  # the second time from the cache
        fetched = run(code, hub, tmp_path, offline=offline)
        assert fetched.returncode == 0, fetched.stderr
        wanted = float(from_pretrained(folder)(torch.ones(1, 1, 32, 32)).detach().square().sum())
        assert float(fetched.stdout) == pytest.approx(wanted, rel=1e-4)


def test_the_code_of_a_network_travels_with_it(hub: Hub, tmp_path: Path) -> None:
    written, saved = tmp_path / "code", tmp_path / "saved"
    written.mkdir()
    (written / "parts.py").write_text("def width(): return 4\n")
    (written / "mine.py").write_text(
        "from torch import nn\nfrom parts import width\n"
        "def build(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width()))\n"
    )
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images = Images(pixels=pixels, labels=torch.arange(4))
    dataset = Dataset(
        name="own", train=images, test=images, classes=tuple("abcd"), mean=(0.5,) * 3, std=(0.5,) * 3,
        augment=Augment(padding=0, flip=False),
    )  # fmt: skip
    source = f"{written / 'mine.py'}:build"
    ghostnets.save_pretrained(load_factory(written / "mine.py", "build"), saved, dataset=dataset, source=source)
    (saved / "private.py").write_text("not to be published")
    shutil.rmtree(written)
    pushed = run(f"import ghostnets; ghostnets.push_to_hub({str(saved)!r}, 'me/own', token='hf_good')", hub, tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert {name for name in hub.files["me/own"] if name.endswith(".py")} == {"mine.py", "parts.py"}
    code = "import ghostnets; print(ghostnets.from_pretrained('me/own', trust_code=True)[2].out_features)"
    fetched = run(code, hub, tmp_path)
    assert fetched.stdout == "4\n", fetched.stderr


def test_a_refusal_is_one_sentence(hub: Hub, folder: Path, tmp_path: Path) -> None:
    code = "import ghostnets\ntry: {}\nexcept ghostnets.errors.UserError as e: print(e)"
    pushed = run(code.format(f"ghostnets.push_to_hub({str(folder)!r}, 'me/digits', token='hf_bad')"), hub, tmp_path)
    assert "me/digits could not be published" in pushed.stdout, pushed.stderr
    assert "hf auth login" in pushed.stdout
    assert hub.files == {}
    missing = run(code.format("ghostnets.from_pretrained('me/nothing')"), hub, tmp_path)
    assert "me/nothing is no folder here, and the hub does not give it" in missing.stdout, missing.stderr


def test_published_weights_offline_say_what_to_put_where(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import ghostnets\n"
        "try: ghostnets.create_model('ghostnet_100', pretrained=True)\nexcept ghostnets.errors.UserError as e: print(e)"
    )
    said = run(code, hub, tmp_path, offline=True).stdout
    place = tmp_path / "ours" / "ghostnets" / "weights" / "timm--ghostnet_100.in1k--model.safetensors"
    assert "https://huggingface.co/timm/ghostnet_100.in1k/resolve/main/model.safetensors" in said
    assert said.strip().endswith(f"put it here as {place}")


def test_a_folder_without_a_network_and_a_wrong_name_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no saved network: it lacks config\.json and model\.safetensors"):
        push_to_hub(tmp_path, "me/digits")
    with pytest.raises(UserError, match="'digits' is no name of a repository"):
        push_to_hub(folder, "digits")
    assert [is_repository(name) for name in ("me/net", "a-b.c/d_e", "/else/where", "a/b/c", "net", "me/")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_without_the_library_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"pip install 'ghostnets\[hub\]'"):
        push_to_hub(folder, "me/digits")
    with pytest.raises(MissingExtra, match=r"me/digits is no folder here, and fetching it .* 'ghostnets\[hub\]'"):
        from_pretrained("me/digits")


def test_published_weights_need_no_library(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = PUBLISHED["ghostnet_100.in1k"]
    asked: list[str] = []

    def fetch(url: str, target: Path, *, otherwise: str) -> Path:
        asked.append(f"{url} {otherwise}")
        target.parent.mkdir(parents=True)
        return Path(shutil.copy(folder / "model.safetensors", target))

    monkeypatch.setattr(published, "fetch", fetch)
    assert row.path == row.place
    assert asked[0].startswith("https://huggingface.co/timm/ghostnet_100.in1k/resolve/main/model.safetensors get ")
