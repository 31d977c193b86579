# SPDX-License-Identifier: Apache-2.0
"""Fetching from a server on this machine that breaks off, forgets or lies, and unpacking archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from ghostnets import progress
from ghostnets.download import cache_dir, fetch, unpack
from ghostnets.errors import UserError
from ghostnets.training import cifar
from ghostnets.training.data import load_dataset

CONTENT = bytes(range(256)) * 1000


class Server(ThreadingHTTPServer):
    """Serves ``content``; each request sends at most ``allowance`` bytes of it and then breaks off."""

    content = CONTENT
    allowance = len(CONTENT)
    ranges = True
    status = 200
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] - always ours

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        rest = server.content[start:]
        code = 416 if start and not rest else server.status if server.status != 200 else 206 if start else 200
        self.send_response(code)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        self.wfile.write(rest[: server.allowance])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server gives it
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def get(server: Server, folder: Path, content: bytes = CONTENT) -> Path:
    return fetch(server.url, folder / "file.bin", md5=md5(content), otherwise="do it by hand")


def test_a_whole_file_arrives_under_its_name_only(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "new" / "folder").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file.bin"]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.allowance = len(CONTENT) // 2 + 1
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={server.allowance}-"]


def test_a_later_call_uses_what_has_arrived(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"another file", CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_wrong_beginning_is_thrown_away(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(left)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_beginning_that_is_whole_already_is_enough(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_never_gets_further_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.allowance = 5000
    with pytest.raises(UserError, match=r"could not be downloaded .*: do it by hand"):
        get(server, tmp_path)
    assert len(server.asked) == 2
    assert not (tmp_path / "file.bin").exists()


def test_a_wrong_file_is_refused_and_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"MD5 {md5(CONTENT)} instead of {md5(b'other')}.* do it by hand"):
        get(server, tmp_path, b"other")
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_server_is_quoted(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="HTTP Error 404: Not Found"):
        get(server, tmp_path)


def test_no_server_is_one_sentence_with_the_address_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as gone:
        pass
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("GHOSTNETS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(cifar.SETS, "cifar10", replace(cifar.CIFAR10, url=gone.url))
    with pytest.raises(UserError, match=rf"{gone.url} could not be .*--data-dir or GHOSTNETS_DATA") as caught:
        load_dataset("cifar10")
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"could not be downloaded into .*File exists"):
        get(server, tmp_path / "file")


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ghostnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "ghostnets"


# --- archives


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_only_the_wanted_members_are_unpacked(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", {"set/one": b"1", "set/two": b"2", "set/readme.html": b"no"})
    target = unpack(source, tmp_path / "out" / "set", ["set/one", "set/two"])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"one": b"1", "two": b"2"}
    assert [path.name for path in target.parent.iterdir()] == ["set"]


def test_an_incomplete_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "half").write_bytes(b"")
    unpack(archive(tmp_path / "a.tar.gz", {"set/one": b"1"}), tmp_path / "set", ["set/one"])
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["one"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "set/../../evil", "set\\..\\evil"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    source = archive(folder / "a.tar.gz", {"set/one": b"1", name: b"bad"})
    with pytest.raises(UserError, match="unsafe name"):
        unpack(source, folder / "set", ["set/one"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar.gz"]
    assert not (folder / "set").exists()


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", {"set/one": link("set/one", "/etc/hostname")})
    with pytest.raises(UserError, match="no plain file 'set/one'"):
        unpack(source, tmp_path / "set", ["set/one"])
    assert not (tmp_path / "set").exists()


def test_a_missing_member_and_a_cut_archive_are_refused(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", {"set/one": bytes(range(256)) * 50})
    with pytest.raises(UserError, match="no plain file 'set/two'"):
        unpack(source, tmp_path / "set", ["set/two"])
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(source, tmp_path / "set", ["set/one"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_cifar_is_fetched_unpacked_and_found_the_next_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bytes([7]) + bytes(3072)
    names = [*cifar.CIFAR10.files, cifar.CIFAR10.names]
    packed = archive(tmp_path / "cifar.tar.gz", {f"cifar-10-batches-bin/{name}": record for name in names})
    server.content = packed.read_bytes()
    server.allowance = len(server.content) * 2 // 3
    monkeypatch.delenv("GHOSTNETS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = replace(
        cifar.CIFAR10, url=server.url, md5=md5(server.content), train_records=1, test_records=1,
        train=dict.fromkeys(cifar.CIFAR10.train, md5(record)), test=dict.fromkeys(cifar.CIFAR10.test, md5(record)),
    )  # fmt: skip
    monkeypatch.setitem(cifar.SETS, "cifar10", here)
    fetched = load_dataset("cifar10")
    assert fetched.train.labels is not None
    assert fetched.train.labels.tolist() == [7] * 5
    requests = len(server.asked)
    load_dataset("cifar10")
    assert len(server.asked) == requests
    assert [path.name for path in (tmp_path / "ghostnets").iterdir()] == ["cifar-10-batches-bin"]


# --- progress


def test_progress_is_a_few_plain_lines_away_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 8.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress.progress("copying [x]", 100, Console(file=out)) as report:
        for done in (10, 50, 60, 75):
            report(done)
    assert out.getvalue() == "copying [x]: 50 %, 6 s left\ncopying [x]: 75 %, 4 s left\n"


def test_the_time_left_of_what_is_gone_on_with_is_that_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half was there before: by what was done since, 10 % in 10 s, the rest takes 40 s; by all of it, it would be 7 s."""
    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress.progress("training", 100, Console(file=out)) as report:
        report(50)
        report(60)
    assert out.getvalue() == "training: 60 %, 40 s left\n"


@pytest.mark.parametrize("total", [100, None])
def test_progress_is_a_bar_on_a_terminal(total: int | None) -> None:
    out = io.StringIO()
    with progress.progress("copying", total, Console(file=out, force_terminal=True)) as report:
        report(50)
    assert "copying" in out.getvalue()
