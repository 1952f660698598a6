import logging
from pathlib import Path

import numpy as np
import pytest

from contactlm import ContactDataModule
from contactlm.data import leakage
from contactlm.data.leakage import training_identity
from contactlm.homology.relations import ClusterOptions
from tests.conftest import random_sequence, write_pdb


def mutated(sequence: str, share: float, seed: int) -> str:
    rng = np.random.default_rng(seed)
    other = random_sequence(seed + 1000, len(sequence))
    return "".join(b if rng.random() < share else a for a, b in zip(sequence, other, strict=True))


@pytest.fixture
def families(tmp_path: Path) -> tuple[Path, Path]:
    """Ten families of four relatives (about 60 % identical) to train on; a test relative of two of them."""
    for family in range(10):
        ancestor = random_sequence(family, 80)
        for member in range(4):
            sequence = mutated(ancestor, 0.25, 10 * family + member)
            write_pdb(tmp_path / "train" / f"f{family}m{member}.pdb", {"A": sequence})
        test = mutated(ancestor, 0.25, 500 + family) if family < 2 else random_sequence(900 + family, 80)
        write_pdb(tmp_path / "test" / f"t{family}.pdb", {"A": test})
    return tmp_path / "train", tmp_path / "test"


def module(folders: tuple[Path, Path], **options: object) -> ContactDataModule:
    data = ContactDataModule(str(folders[0]), str(folders[1]), read_workers=0, dev_fraction=0.2, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def families_of(ids: list[str]) -> set[str]:
    return {name[:2] for name in ids}


def test_whole_families_are_held_out(families: tuple[Path, Path]) -> None:
    for seed in range(4):
        chains = module(families, split_seed=seed).chains
        assert len(chains["dev"]) == 8 and len(chains["train"]) == 32
        assert not families_of(chains["dev"].ids) & families_of(chains["train"].ids)


def test_a_random_split_mixes_families_and_says_so(families: tuple[Path, Path], caplog) -> None:
    with caplog.at_level(logging.INFO, logger="contactlm"):
        data = module(families, split="random")
    assert families_of(data.chains["dev"].ids) & families_of(data.chains["train"].ids)
    assert "split is random" in caplog.text
    assert f"{(data.identity['dev'] > 0).sum()} of 8 dev chains with a training relative" in caplog.text


def test_leaks_between_train_and_test_are_counted(families: tuple[Path, Path], caplog) -> None:
    with caplog.at_level(logging.INFO, logger="contactlm"):
        data = module(families)
    related = {data.chains["test"].ids[i] for i in np.flatnonzero(data.identity["test"])}
    trained = families_of(data.chains["train"].ids)
    assert related == {f"t{family}_A" for family in range(2) if f"f{family}" in trained}
    assert "none of 8 dev chains has a training relative" in caplog.text
    assert all(0.3 <= value < 0.9 for value in data.identity["test"] if value)


def test_identities_are_kept_and_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = [random_sequence(i, 60) for i in range(5)]
    queries = [mutated(training[0], 0.3, 7), random_sequence(77, 60), training[3]]
    options = ClusterOptions()
    first = training_identity(queries, training, options, tmp_path)
    assert first[1] == 0 and first[2] == 1 and 0.3 < first[0] < 1
    with monkeypatch.context() as patch:
        patch.setattr(leakage, "best_identity", lambda *_: pytest.fail("computed again"))
        np.testing.assert_array_equal(training_identity(queries, training[::-1], options, tmp_path), first)
    (kept,) = (tmp_path / "identity").iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    np.testing.assert_array_equal(training_identity(queries, training, options, tmp_path), first)
