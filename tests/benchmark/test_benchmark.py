"""The command: what it fetches, scores, compares and says."""

from __future__ import annotations

import gzip
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule, contact_map, predict_contacts, read_chains
from contactlm.benchmark import score
from contactlm.benchmark.check import beta_carbons
from contactlm.benchmark.results import estimate_mean
from contactlm.benchmark.score import TRIVIAL
from contactlm.cli.benchmark import list_text
from contactlm.cli.main import main
from contactlm.metrics.contracts import CONTRACTS, contract_scores
from contactlm.metrics.scores import score_protein, trivial_probability
from contactlm.types import ContactDefinition
from tests.benchmark.made import made_set, read_rows, write_list
from tests.conftest import Finished, make_tiny_esm, random_sequence, write_pdb
from tests.data.faulty_server import Handler, Server, status

REAL = ("3o5r", "5eil", "2axd")


def run(*arguments: object) -> int:
    return main(["benchmark", *map(str, arguments)])


def table(out: Path, **wanted: str) -> dict[str, dict[str, str]]:
    """Rows of table.csv that have these values, by predictor and score."""
    rows = [row for row in read_rows(out / "table.csv") if wanted.items() <= row.items()]
    return {f"{row['predictor']} {row['score']}": row for row in rows}


def send_file(path: Path, handler: Handler) -> None:
    handler.send(path.read_bytes())


@pytest.fixture(scope="module")
def other_esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_esm(tmp_path_factory.mktemp("esm") / "other", seed=1)


def test_scores_are_those_of_each_map_and_means_those_of_each_protein(tmp_path: Path, tiny_esm: Path) -> None:
    asked, structures = made_set(tmp_path)
    out = tmp_path / "out"
    assert run(asked, "--model.pretrained", tiny_esm, "--structures", structures, "--out", out) == 0
    rows = {(row["id"], row["predictor"]): row for row in read_rows(out / "scores_mine.csv")}
    values = []
    chains = [read_chains(path)[0] for path in sorted(structures.glob("*.pdb"))]  # by length
    maps = predict_contacts([chain.sequence for chain in chains], str(tiny_esm))
    for chain, predicted in zip(chains, (each.probability for each in maps), strict=True):
        labels = torch.from_numpy(contact_map(chain.cb))
        for name, probability in (("tiny", torch.from_numpy(predicted)), (TRIVIAL, trivial_probability(len(chain)))):
            expected = score_protein(probability, labels)
            for key in ("mcc", "mcc_sep6", "p_at_L_long", "auprc_sep6"):
                assert float(rows[chain.id, name][key]) == pytest.approx(expected[key], abs=1e-6)
        values.append(score_protein(torch.from_numpy(predicted), labels)["p_at_L_long"])
    row = table(out, set="mine", subset="all", contract="ours")["tiny p_at_L_long"]
    expected = estimate_mean(values)
    assert [float(row[key]) for key in ("mean", "error", "low", "high")] == pytest.approx(expected[:4], abs=1e-6)
    assert row["proteins"] == "6"
    page = (out / "report.md").read_text()
    assert (
        "6 chains asked, 6 found, 0 missing, 0 replaced." in page and "identity to training chains is unknown" in page
    )


