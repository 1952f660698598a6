"""The shipped lists, and lists of a user."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from contactlm.benchmark.lists import FOLDER, load_set, published_figures, shipped_sets
from contactlm.metrics.contracts import CONTRACTS
from contactlm.metrics.scores import RANKING_NAMES
from contactlm.types import DataError
from tests.benchmark.made import write_list

COUNTS = {
    "foldbench-val": 97,
    "foldbench-test": 218,
    "foldbench-denovo": 19,
    "cameo-pta25": 56,
    "casp14-fm": 16,
    "cameo2022": 740,
    "zhang1431": 1431,
    "esm-notebook": 3,
}


def test_shipped_lists_are_whole() -> None:
    assert {name: len(load_set(name).chains) for name in shipped_sets()} == COUNTS
    for name in shipped_sets():
        asked = load_set(name)
        assert asked.source and asked.licence and asked.age in ("older", "newer")
        for chain in asked.chains:
            assert chain.entry == chain.entry.lower() and chain.chain
            assert chain.sequence is None or chain.length == len(chain.sequence)
    assert sum(chain.naming == "label" for chain in load_set("foldbench-test").chains) == 4
    assert sum(chain.facts["scorable"] == "0" for chain in load_set("foldbench-test").chains) == 1


def test_parts_of_sets() -> None:
    assert len(load_set("cameo2022:2022-04-01..2022-06-30").chains) == 194
    roles = {role: len(load_set(f"cameo-pta25:{role}").chains) for role in ("selection", "evaluation", "short")}
    assert roles == {"selection": 10, "evaluation": 29, "short": 17}
    assert [chain.id for chain in load_set("esm-notebook:5ahw_A").chains] == ["5ahw_A"]
    parts = [chain for chain in load_set("casp14-fm").chains if chain.protein == "6vr4_A"]
    assert len(parts) == 9 and len({chain.id for chain in parts}) == 9
    with pytest.raises(DataError, match="cameo-pta25:nonsense: no chain of cameo-pta25 belongs to it"):
        load_set("cameo-pta25:nonsense")


def test_every_published_figure_has_chains_a_contract_and_a_score() -> None:
    assert len(published_figures()) == 26
    for figure in published_figures():
        assert 0 < figure.value < 1 and figure.source
        assert figure.contract in CONTRACTS and figure.score in RANKING_NAMES
        assert any(chain.belongs(figure.subset) for chain in load_set(figure.set).chains)


def test_lists_are_package_data_with_sources_and_licences() -> None:
    shipped = {path.name for path in resources.files("contactlm.benchmark").joinpath("lists").iterdir()}
    assert shipped == {*(f"{name}.csv" for name in COUNTS), "published.csv", "sets.yaml", "README.md"}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.csv`" in page for name in COUNTS) and "Apache-2.0" in page


def test_lists_are_those_that_were_handed_over(shared: Path) -> None:
    if not (shared / "benchmarks").is_dir():
        pytest.skip("the lists' originals are not at hand")
    for name in (*COUNTS, "published"):
        assert (FOLDER / f"{name}.csv").read_bytes() == (shared / "benchmarks" / f"{name}.csv").read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"pdb_id": "1abc"}], "lacks the columns chain"),
        ([{"pdb_id": "1abc", "chain": "A"}, {"pdb_id": "xx", "chain": "A"}], r"line 3: pdb_id: 'xx' is not a PDB id"),
        ([{"pdb_id": "1abc", "chain": ""}], "line 2: chain is empty"),
        ([{"pdb_id": "1abc", "chain": "A", "sequence": "MK1"}], "line 2: sequence has '1'"),
        ([{"pdb_id": "1abc", "chain": "A", "length": "ten"}], "line 2: length is 'ten'"),
        ([{"pdb_id": "1abc", "chain": "A", "chain_naming": "mine"}], "chain_naming is 'mine'"),
        ([{"pdb_id": "1abc", "chain": "A"}] * 2, "1abc_A is listed twice"),
    ],
)
def test_a_list_that_is_none_says_where(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_set(str(write_list(tmp_path / "mine.csv", rows)))


def test_an_unknown_set_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nonsense: no such test set; give one of foldbench-val, .* or a CSV file"):
        load_set("nonsense")
    (tmp_path / "empty.csv").write_text("pdb_id,chain\n")
    with pytest.raises(DataError, match="has no chain"):
        load_set(str(tmp_path / "empty.csv"))
