# SPDX-License-Identifier: Apache-2.0
"""The house has one direction: who may import whom, rings, and what must load without torch or extras."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ghostnets

PACKAGE = Path(ghostnets.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms it may import, beside itself. The rooms are the folders and files directly in the package.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "folder": {"errors", "records"},  # the files of one upgrade, and how far it is
    "progress": set(),  # how far a long step is, for people
    "download": {"errors", "progress"},  # files fetched once and kept
    "compiler": {"errors"},  # the C compiler of this machine
    "blocks": {"errors"},
    "models": {"errors", "blocks", "download"},
    "measure": {"errors", "records"},
    "training": {"errors", "records", "blocks", "measure", "progress", "download", "compiler"},
    "upgrading": {"errors", "records", "blocks", "measure", "training"},
    "inspecting": {"errors", "records", "measure", "training", "upgrading"},  # what a network's maps have in common
    "deploy": {"errors", "records", "blocks", "measure", "compiler", "download"},
    "report": {"errors", "records"},
}
MAY_IMPORT = BELOW | {
    "hub": {"errors", "records"},  # folders on the Hugging Face hub
    "pretrained": {*BELOW, "hub"},  # save_pretrained, from_pretrained
    "pipeline": {*BELOW, "pretrained"},  # the whole upgrade as one function
    "prediction": {*BELOW, "pretrained"},  # image files in, classes out
    "trainer": {*BELOW, "hub", "pretrained", "prediction"},  # a whole training run as one function
    "inspection": {*BELOW, "pretrained", "prediction"},  # a whole inspection as one function
    "validation": {*BELOW, "pretrained", "prediction"},  # the figures of a trained network
    "benchmark": {*BELOW, "pretrained", "prediction"},  # how fast a network is, as one function
    "subject": {
        *BELOW,
        "pretrained",
        "prediction",
        "benchmark",
    },  # the network that a command names, and images for it
    "compilation": {"errors", "deploy"},  # a network as a function in C
    "exported": {"errors", "records"},  # the folder that an export leaves
    "exporting": {*BELOW, "prediction", "subject", "exported"},  # a whole export as one function
    "cli": {
        *BELOW,
        "pretrained",
        "pipeline",
        "prediction",
        "trainer",
        "validation",
        "inspection",
        "benchmark",
        "subject",
        "exported",
        "exporting",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": {
        "records",
        "blocks",
        "models",
        "training",
        "upgrading",
        "pipeline",
        "pretrained",
        "hub",
        "trainer",
        "validation",
        "compilation",
    },  # the public names
}


def module_of(file: Path) -> str:
    parts = ("ghostnets", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


MODULES = {module_of(file): file for file in FILES}


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every module of the package that an import statement among the nodes names."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ghostnets")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            module = node.module or ""
            if module.split(".")[0] == "ghostnets":
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in MODULES else module


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_load(child)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def test_every_room_is_in_the_table() -> None:
    assert {room_of(module) for module in MODULES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    room = room_of(module)
    reached = {room_of(name) for name in imports(ast.walk(parse(MODULES[module])))} - {room}
    assert reached <= MAY_IMPORT[room], f"{module} must not import {sorted(reached - MAY_IMPORT[room])}"


def test_the_table_itself_has_one_direction() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()


def test_no_import_rings() -> None:
    graph = {m: set(imports(at_load(parse(f)))) - {m} for m, f in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_imports_are_found_wherever_they_stand() -> None:
    tree = ast.parse(
        "import ghostnets.blocks\n"
        "if TYPE_CHECKING:\n"
        "    import ghostnets.records\n"
        "def late():\n"
        "    from ghostnets import errors\n"
    )
    assert list(imports(ast.walk(tree))) == ["ghostnets.blocks", "ghostnets.records", "ghostnets.errors"]
    assert list(imports(at_load(tree))) == ["ghostnets.blocks"]


def run_without(forbidden: tuple[str, ...], modules: list[str]) -> None:
    """Import the modules in a fresh process in which importing any of the forbidden ones fails."""
    lines = [f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))", *(f"import {m}" for m in modules)]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_records_and_reports_need_no_torch() -> None:
    rooms = ("__init__", "errors", "records", "report")
    run_without(("torch",), [m for m in MODULES if room_of(m) in rooms])


def test_no_optional_dependency_is_loaded_by_importing_the_package() -> None:
    extras = ("torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "huggingface_hub")
    run_without(extras, [m for m in MODULES if room_of(m) != "cli"])


@pytest.mark.parametrize("name", sorted(ghostnets._HOMES))
def test_public_names_lead_home_whatever_was_imported_before(name: str) -> None:
    home = importlib.import_module(ghostnets._HOMES[name])
    assert getattr(ghostnets, name) is getattr(home, name)


def test_no_module_hides_a_public_name() -> None:
    assert not {room_of(module) for module in MODULES} & set(ghostnets._HOMES)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        ghostnets.no_such_name  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert set(ghostnets._HOMES) <= set(dir(ghostnets))
