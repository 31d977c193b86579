# SPDX-License-Identifier: Apache-2.0
"""Which images are set aside: the same ones on every machine and with every version of every library."""

from __future__ import annotations

import hashlib

import numpy as np

from ghostnets.errors import UserError


def stratified(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A mask over ``labels`` (whole numbers from 0) that sets ``n`` of them aside, a fair share of every class.

    Shares follow the largest remainder, lower labels first where remainders are equal. Within a class go those
    with the smallest SHA-256 of ``"seed:index"``: no library's random numbers can change the split.
    """
    if not 0 < n < len(labels):
        raise UserError(f"{n} of {len(labels)} images cannot be set aside: ask for at least 1 and leave at least 1")
    aside = np.zeros(len(labels), dtype=bool)
    for label, share in enumerate(_shares(np.bincount(labels).tolist(), n)):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
        aside[members[:share]] = True
    return aside


def _shares(counts: list[int], n: int) -> list[int]:
    total = sum(counts)
    shares = [count * n // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: -(counts[label] * n % total))
    for label in by_remainder[: n - sum(shares)]:
        shares[label] += 1
    return shares
