"""The rooms of the package and who may import whom: docs/architecture.md in a few lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

import flax_wavlm

PACKAGE = Path(flax_wavlm.__file__).parent
FLOORS = (
    {"errors"},
    {"files", "progress"},
    {"parallel", "ops"},
    {"models", "data"},
    {"porting", "language_model"},
    {"recognition"},
    {"training"},
    {"cli"},
)
# Doors: they name what lies above them, lazily or for recipes written before a module moved.
DOORS = {"__init__", "config", "train_config"}
LAZY = {("models/heads.py", "porting")}  # WavLMForCTC.from_pretrained and save_pretrained


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Modules of the package that a file imports, anywhere in it, and the names that it takes from them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flax_wavlm."):
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "flax_wavlm":
            for alias in node.names:
                yield f"flax_wavlm.{alias.name}", []
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names if alias.name.startswith("flax_wavlm."))


def sources() -> Iterator[tuple[str, Path]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in DOORS:
            yield room, file


def test_imports_go_downwards() -> None:
    upwards = [
        f"{file.relative_to(PACKAGE)}: {module}"
        for room, file in sources()
        for module, _ in imports(file)
        if floor(room_of(module)) >= floor(room) and room_of(module) != room
        if (str(file.relative_to(PACKAGE)), room_of(module)) not in LAZY
    ]
    assert upwards == []


def test_no_private_name_is_imported() -> None:
    private = [
        f"{file.relative_to(PACKAGE)}: {module}.{name}"
        for _, file in sources()
        for module, names in imports(file)
        for name in [*module.split("."), *names]
        if name.startswith("_")
    ]
    assert private == []


def test_no_circle_within_a_room() -> None:
    graph = {
        ".".join(("flax_wavlm", *file.relative_to(PACKAGE).with_suffix("").parts)): {
            part for module, names in imports(file) for part in (module, *(f"{module}.{n}" for n in names))
        }
        for _, file in sources()
    }
    lazy = {f"flax_wavlm.{file.removesuffix('.py').replace('/', '.')}" for file, _ in LAZY}
    remaining = {module: needed & graph.keys() - lazy for module, needed in graph.items()}
    while free := [module for module, needed in remaining.items() if not needed & remaining.keys()]:
        for module in free:
            del remaining[module]
    assert sorted(remaining) == []


def test_rooms_have_empty_doors() -> None:
    """A room is imported by its modules: nothing happens in passing."""
    assert [str(f) for f in PACKAGE.rglob("*/__init__.py") if f.read_text().strip()] == []


def test_no_file_is_too_long_to_read() -> None:
    long = {
        str(f.relative_to(PACKAGE)): n for _, f in sources() if (n := len(f.read_text().splitlines())) > 600
    }
    assert long == {}