def test_what_is_missing_is_counted_named_and_left_out(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    _, structures = made_set(tmp_path, 3)
    rows = [
        {"pdb_id": "9a00", "chain": "A", "sequence": random_sequence(700, 50)},
        {"pdb_id": "9a01", "chain": "A", "sequence": random_sequence(1, 60)},
        {"pdb_id": "9a02", "chain": "Z", "sequence": random_sequence(702, 64)},
        {"pdb_id": "9b00", "chain": "A", "sequence": ""},
    ]
    asked, out = write_list(tmp_path / "bad.csv", rows), tmp_path / "out"
    assert run(asked, "--model.pretrained", tiny_esm, "--structures", structures, "--out", out) == 3
    said = capsys.readouterr().out
    assert "4 chains asked, 2 found, 2 missing, 1 replaced." in said
    assert "- 9a01_A missing: chain 9a01_A has another sequence" in said
    assert "- 9a02_Z replaced: the file has no chain Z (auth id), but 'A'; chain A has its sequence" in said
    assert "- 9b00_A missing: no file of that entry is there" in said
    states = {row["id"]: row["state"] for row in read_rows(out / "chains_bad.csv")}
    assert states == {"9a00_A": "found", "9a01_A": "missing", "9a02_Z": "replaced", "9b00_A": "missing"}
    assert {row["id"] for row in read_rows(out / "scores_bad.csv")} == {"9a00_A", "9a02_Z"}


def test_published_figures_stand_beside_their_own_chains_and_contract_only(tmp_path: Path, tiny_esm: Path) -> None:
    structures, out = tmp_path / "structures", tmp_path / "out"
    for k, entry in enumerate(("1a3a", "5ahw")):
        write_pdb(structures / f"{entry}.pdb", {"A": random_sequence(k, 70)}, seed=k)
    common = ("--model.pretrained", tiny_esm, "--structures", structures, "--out", out)
    assert run("esm-notebook", *common) == 3
    published = [row for row in read_rows(out / "table.csv") if row["predictor"].startswith("published")]
    assert {row["subset"] for row in published} == {"1a3a_A", "5ahw_A"} and len(published) == 6
    assert {row["contract"] for row in published} == {"esm"}
    assert {row["mean"] for row in published if row["score"] == "p_at_L_long"} == {"0.69", "0.864"}
    [chain] = read_chains(structures / "1a3a.pdb")
    predicted = predict_contacts(chain.sequence, str(tiny_esm)).probability
    own = table(out, subset="1a3a_A", contract="esm")["tiny p_at_L2_long"]
    expected = contract_scores(CONTRACTS["esm"], predicted, chain.cb)["p_at_L2_long"]
    assert float(own["mean"]) == pytest.approx(expected, abs=1e-6)
    page = (out / "report.md").read_text()
    assert "Published figures are of other chains and are not shown: of 1 chains 1 missing." in page
    assert "older than the data that ESM-2 was pretrained on" in page


def test_a_list_of_the_user_has_no_published_figures_whatever_it_is_called(tmp_path: Path, tiny_esm: Path) -> None:
    write_pdb(tmp_path / "structures" / "1a3a.pdb", {"A": random_sequence(0, 60)})
    asked = write_list(tmp_path / "esm-notebook.csv", [{"pdb_id": "1a3a", "chain": "A"}])
    common = ("--structures", tmp_path / "structures", "--out", tmp_path / "out")
    assert run(asked, "--model.pretrained", tiny_esm, *common) == 0
    assert {row["contract"] for row in read_rows(tmp_path / "out" / "table.csv")} == {"ours"}


def test_contracts_with_other_atoms_take_those_atoms(tmp_path: Path, tiny_esm: Path, shared: Path) -> None:
    """A part of CASP14's list, whose contract has C-beta atoms, with a real file in the place of its chain."""
    from contactlm.benchmark.check import check_chains
    from contactlm.benchmark.lists import AskedChain
    from contactlm.benchmark.structures import StructureSource, obtain_structures

    file = shared / "pdb" / "edge" / "1aki.pdb"
    [chain] = read_chains(file)
    part = AskedChain("1aki_A", "1aki", "A", sequence=chain.sequence[20:120])
    source = StructureSource(tmp_path, file.parent)
    [checked] = check_chains([part], obtain_structures([part], source, tmp_path))
    predictor = score.score_trivial([checked], ["ca8", "cb8-full"])
    flat = trivial_probability(100).numpy()
    for name, atoms in (("ca8", chain.ca), ("cb8-full", beta_carbons(file, chain))):
        expected = contract_scores(CONTRACTS[name], flat, atoms[20:120])
        for key, value in expected.items():
            assert predictor.rows["1aki_A"][f"{name}:{key}"] == pytest.approx(value)
    module = ContactModule(str(tiny_esm))
    for contact, kept in ((ContactDefinition(), {"p", "ca8", "cb8-full"}), (ContactDefinition("ca", 8.0), {"ca8"})):
        module.contact = contact
        rows = score.score_model("model", module, [checked], ["ca8", "cb8-full"], lambda: None).rows["1aki_A"]
        assert {"p" if ":" not in name else name.partition(":")[0] for name in rows} == kept


@pytest.mark.slow
def test_a_model_of_a_definition_without_contract_is_refused(tmp_path: Path, finished: Finished, capsys) -> None:
    checkpoint = torch.load(finished.best, weights_only=True)
    checkpoint["contactlm"]["contact"] = "ca < 10 Å"
    torch.save(checkpoint, tmp_path / "ca.ckpt")
    asked, structures = made_set(tmp_path, 1)
    assert run(asked, "--ckpt_path", tmp_path / "ca.ckpt", "--structures", structures, "--out", tmp_path / "out") == 1
    assert "none of the sets has a contract of that definition" in capsys.readouterr().err


def test_models_are_compared_on_the_same_proteins(tmp_path: Path, tiny_esm: Path, other_esm: Path) -> None:
    asked, structures = made_set(tmp_path)
    second = write_list(tmp_path / "second.csv", [{"pdb_id": "9a00", "chain": "A"}, {"pdb_id": "9a05", "chain": "A"}])
    out = tmp_path / "out"
    models = ("--model.pretrained", tiny_esm, other_esm)
    assert run(asked, second, *models, "--structures", structures, "--out", out) == 0
    rows = read_rows(out / "scores_mine.csv")
    ours, theirs = (
        [float(row["p_at_L_long"]) for row in rows if row["predictor"] == name] for name in ("tiny", "other")
    )
    [found] = [
        row for row in read_rows(out / "differences.csv") if row["set"] == "mine" and row["score"] == "p_at_L_long"
    ]
    assert (found["model"], found["minus"]) == ("tiny", "other")
    expected = estimate_mean((np.array(ours) - np.array(theirs)).tolist())
    assert [float(found[key]) for key in ("mean", "low", "high")] == pytest.approx(
        [expected.mean, expected.low, expected.high], abs=1e-6
    )
    page = (out / "report.md").read_text()
    assert "| " + " | ".join(("", "mine", "second")) in page and "## second" in page


@pytest.mark.slow
def test_a_checkpoint_tells_identity_to_what_it_was_trained_on(
    tmp_path: Path, finished: Finished, pdb_folders: tuple[Path, Path]
) -> None:
    with gzip.open(finished.best.parent / "train.fasta.gz", "rt") as handle:
        name, sequence = (next(handle).strip() for _ in range(2))
    structures, out = tmp_path / "structures", tmp_path / "out"
    write_pdb(structures / "9a00.pdb", {"A": sequence})
    write_pdb(structures / "9a01.pdb", {"A": random_sequence(900, 60)})
    asked = write_list(tmp_path / "mine.csv", [{"pdb_id": "9a00", "chain": "A"}, {"pdb_id": "9a01", "chain": "A"}])
    assert run(asked, "--ckpt_path", finished.best, "--structures", structures, "--out", out) == 0
    rows = read_rows(out / "scores_mine.csv")
    identity = {row["id"]: row["training_identity"] for row in rows if row["predictor"] == finished.best.name}
    assert {chain: float(value) for chain, value in identity.items()} == {"9a00_A": 1.0, "9a01_A": 0.0}, name
    strata = {row["subset"]: row["proteins"] for row in read_rows(out / "table.csv") if row["score"] == "mcc_sep6"}
    assert {key: strata[key] for key in ("id<30", "id30-50", "id>=50")} == {"id<30": "1", "id30-50": "0", "id>=50": "1"}
    assert "By identity to the nearest chain that the model was trained on" in (out / "report.md").read_text()


def test_copying_the_best_hit_stands_beside(tmp_path: Path, tiny_esm: Path) -> None:
    pytest.importorskip("pyhmmer")
    sequences = [random_sequence(40 + k, 90) for k in range(3)]
    structures, known, out = tmp_path / "structures", tmp_path / "known", tmp_path / "out"
    for k, sequence in enumerate(sequences):
        write_pdb(structures / f"9a0{k}.pdb", {"A": sequence}, seed=k)
        write_pdb(known / f"9k0{k}.pdb", {"A": sequence}, seed=k)  # the same structure under another entry's name
    (known / "9k02.pdb").unlink()
    assert main(["index", "build", "--structures", str(known), "--out", str(tmp_path / "db"), "--workers", "0"]) == 0
    asked = write_list(tmp_path / "mine.csv", [{"pdb_id": f"9a0{k}", "chain": "A"} for k in range(3)])
    common = (asked, "--model.pretrained", tiny_esm, "--structures", structures, "--out", out)
    assert run(*common, "--database", tmp_path / "nowhere") == 1 and not out.exists()  # before anything is scored
    assert run(*common, "--database", tmp_path / "db") == 0
    rows = {row["id"]: row for row in read_rows(out / "scores_mine.csv") if row["predictor"].startswith("copy")}
    assert [float(rows[f"9a0{k}_A"]["mcc_sep6"]) for k in range(3)] == [1.0, 1.0, 0.0]
    assert rows["9a02_A"]["hit_identity"] == "" and float(rows["9a00_A"]["hit_identity"]) == 1.0


def test_structures_come_from_the_server_once(tmp_path: Path, tiny_esm: Path, shared: Path, capsys) -> None:
    """Real files, from a server on this computer in the place of RCSB; an entry that is obsolete is gone there."""
    rows, server = [], Server()
    for entry in REAL:
        file = next((shared / "pdb").glob(f"*/{entry}.cif.gz"))
        chain = min(read_chains(file), key=len)
        rows.append({"pdb_id": entry, "chain": chain.id.split("_")[1], "sequence": chain.sequence})
        server.plans[entry.upper()] = [partial(send_file, file)]
    rows.append({"pdb_id": "1old", "chain": "A", "sequence": random_sequence(1, 60)})
    server.plans["1OLD"] = [status(404)]
    asked, out = write_list(tmp_path / "real.csv", rows), tmp_path / "out"
    common = (asked, "--model.pretrained", tiny_esm, "--out", out, "--cache_dir", tmp_path / "cache")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert run(*common, "--base_url", server.url) == 3
        said = capsys.readouterr().out
        assert "4 chains asked, 3 found, 1 missing, 0 replaced." in said
        assert "1old_A missing: HTTP 404 Not Found; obsolete entries are not available there" in said
        assert run(*common, "--base_url", server.url) == 3
        assert [server.asked[entry.upper()] for entry in REAL] == [1, 1, 1]
    finally:
        server.shutdown()
    assert run(*common, "--offline") == 3
    again = capsys.readouterr().out
    assert "4 chains asked, 3 found" in again and "not fetched yet: run once without --offline" in again
    assert run(asked, "--model.pretrained", tiny_esm, "--out", out, "--cache_dir", tmp_path / "empty", "--offline") == 1
    assert "no chain of" in capsys.readouterr().err


def test_without_network_it_says_what_is_missing_and_how_to_bring_it(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    asked, _ = made_set(tmp_path, 3)
    out = tmp_path / "out"
    common = (asked, "--model.pretrained", tiny_esm, "--out", out, "--cache_dir", tmp_path / "cache")
    assert run(*common, "--base_url", "http://127.0.0.1:9/files") == 1
    said = capsys.readouterr().err
    assert "3 of 3 structures are missing and cannot be fetched" in said and "--structures" in said
    assert "train_dir" not in said
    assert (out / "missing_entries.txt").read_text().split() == ["9a00", "9a01", "9a02"]


def test_smoke_needs_no_network(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run("smoke", "--model.pretrained", tiny_esm, "--out", out, "--base_url", "http://127.0.0.1:9") == 0
    said = capsys.readouterr().out
    assert (
        "SYNTHETIC" in said and "8 chains asked, 8 found, 0 missing, 0 replaced." in said and TRIVIAL.split()[0] in said
    )


def test_the_same_report_on_real_structures(tmp_path: Path, tiny_esm: Path, shared: Path) -> None:
    rows = []
    for path in sorted((shared / "pdb" / "test").glob("*.pdb.gz"))[:40]:
        entry = path.name[:4].lower()
        chains = [chain for chain in read_chains(path) if 60 <= len(chain) <= 150]
        if chains and entry not in {row["pdb_id"] for row in rows}:
            (tmp_path / "structures").mkdir(exist_ok=True)
            (tmp_path / "structures" / f"{entry}.pdb.gz").symlink_to(path)
            chain_id = chains[0].id.rpartition("_")[2]
            rows.append({"pdb_id": entry, "chain": chain_id, "sequence": chains[0].sequence})
        if len(rows) == 4:
            break
    asked, out = write_list(tmp_path / "real.csv", rows), tmp_path / "out"
    assert run(asked, "--model.pretrained", tiny_esm, "--structures", tmp_path / "structures", "--out", out) == 0
    trivial = table(out, contract="ours", subset="all")
    assert 0.4 < float(trivial[f"{TRIVIAL} mcc"]["mean"]) < 0.7 and float(trivial[f"{TRIVIAL} mcc_sep6"]["mean"]) == 0


def test_bad_arguments_are_told(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    asked, structures = made_set(tmp_path, 2)
    assert run(asked, "--structures", structures) == 1
    assert "no model is given" in capsys.readouterr().err
    assert run("nonsense", "--model.pretrained", tiny_esm) == 1
    assert "nonsense: no such test set" in capsys.readouterr().err
    assert run(asked, "--structures", tmp_path / "nowhere", "--model.pretrained", tiny_esm) == 1
    assert "structures" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(asked, "--ckpt_path", tmp_path / "file", "--structures", structures) == 1
    assert "does not end in .ckpt" in capsys.readouterr().err
    assert run("list") == 0
    assert capsys.readouterr().out == f"{list_text()}\n" and "licence" in list_text()
