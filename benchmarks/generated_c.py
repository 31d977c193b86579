# SPDX-License-Identifier: Apache-2.0
"""The generated C beside the runtimes: every network of the table, with one thread and with two, layer by layer.

python benchmarks/generated_c.py [--only NAME ...] [--seconds 20] [--out benchmarks/results]

Each row is a run of ``ghostnets bench``; what it printed lies in results/NAME.txt, its record in results/NAME.json. The table
of all records there, beside what the program of GhostNet 1.0x needs, goes to results/README.md. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

OTHERS = HERE / "other_networks.py"

NETWORKS: dict[str, tuple[str, int, float]] = {
    "ghostnet_100": ("ghostnet_100", 224, 2.0),
    "ghostnet_050": ("ghostnet_050", 224, 1.8),
    "ghostnet_130": ("ghostnet_130", 224, 1.8),
    "ghostnetv2_100": ("ghostnetv2_100", 224, 1.8),
    "mobilenet_v2": (f"{OTHERS}:mobilenet_v2", 224, 1.4),
    "mobilenetv3_large": (f"{OTHERS}:mobilenetv3_large", 224, 1.4),
    "squeezenet1_1": (f"{OTHERS}:squeezenet1_1", 224, 1.4),
    "ghost_resnet56": ("ghost_resnet56", 32, 1.4),
    "resnet56": ("resnet56", 32, 1.0),
    "ghost_vgg16": ("ghost_vgg16", 32, 1.4),
    "ghost_resnet50": ("ghost_resnet50", 224, 1.0),
    "resnet50": ("resnet50", 224, 1.0),
    "g_ghost_regnetx_032": ("g_ghost_regnetx_032", 224, 1.0),
}
"""Network -> what ``ghostnets bench`` is given, the side of its images, and how many times as fast as the fastest other
runtime it was to be.
"""

TARGETS, COMPILED = "c,openvino,onnxruntime,torch", ("ghostnet_100", "ghost_resnet56")
"""What races, and where PyTorch's compiler races too: it takes minutes for each."""

AVX2 = "ghostnet_100"
"""Raced once more by C and OpenVINO held to AVX2."""


