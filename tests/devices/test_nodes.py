"""Two "nodes" of one process each on the loopback address: through torchrun's variables and through SLURM's."""

import os
import re
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from contactlm.types import DataError
from tests.devices.commands import KINDS, Folders, checkpoint, fits, load_file, run_commands, run_of, same_state
from tests.processes import finish, free_port, output, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", "--ckpt_path=last"]
ENDS_WITHIN = 30  # seconds; on a quiet machine within 6


def torchrun(node: int, port: int) -> dict[str, str]:
    own = {"RANK": node, "GROUP_RANK": node, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 2}
    return {name: str(value) for name, value in own.items()} | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1",
    }  # fmt: skip


def slurm(node: int, port: int) -> dict[str, str]:
    job = {"JOB_ID": 4711, "JOB_NAME": "contacts", "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2}
    task = {"PROCID": node, "LOCALID": 0, "NODEID": node, "NODELIST": "127.0.0.1"}
    return {f"SLURM_{name}": str(value) for name, value in (job | task).items()} | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def run_node(commands: list[list[str]], kill_at: int | None = None, broken: bool = False) -> None:
    """Commands, as one node runs them; each structure file that is parsed leaves a line in ``parsed-<node>``."""
    from contactlm.data import cache, datamodule

    read, node = cache.read_chains, os.environ.get("RANK") or os.environ["SLURM_PROCID"]

    def noting(path: Path, **options: Any) -> Any:
        with Path(f"parsed-{node}").open("a") as handle:
            handle.write(f"{path}\n")
        return read(path, **options)

    def failing(self: Any) -> None:
        raise DataError("train_dir: what the first process says is wrong with it")

    cache.read_chains = noting  # type: ignore[assignment]
    if broken:
        datamodule.ContactDataModule.prepare_data = failing  # type: ignore[method-assign]
    run_commands(commands, kill_at)


def start_nodes(
    folder: Path, name: str, environment: Any, commands: list[list[str]], **options: Any
) -> list[BaseProcess]:
    """Start both; options that are lists have one for each node."""
    port = free_port()
    own = [{key: values[node] for key, values in options.items()} for node in range(2)]
    return [
        start(run_node, commands, own[node].get("kill_at"), own[node].get("broken", False), folder=folder,
              name=f"{name}{node}", env=environment(node, port) | own[node].get("env", {}))
        for node in range(2)
    ]  # fmt: skip


def parsed(folder: Path, node: int) -> list[str]:
    return sorted((folder / f"parsed-{node}").read_text().split())


def test_nodes_of_torchrun_with_a_cache_each(one: Path, work: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    folder = work / "torchrun"
    folder.mkdir()
    kinds = {name: KINDS[name] for name in ("lora", "retrieval")}
    commands = fits(tiny_esm, pdb_folders, kinds, *NODES)
    caches = [{"CONTACTLM_CACHE": str(folder / f"cache{node}")} for node in range(2)]
    for node, process in enumerate(start_nodes(folder, "node", torchrun, commands, env=caches)):
        finish(process, folder, f"node{node}")
    same_state(load_file(checkpoint(run_of(folder))), load_file(checkpoint(run_of(one))))
    for node in range(2):  # each file once a node
        files = parsed(folder, node)
        assert len(files) == len(set(files)) == 13 + 3
    kept = [
        {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.means")}
        for cache in folder.glob("cache*")
    ]
    assert kept[0] and kept[0] == kept[1]  # evidence, all of it on each node
    same_state(load_file(checkpoint(run_of(folder, "retrieval"))), load_file(checkpoint(run_of(one, "retrieval"))))
    assert "skipped" in output(folder, "node0") and "skipped" not in output(folder, "node1")


def test_a_node_of_slurm_is_killed_and_the_run_goes_on(
    one: Path, work: Path, tiny_esm: Path, pdb_folders: Folders
) -> None:
    folder = work / "slurm"
    folder.mkdir()
    commands = fits(tiny_esm, pdb_folders, {"lora": KINDS["lora"]}, *NODES)
    shared = [{"CONTACTLM_CACHE": str(folder / "cache")}] * 2
    killed = start_nodes(folder, "killed", slurm, commands, env=shared, kill_at=[None, 3])
    killed[1].join(100)
    since = time.monotonic()
    killed[0].join(100)
    took, text = time.monotonic() - since, output(folder, "killed0")
    assert killed[1].exitcode == -signal.SIGKILL and killed[0].exitcode not in (0, None), text
    assert took < ENDS_WITHIN  # when gloo's connection breaks
    for node, process in enumerate(start_nodes(folder, "node", slurm, commands, env=shared)):
        finish(process, folder, f"node{node}")
    assert re.search(r"resuming \S+last\.ckpt, of step \d+", output(folder, "node0"))
    same_state(load_file(checkpoint(run_of(folder, version=1))), load_file(checkpoint(run_of(one))))
    for node in range(2):
        assert len(parsed(folder, node)) <= 13 + 3  # none twice, though the cache is shared


@pytest.mark.parametrize("broken", [[True, False]], ids=["in the first"])
def test_a_failure_is_told_and_ends_all(
    work: Path, tiny_esm: Path, pdb_folders: Folders, broken: list[bool], request: pytest.FixtureRequest
) -> None:
    folder = work / str(request.node.callspec.id).replace(" ", "-")
    folder.mkdir()
    commands = fits(tiny_esm, pdb_folders, {"lora": KINDS["lora"]}, *NODES)
    nodes = start_nodes(folder, "node", torchrun, commands, broken=broken)
    for process in nodes:
        process.join(100)
    texts = [output(folder, f"node{node}") for node in range(2)]
    assert all(process.exitcode not in (0, None) for process in nodes), texts
    for says, text in zip(broken, texts, strict=True):
        assert text.count("contactlm: error: train_dir: what the first process says is wrong with it") == says
