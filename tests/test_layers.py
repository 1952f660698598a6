"""Imports point one way."""

import ast
from pathlib import Path

import pytest

import contactlm

PACKAGE = Path(contactlm.__file__).parent
# What a part may import, besides itself and the ground floor. Data and model know each other only through types.
GROUND = {"types", "alphabet", "atomic", "__init__"}
ALLOWED = {
    "types": set(),
    "alphabet": set(),
    "chain_sets": set(),
    "atomic": set(),
    "__init__": set(),
    "fasta": set(),
    "commands": set(),
    "configs": set(),
    "console": set(),
    "cli_help": {"commands"},
    "structure": set(),
    "scores": set(),
    "windows": set(),
    "thresholds": {"scores"},
    "protein_states": {"scores"},
    "metrics": {"scores", "thresholds", "protein_states"},
    "complex_scores": {"metrics", "scores"},
    "strata": set(),
    "hit_scores": {"metrics", "scores", "protein_states", "strata"},
    "outputs": {"assembly", "scores", "map_figure"},
    "map_figure": {"scores", "outputs"},
    "assembly": set(),
    "data": {"structure", "fasta", "configs", "assembly", "chain_sets"},
    "model": set(),
    "retrieval": {"data", "structure", "model"},
    "inference": {"windows", "model"},
    "checkpoint": set(),
    "random_state": set(),
    "signals": set(),
    "checkpoint_io": {"checkpoint"},
    "trained_weights": {"checkpoint", "random_state"},
    "module": {"trained_weights", "model", "inference", "windows", "outputs", "structure", "assembly"},
    "contrastive": {"module", "model"},
    "retrieval_module": {"module", "model", "retrieval", "data", "inference", "windows", "checkpoint"},
    "module_class": {"module", "checkpoint"},
    "predict": {"module", "module_class", "outputs", "model"},
    "export": {"module", "checkpoint", "model"},
    "pack_command": {"data", "commands"},
    "run_file": set(),
    "run_directory": set(),
    "run_config": {"run_directory"},
    "report": {"run_file", "strata"},
    "callbacks": {
        *("run_directory", "run_file", "signals", "assembly", "module"),
        *("metrics", "complex_scores", "hit_scores", "scores", "strata", "outputs", "chain_sets"),
    },
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        parts |= {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "contactlm"}
    return parts


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: Path) -> None:
    own = module.parts[0].removesuffix(".py")
    if own in ("cli", "__init__", "__main__"):  # the roof: it may know all
        assert own not in {part for rules in ALLOWED.values() for part in rules}
        return
    assert own in ALLOWED, f"say in this test what {own} may import"
    assert imported_parts(PACKAGE / module) <= ALLOWED[own] | GROUND | {own}


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