def main() -> None:
    """Race, record, tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a race")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        model, side, _ = NETWORKS[name]
        _bench(name, model, side, TARGETS, "1,2", asked.seconds, asked.out)
        if name in COMPILED:
            _bench(f"{name}.compiled", model, side, "c,torch-compile", "1", asked.seconds / 2, asked.out)
        if name == AVX2:
            _bench(f"{name}.avx2", model, side, "c-avx2,openvino-avx2", "1", asked.seconds, asked.out)
            (asked.out / f"{name}.program.json").write_text(json.dumps(_program(model, side), indent=1) + "\n")
    (asked.out / "README.md").write_text(_table(asked.out))


def _bench(name: str, model: str, side: int, targets: str, threads: str, seconds: float, out: Path) -> None:
    """One run of the verb."""
    with tempfile.TemporaryDirectory() as folder:
        line = [
            sys.executable, "-m", "ghostnets", "bench", model, "--targets", targets, "--threads", threads,
            "--input-size", f"{side},{side}", "--seconds", str(seconds), "--layers", "--out", f"{folder}/bench",
        ]  # fmt: skip
        print(name, flush=True)
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        record = json.loads(Path(folder, "bench", "bench.json").read_text())
    record["environment"]["command"] = ["ghostnets", *(part.replace(f"{HERE}/", "benchmarks/") for part in line[3:-2])]
    record["environment"] |= {"compiler": _first_line(["gcc", "--version"]), "revision": _revision()}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    printed = "\n".join(text.rstrip() for text in done.stdout.splitlines() if not text.startswith("report: "))
    (out / f"{name}.txt").write_text(printed + "\n")


def _program(model: str, side: int) -> dict[str, float]:
    """What writing, compiling and running the program of one network takes, without Python around it."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "c")
        start = time.perf_counter()
        line = ["export", model, "--format", "c", "--input-size", f"{side},{side}", "--out", str(made), "--json"]
        told = subprocess.run([sys.executable, "-m", "ghostnets", *line], stdout=subprocess.PIPE, text=True, check=True)
        written = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([shutil.which("make") or "make", "-C", str(made)], stdout=subprocess.DEVNULL, check=True)
        compiled = time.perf_counter() - start
        Path(made, "image.ppm").write_bytes(
            b"P6 %d %d 255\n" % (side, side) + bytes(range(256)) * (3 * side * side // 256 + 1)
        )
        peak = _peak_mib([str(made / "model"), str(made / "image.ppm"), "100"])
    record = json.loads(told.stdout)
    return {
        "generation_s": round(written, 1), "compilation_s": round(compiled, 1), "process_mib": round(peak, 1),
        "arena_mib": round(record["arena_bytes"] / 2**20, 2), "weights_mib": round(record["weights_bytes"] / 2**20, 1),
    }  # fmt: skip


def _peak_mib(line: list[str]) -> float:
    """The most memory that a process held (its resident set)."""
    child = subprocess.Popen(line, cwd=Path(line[0]).parent, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, line
    return used.ru_maxrss / 1024


def _table(out: Path) -> str:
    """All records there."""
    records = {name: json.loads(path.read_text()) for name in NETWORKS if (path := out / f"{name}.json").is_file()}
    lines = [
        "# The generated C beside the runtimes", "",
        "Written by `benchmarks/generated_c.py`. One image at a time, float32, NumPy in and out, every runtime in a process of its",
        "own: how it is measured stands in `docs/bench.md`. *times as fast*: as the fastest other runtime of that number of threads, the",
        "median and quartiles of rounds. *again*: the same program in another process, which should be 1. *of one*: how many times as fast two threads",
        "are as one. Per layer: `NAME.txt`; everything: `NAME.json`.", "",
    ]  # fmt: skip
    for word, value in _where(records).items():
        lines.append(f"- {word}: {value}")
    lines += [
        "", "| network | C ms, 1 thread | times as fast | than | wanted | again | of the peak | C ms, 2 threads | times as fast | of one |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [_line(name, record) for name, record in records.items()]
    lines += ["", *_more(out)]
    return "\n".join(lines) + "\n"


def _where(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The machine, and which commit."""
    first = next(iter(records.values()))
    own = first["environment"]
    versions = {row["target"]: row["version"] for row in first["rows"]}
    return {
        "machine": f"{own['cpu']}, {', '.join(own['instructions'])}, {own['cores']} cores; at most "
        + ", ".join(f"{peak:.0f} GFLOP/s with {n} thread{'s' * (n != '1')}" for n, peak in first["peak_gflops"].items()),
        "software": f"{own['compiler']}; " + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "revision": ", ".join(dict.fromkeys(record["environment"]["revision"] for record in records.values())),
        "date": ", ".join(dict.fromkeys(record["environment"]["date"][:10] for record in records.values())),
    }  # fmt: skip


def _line(name: str, record: dict[str, Any]) -> str:
    rows = {(row["target"], row["threads"]): row for row in record["rows"]}
    one, two, control = rows["c", 1], rows.get(("c", 2)), rows["c (again)", 1]
    cells = [
        f"{name}, {record['input_size'][-1]}²", f"{one['median_ms']:.2f}", _range(one), one["peer"], f"{NETWORKS[name][2]:.1f}",
        f"{control['ratio']:.2f}", f"{one['peak_share']:.0%}",
    ]  # fmt: skip
    if two:
        cells += [f"{two['median_ms']:.2f}", _range(two), f"{one['median_ms'] / two['median_ms']:.2f}"]
    return f"| {' | '.join(cells)} |"


def _range(row: dict[str, Any]) -> str:
    return f"{row['speedup']:.2f} ({row['speedup_q1']:.2f}-{row['speedup_q3']:.2f})"


def _more(out: Path) -> list[str]:
    """Beside the table: pairs of networks, PyTorch's compiler, AVX2, the program."""
    found = []
    for ghost, plain in (("ghost_resnet56", "resnet56"), ("ghost_resnet50", "resnet50")):
        times = [_median(out / f"{name}.json") for name in (ghost, plain)]
        if all(times):
            found.append(f"- {ghost} is {times[1] / times[0]:.2f} times as fast as {plain}, both in C with one thread.")
    for path in sorted(out.glob("*.compiled.json")) + sorted(out.glob("*.avx2.json")):
        row = json.loads(path.read_text())["rows"][0]
        if row["speedup"]:
            found.append(
                f"- {path.stem.split('.')[0]}: {row['target']} is {_range(row)} times as fast as {row['peer']}."
            )
    for path in out.glob("*.program.json"):
        told = json.loads(path.read_text())
        found.append(
            f"- {path.stem.split('.')[0]}: " + ", ".join(f"{key} {value}" for key, value in told.items()) + "."
        )
    return found


def _median(path: Path) -> float:
    return json.loads(path.read_text())["rows"][0]["median_ms"] if path.is_file() else 0.0


def _revision() -> str:
    git = shutil.which("git")
    assert git is not None
    done = subprocess.run(
        [git, "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _first_line(line: list[str]) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return re.sub(r"\s+", " ", done.stdout.splitlines()[0])


if __name__ == "__main__":
    main()
