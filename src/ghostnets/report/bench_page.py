# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark: its record in, HTML out."""

from __future__ import annotations

from pathlib import Path

from ghostnets.records import Bench, from_json, read_json
from ghostnets.report import bench_figure, bench_tables, tables
from ghostnets.report.figures import to_svg
from ghostnets.report.templating import filled

RECORD = "bench.json"


def render(directory: Path) -> str:
    """The page of the benchmark in this folder. Raises UserError where the record cannot be read."""
    record = from_json(Bench, read_json(directory / RECORD))
    return filled(
        "bench.html.j2",
        title=f"{record.model} · benchmark",
        record=record,
        asked=bench_tables.asked(record),
        peak=_peak(record),
        command=tables.command(record.environment),
        verdict=bench_tables.verdict(record),
        charts=[_chart(record, number) for number in dict.fromkeys(row.threads for row in record.rows)],
        control=bench_tables.control(record),
        disturbed=bench_tables.disturbed(record),
        columns=bench_tables.columns(record),
        rows=bench_tables.rows(record),
        layer_titles=bench_tables.LAYER_TITLES,
        layer_rows=bench_tables.layer_rows(record),
        environment=[*tables.environment_rows(record.environment), ("targets", _versions(record))],
    )


def _chart(record: Bench, number: int) -> str:
    rows = [row for row in record.rows if row.threads == number]
    words = bench_tables.threads(number)
    figure = bench_figure.medians(
        rows,
        first=record.reference,
        control=f"{record.reference} (again)",
        title=f"Median and quartiles with {words}, ms",
    )
    said = ", ".join(f"{row.target} {row.median_ms:.3g} ms" for row in rows if row.median_ms is not None)
    return to_svg(figure, f"threads{number}", f"Chart: median times with {words}: {said}.")


def _peak(record: Bench) -> str:
    """Of the machine, for every number of threads."""
    told = (f"{gflops:.0f} GFLOP/s with {bench_tables.threads(int(n))}" for n, gflops in record.peak_gflops.items())
    return ", ".join(told)


def _versions(record: Bench) -> str:
    known = (f"{row.target} {row.version}" for row in record.rows if not bench_tables.is_control(record, row))
    return ", ".join(dict.fromkeys(known))
