import gzip
import io
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from Bio.PDB import MMCIFIO, PDBParser

from contactlm import ContactDataModule
from contactlm.data.rcsb.ids import read_id_list
from contactlm.data.sources import Source
from contactlm.data.store import ChainStore
from contactlm.types import DataError
from tests.conftest import random_sequence, write_pdb


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - of the one server of a test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def write_cif(path: Path, sequences: dict[str, str], seed: int) -> None:
    pdb = write_pdb(path.with_suffix(".tmp.pdb"), sequences, seed)
    writer, text = MMCIFIO(), io.StringIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("x", pdb))
    writer.save(text)
    pdb.unlink()
    path.write_bytes(gzip.compress(text.getvalue().encode()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "served"
    root.mkdir()
    for i in range(8):
        write_cif(root / f"{i + 1}ABC.cif.gz", {c: random_sequence(10 * i + ord(c), 50 + i) for c in "AB"}, i)
    Quiet.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_structures_are_fetched_once_and_only_the_chains_named_are_used(tmp_path: Path, server: str, caplog) -> None:
    (tmp_path / "train.txt").write_text("# a list\n1abc_A\n1abc_B\n2abc\n3abc_B\n4abc_Z\n9abc\n")
    (tmp_path / "test.txt").write_text("5abc A\n6abc\n")

    def module() -> ContactDataModule:
        data = ContactDataModule(
            train_ids=str(tmp_path / "train.txt"),
            test_ids=str(tmp_path / "test.txt"),
            download_dir=str(tmp_path / "kept"),
            base_url=server,
            read_workers=0,
            dev_fraction=0.2,
        )
        data.prepare_data()
        data.setup("fit")
        return data

    chains = module().chains
    assert sorted(chains["train"].ids + chains["dev"].ids) == ["1abc_A", "1abc_B", "2abc_A", "2abc_B", "3abc_B"]
    assert sorted(chains["test"].ids) == ["5abc_A", "6abc_A", "6abc_B"]
    assert "9abc" in caplog.text and "1 chains are not in their structures: 4abc_Z" in caplog.text
    asked = list(Quiet.asked)
    assert asked.count("/1ABC.cif.gz") == 1
    module()
    assert set(Quiet.asked[len(asked) :]) <= {"/9ABC.cif.gz"}  # what is there is not asked for again


def test_folders_come_before_lists_of_ids(tmp_path: Path) -> None:
    for i in range(4):
        write_pdb(tmp_path / "in" / f"f{i}.pdb", {"A": random_sequence(i, 40)}, i)
    data = ContactDataModule(str(tmp_path / "in"), train_ids="ids/train.txt", test_ids="ids/test.txt", read_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert set(data.chains) == {"train", "dev"}


def test_without_a_server_the_error_says_what_to_do(tmp_path: Path) -> None:
    data = ContactDataModule(train_ids="ids/train.txt", download_dir=str(tmp_path), base_url="http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9 cannot be reached.*train_dir"):
        data.prepare_data()


def test_the_shipped_lists_are_found_by_name_and_are_apart() -> None:
    entries = {}
    for role in ("train", "test"):
        source = Source(f"{role}_ids", f"ids/{role}.txt", is_ids=True)
        entries[role] = {entry for entry, _ in source._ids()}
    assert len(entries["train"]) > 150 and len(entries["test"]) > 40
    assert not entries["train"] & entries["test"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_id_list("nowhere.txt")


def test_a_long_list_of_ids_is_looked_up_at_once(tmp_path: Path) -> None:
    ids = [f"{1 + n // 46656}{np.base_repr(n % 46656, 36).lower():0>3}_A" for n in range(30_000)]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    n = len(ids)
    nothing = np.zeros((n, 3), np.float32), np.zeros(n, np.uint8)
    store = ChainStore(ids, np.arange(n), np.ones(n, np.int64), *nothing, {"file_of_chain": list(range(n))})
    start = time.process_time()
    assert len(Source("train_ids", str(tmp_path / "ids.txt"), is_ids=True).wanted(store)) == n
    assert time.process_time() - start < 3  # takes 0.2 s; a look through the whole list for each takes 15 s
