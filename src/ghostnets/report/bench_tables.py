# SPDX-License-Identifier: Apache-2.0
"""A benchmark's record in, rows of words and figures out, for the page and the terminal alike."""

from __future__ import annotations

from ghostnets.records import Bench, BenchRow
from ghostnets.report.tables import ABSENT, Cell, Column, count, millions

LAYER_TITLES = ("MACs, M", "ms", "% of peak")


def columns(record: Bench) -> tuple[Column, ...]:
    """Of ``rows``, behind the target's name."""
    return (
        Column("threads"),
        Column("precision", numeric=False),
        Column("median, ms"),
        Column("quartiles, ms", meaning="of all timed runs"),
        Column("least, ms"),
        Column(
            f"ratio to {record.reference}",
            meaning="the median of its turn over the other's in the same round: the median and quartiles of all rounds; below 1 is faster",
        ),
        Column(
            "times as fast",
            meaning="as the fastest other runtime, turn by turn of the same round: the median and quartiles of all rounds",
        ),
        Column("% of peak", meaning="of the float32 arithmetic the machine was measured to do"),
        Column("error", meaning="largest difference from PyTorch's eager float32, as a part of its largest output"),
        Column("load, s", meaning="opening the file and the first run"),
        Column("MiB", meaning="most memory of the process, Python and NumPy included"),
        Column("note", numeric=False),
    )


def rows(record: Bench) -> list[tuple[Cell, ...]]:
    """One a contestant: its name, and the cells of ``columns``."""
    return [
        (
            Cell(row.target), Cell(str(row.threads), row.threads), Cell(row.precision), _figure(row.median_ms),
            _between(row.q1_ms, row.q3_ms), _figure(row.min_ms), _ratio(row), _speedup(row), percent_of_peak(row.peak_share),
            Cell(ABSENT) if row.max_rel is None else Cell(f"{row.max_rel:.1e}", row.max_rel),
            Cell(ABSENT) if row.load_s is None else Cell(f"{row.load_s:.2f}", row.load_s),
            Cell(ABSENT) if row.peak_mib is None else Cell(f"{row.peak_mib:.0f}", row.peak_mib),
            Cell(row.failure),
        )
        for row in record.rows
    ]  # fmt: skip


def layer_rows(record: Bench) -> list[tuple[Cell, ...]]:
    """One a layer: its name, and the cells of LAYER_TITLES; every target and number of threads in the order they ran."""
    several = len({(layer.target, layer.threads) for layer in record.layers}) > 1
    return [
        (
            Cell(f"{layer.target}, {threads(layer.threads)}: {layer.name}" if several else layer.name),
            millions(layer.macs), Cell(f"{layer.ms:.4f}", layer.ms), percent_of_peak(layer.peak_share),
        )
        for layer in record.layers
    ]  # fmt: skip


def verdict(record: Bench) -> str:
    """Who is fastest with float32, in a sentence for each number of threads."""
    said: list[str] = []
    for number in dict.fromkeys(row.threads for row in record.rows):
        right = [row for row in racing(record, number) if row.precision == "f32" and not row.failure]
        timed = sorted((row.median_ms, row.target, row) for row in right if row.median_ms is not None)
        if not timed:
            said.append(f"With {threads(number)} no float32 answer was right.")
            continue
        best, name, row = timed[0]
        words = f"With {threads(number)} {name} is the fastest in float32: {best:.3g} ms"
        if row.speedup is not None and row.peer is not None:
            words += f", {row.speedup:.2f} times as fast as {row.peer}"
        said.append(f"{words}.")
    return " ".join(said)


def racing(record: Bench, number: int) -> list[BenchRow]:
    """The rows with so many threads, the null control left out."""
    return [row for row in record.rows if row.threads == number and not is_control(record, row)]


def control(record: Bench) -> str | None:
    """What the null control says: how far chance alone moves a ratio."""
    found = [row for row in record.rows if is_control(record, row) and row.ratio is not None]
    if not found:
        return None
    told = ", ".join(f"{_ratio(row).text} with {threads(row.threads)}" for row in found)
    return f"{found[0].target}, the same file in a process of its own, has the ratio {told}: what is nearer to 1 than that is chance."


def disturbed(record: Bench) -> str | None:
    """How much other processes were in the way."""
    turns = sum(record.rounds for row in record.rows if row.median_ms is not None)
    count = sum(row.disturbed for row in record.rows)
    return f"In {count} of {turns} turns other processes took a core." if count else None


def asked(record: Bench) -> str:
    """What was raced."""
    size = "×".join(map(str, record.input_size))
    return f"one image of {size}, {count(record.macs)} multiply-adds, {record.rounds} rounds"


def is_control(record: Bench, row: BenchRow) -> bool:
    """Whether it is the reference a second time."""
    return row.target == f"{record.reference} (again)"


def threads(number: int) -> str:
    """1 thread, 2 threads."""
    return f"{number} thread{'s' if number > 1 else ''}"


def percent_of_peak(share: float | None) -> Cell:
    """A share as a percentage without its sign."""
    return Cell(ABSENT) if share is None else Cell(f"{100 * share:.0f}", share)


def _figure(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:.3f}", value)


def _between(low: float | None, high: float | None) -> Cell:
    return Cell(ABSENT) if low is None or high is None else Cell(f"{low:.3f}–{high:.3f}", high - low)


def _ratio(row: BenchRow) -> Cell:
    if row.ratio is None or row.ratio_q1 is None or row.ratio_q3 is None:
        return Cell(ABSENT)
    return Cell(f"{row.ratio:.3f} ({row.ratio_q1:.3f}–{row.ratio_q3:.3f})", row.ratio)


def _speedup(row: BenchRow) -> Cell:
    if row.speedup is None or row.speedup_q1 is None or row.speedup_q3 is None:
        return Cell(ABSENT)
    return Cell(f"{row.speedup:.2f} ({row.speedup_q1:.2f}–{row.speedup_q3:.2f}) as {row.peer}", row.speedup)
