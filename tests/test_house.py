"""Imports point one way."""

import ast
from pathlib import Path

import pytest

import contactlm

PACKAGE = Path(contactlm.__file__).parent
GROUND = {"types", "alphabet", "atomic", "shipped", "__init__"}  # loose files, which every room may use
# What a room may import, besides itself and the ground floor: those below it. `cli` is the roof and may use them all.
BELOW = {
    "structure": set(),
    "pages": set(),
    "homology": set(),
    "metrics": {"structure"},
    "maps": {"structure", "metrics", "pages"},
    "data": {"structure", "homology"},
    "model": {"structure", "metrics"},
    "retrieval": {"structure", "homology", "data", "model"},
    "modules": {"structure", "metrics", "maps", "model", "retrieval", "data"},
    "runs": {"modules"},
    "callbacks": {"structure", "metrics", "maps", "pages", "data", "retrieval", "modules", "runs"},
    "report": {"pages", "runs"},
    "benchmark": {"structure", "homology", "metrics", "data", "model", "retrieval", "modules", "report"},
}
OF_EXTRAS = {"pyhmmer", "pydssp", "bokeh"}  # of contactlm[retrieval] and contactlm[pages]
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "contactlm"}
    return rooms


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: Path) -> None:
    own = module.parts[0].removesuffix(".py")
    if own in ("cli", "__main__") or str(module) == "__init__.py":
        return
    allowed = set() if own in GROUND else BELOW[own]
    assert imported_rooms(PACKAGE / module) <= allowed | GROUND - {"__init__"} | {own}


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = [
                (node.module or "").split("."),
                *([*(node.module or "").split("."), own.name] for own in node.names),
            ]
            files = [PACKAGE.joinpath(*each[1:]).with_suffix(".py") for each in parts if each[0] == "contactlm"]
            package = PACKAGE.joinpath(*parts[0][1:], "__init__.py")
            found |= {file for file in files if file.is_file()}
            if files and package.is_file() and not all(file.is_file() for file in files[1:]):
                found.add(package)
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("contactlm.")]
            found |= {PACKAGE.joinpath(*module).with_suffix(".py") for module in modules}
    return found - {path}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Files are taken away that import none of those left, or that none of those left imports: circles remain."""
    left = {PACKAGE / module: imported_files(PACKAGE / module) for module in MODULES if str(module) != "__init__.py"}
    while free := [
        path
        for path, needed in left.items()
        if not needed & left.keys() or not any(path in others for others in left.values())
    ]:
        for path in free:
            del left[path]
    assert not left, sorted(str(path.relative_to(PACKAGE)) for path in left)


@pytest.mark.slow
def test_libraries_of_an_extra_are_imported_late_and_for_what_they_serve_alone() -> None:
    found = set()
    for module in MODULES:
        tree = ast.parse((PACKAGE / module).read_text())
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {name.split(".")[0] for name in names} & OF_EXTRAS:
                found.add(str(module))
                assert node not in tree.body, f"{module}, line {node.lineno}: a base install lacks this"
    of_pages = {"pages/library.py", "maps/page.py"}
    assert found == {"retrieval/search.py", "structure/secondary.py"} | of_pages


def test_the_front_hall_stays_small() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose <= GROUND | {"__main__"} and len(loose) <= 6
    assert {path.parts[0] for path in MODULES if len(path.parts) > 1} == {*BELOW, "cli"}


def test_importing_the_package_waits_for_no_heavy_library() -> None:
    import subprocess
    import sys

    code = "import contactlm, sys; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_can_be_imported() -> None:
    for name in contactlm.__all__:
        assert getattr(contactlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        contactlm.nonsense  # noqa: B018
