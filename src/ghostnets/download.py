# SPDX-License-Identifier: Apache-2.0
"""Files fetched once and kept: resumed where they broke off, checked, and in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ghostnets.errors import UserError
from ghostnets.progress import progress

TIMEOUT = 30
"""Seconds without a byte after which a connection counts as broken."""

CHUNK = 2**20


def cache_dir() -> Path:
    """Where fetched files are kept: ``ghostnets`` in the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ghostnets"


def fetch(url: str, target: Path, *, otherwise: str, md5: str | None = None) -> Path:
    """The file behind ``url`` as ``target``, whole and with that MD5 (None: nobody has published one), or a UserError
    that ends with ``otherwise``.

    What has arrived waits beside the target as ``.part``, and the next call goes on from there.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _complete(url, part)
        if (
            resumed and md5 is not None and _md5(part) != md5
        ):  # the old beginning may belong to another file: once more from nothing
            part.unlink()
            _complete(url, part)
        if md5 is not None and (found := _md5(part)) != md5:
            part.unlink()
            raise UserError(f"{url} brought a file with MD5 {found} instead of {md5}, which was deleted: {otherwise}")
        part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded into {target.parent} ({_reason(error)}): {otherwise}") from None
    return target


def unpack(archive: Path, target: Path, members: Sequence[str]) -> Path:
    """The folder ``target`` with just these files of a tar archive, under their last names; all of them or no folder.

    Refuses an archive in which any name leads elsewhere or a wanted member is not a plain file.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
            temporary = Path(name) / target.name
            temporary.mkdir()
            with tarfile.open(archive) as tar:
                _copy_members(tar, temporary, members)
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(
            f"{archive} cannot be unpacked into {target} ({error}): free that place and try again"
        ) from None
    return target


def _copy_members(tar: tarfile.TarFile, folder: Path, members: Sequence[str]) -> None:
    found = {member.name: member for member in tar}
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise UserError(f"{tar.name!s} holds the unsafe name {name!r}: delete the archive, nothing was unpacked")
    for name in members:
        member = found.get(name)
        if member is None or not member.isreg():
            raise UserError(f"{tar.name!s} holds no plain file {name!r}: delete the archive and fetch it again")
        source = tar.extractfile(member)
        assert source is not None  # only folders and links have no content
        with source, (folder / PurePosixPath(name).name).open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)


def _complete(url: str, part: Path) -> None:
    """Try again for as long as every connection brings the file further than any before."""
    best = -1
    while True:
        try:
            if _continue(url, part):
                return
            error: Exception = ConnectionError("the connection broke off")
        except urllib.error.HTTPError as refusal:
            refusal.close()
            if refusal.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # nothing comes after what is here: the checksum says whether that is the file
            raise
        except (OSError, http.client.HTTPException) as broken:
            error = broken
        arrived = part.stat().st_size if part.exists() else 0
        if arrived <= max(best, 0):
            raise error
        best = arrived


def _continue(url: str, part: Path) -> bool:
    """One connection's worth of the file; whether it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - the address is a constant of ours
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - same
        if have and not _continues_at(response, have):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file, progress(f"downloading {url}", total) as report:
            while block := response.read(CHUNK):
                have += file.write(block)
                report(have)
    return total is None or have >= total


def _continues_at(response: Any, have: int) -> bool:
    content = str(response.headers.get("Content-Range") or "")
    return response.status == http.client.PARTIAL_CONTENT and content.startswith(f"bytes {have}-")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        inner = error.reason  # the error beneath, in its own words
    else:
        inner = error
    return str(inner) or type(inner).__name__
