"""Several processes do what one does: gloo on the CPU."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from contactlm import ContactModule, RetrievalModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, PredictionWriter, TokenBudget
from contactlm.callbacks.checkpoint import SafeCheckpoint
from contactlm.callbacks.prediction_files import read_summary
from contactlm.data.datamodule import ContactDataModule
from contactlm.maps.contact_map import ContactMap
from contactlm.model.execution import shard_layers
from contactlm.model.lora import LoraOptions
from contactlm.structure.parse import read_chains
from tests.callbacks.test_callbacks import data_module, trainer
from tests.callbacks.test_guards import train_in_one_of_two_processes
from tests.conftest import random_sequence, write_pdb
from tests.modules.test_retrieval import write_database
from tests.processes import free_port, output, rank_env, run_ranks, start, wait_until
from tests.retrieval.made import mutated
from tests.runs.test_interruption import call, command

Folders = tuple[Path, Path]


class Watch(L.Callback):
    """Notes the gradients of each step, and the steps."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def processes(world_size: int) -> dict[str, Any]:
    return {"strategy": "ddp", "devices": world_size, "use_distributed_sampler": False} if world_size > 1 else {}


def train(
    world_size: int,
    tiny_esm: Path,
    folders: Folders,
    batch_size: int,
    tokens: int,
    model: dict[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """Train in this process, one of ``world_size``; what came of it, as plain values."""
    torch.manual_seed(0)
    watch, budget, flops, evaluation = Watch(), TokenBudget(tokens, look_every=0.3), FlopsMeter(), ContactEvaluation()
    kind = RetrievalModule if "index" in model else ContactModule
    module = kind(str(tiny_esm), optimizer=sgd, **model)
    data = data_module(folders, batch_size=batch_size)
    runner = trainer(
        Path.cwd(), watch, budget, flops, evaluation, num_sanity_val_steps=0, gradient_clip_val=1.0,
        **processes(world_size), **options,
    )  # fmt: skip
    runner.fit(module, data)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    runner.test(module, data, verbose=False)
    return {
        "gradients": watch.gradients,
        "losses": watch.losses,
        "steps": runner.global_step,
        "tokens": budget.tokens,
        "residues": budget.residues,
        "flops": flops.total,
        "weights": {name: p.detach() for name, p in module.named_parameters() if p.requires_grad},
        "metrics": metrics | {name: float(value) for name, value in runner.callback_metrics.items()},
        "ids": sorted(row["id"] for row in evaluation.rows),
    }


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"lora": LoraOptions(dropout=0.0)}, {}),
    "all weights": ({"lora": None}, {}),
    "head": ({"lora": None, "freeze_backbone": True}, {}),
    "accumulated": ({"lora": LoraOptions(dropout=0.0)}, {"accumulate_grad_batches": 2}),
    "retrieval": ({"lora": LoraOptions(dropout=0.0), "index": "db", "decoder_lr_factor": 1.0}, {}),
}


def nearly_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


of_every_kind = pytest.mark.parametrize("kind", KINDS)


def train_kinds(world_size: int, tiny_esm: Path, folders: Folders, batch_size: int) -> dict[str, dict[str, Any]]:
    tokens = 4 * 16 * 32  # four batches, of which an epoch has three: by twos, the budget ends within a window
    return {
        kind: train(world_size, tiny_esm, folders, batch_size, tokens, model, **options)
        for kind, (model, options) in KINDS.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path) -> list[dict[str, Any]]:
    """Of each kind, what two processes with batches of 8 came to, and one with batches of 16."""
    folder = tmp_path_factory.mktemp("trained")
    folders = folder / "train", folder / "test"
    for i in range(40):
        write_pdb(folders[0] / f"t{i:02d}.pdb", {"A": random_sequence(i, 32 + i // 4)}, seed=i)
    for i in range(3):
        write_pdb(folders[1] / f"s{i}.pdb", {"A": random_sequence(100 + i, 40 + 9 * i)}, seed=100 + i)
    own = {path.stem: read_chains(path)[0].sequence for path in folders[0].iterdir()}
    write_database(folder / "db", {f"near-{name}_A": mutated(sequence, 0.15, 1) for name, sequence in own.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTACTLM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        ranks = run_ranks(train_kinds, 2, 2, tiny_esm, folders, 8, folder=folder)
        return [*ranks, train_kinds(1, tiny_esm, folders, 16)]


@pytest.mark.slow
@of_every_kind
def test_two_processes_train_as_one_with_the_double_batch(trained: list[dict[str, Any]], kind: str) -> None:
    *ranks, one = (results[kind] for results in trained)
    for rank in ranks:
        for ours, theirs in zip(rank["gradients"], one["gradients"], strict=True):
            nearly_equal(ours, theirs)
        nearly_equal(rank["weights"], one["weights"])
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert rank["metrics"].keys() == one["metrics"].keys()
        assert rank["metrics"]["dev/auprc_sep6"] == pytest.approx(one["metrics"]["dev/auprc_sep6"], abs=0.01)
        copied = {name: value for name, value in one["metrics"].items() if "/copy_" in name or "/proteins" in name}
        assert (len(copied) > 8) == (kind == "retrieval")
        assert {name: rank["metrics"][name] for name in copied} == pytest.approx(copied, abs=1e-6, nan_ok=True)
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name]), name  # all processes hold the same
    assert len(one["gradients"][0]) == len(one["weights"])  # each gets one: DDP has to look for no unused ones


@pytest.mark.slow
@of_every_kind
def test_budget_and_flops_are_sums_over_processes(trained: list[dict[str, Any]], kind: str) -> None:
    *ranks, one = (results[kind] for results in trained)
    assert one["steps"] == (3 if kind == "accumulated" else 4)  # the budget's last batch ends with a step
    assert one["tokens"] == 4 * 16 * 32 and one["flops"] > 0
    for rank in ranks:
        for name in ("steps", "tokens", "residues", "flops", "ids"):
            assert rank[name] == one[name], name


def evaluate(world_size: int, tiny_esm: Path, folders: list[Folders]) -> list[dict[str, Any]]:
    """Score several test sets, one after the other."""
    results = []
    for module in (ContactModule(str(tiny_esm)), RetrievalModule(str(tiny_esm), index="db")):
        evaluation = ContactEvaluation(write_rows=False)
        module.double()  # another batch sums in another order: in float64 that moves no pair past its neighbour
        runner = trainer(Path.cwd(), evaluation, **processes(world_size))
        for each in folders:
            data = data_module(each, eval_batch_size=2)
            (logged,) = runner.test(module, data, verbose=False)
            results.append({"rows": sorted(evaluation.rows, key=lambda row: row["id"]), "logged": logged})
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_protein_is_scored_once_whatever_the_number_of_processes(
    tmp_path: Path, tiny_esm: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for size in (1, 2, 5, 7):  # fewer than processes, as many, and numbers that no one can share evenly
        for i in range(size):
            write_pdb(tmp_path / f"test{size}" / f"s{i}.pdb", {"A": random_sequence(i, 20 + 7 * i)}, seed=i)
        folders.append((tmp_path / f"test{size}", tmp_path / f"test{size}"))
    write_database(tmp_path / "db", {f"near{i}_A": mutated(random_sequence(i, 20 + 7 * i), 0.15, 1) for i in (2, 4, 5)})
    monkeypatch.chdir(tmp_path)
    ranks = run_ranks(evaluate, world_size, world_size, tiny_esm, folders, folder=tmp_path)
    for one, *others in zip(evaluate(1, tiny_esm, folders), *ranks, strict=True):
        for other in others:
            assert other["logged"] == pytest.approx(one["logged"], abs=1e-6, nan_ok=True)
            assert [row["id"] for row in other["rows"]] == [row["id"] for row in one["rows"]]
            for ours, theirs in zip(other["rows"], one["rows"], strict=True):
                for name in ours.keys() & {"auprc_sep6", "copy_auprc_sep6", "hit_identity", "hit_coverage"}:
                    assert ours[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True)


def test_all_processes_skip_what_is_not_finite_in_one(tmp_path: Path) -> None:
    first, second = run_ranks(train_in_one_of_two_processes, 2, folder=tmp_path)
    for unchanged, skipped, _, _ in (first, second):
        assert unchanged == [False, True, False, True, False] and skipped == 2
    assert first[3] == second[3]
    assert first[2] == []  # the process whose batch it was names it
    assert [message.rsplit(": ", 1)[1] for message in second[2]] == ["batch 1", "batch 3"]


def predict(world_size: int, tiny_esm: Path, fasta: Path, out: Path) -> tuple[int, int]:
    """Predict in this process, one of ``world_size``: how many maps were written in all, and were there already."""
    writer = PredictionWriter(out, formats=["npz"])
    data = ContactDataModule(predict_paths=[str(fasta)], eval_batch_size=2, read_workers=0)
    runner = trainer(Path.cwd(), writer, **processes(world_size))
    runner.predict(ContactModule(str(tiny_esm)), data, return_predictions=False)
    return writer.written, writer.kept


@pytest.mark.slow
def test_processes_share_what_is_to_be_predicted(tmp_path: Path, tiny_esm: Path) -> None:
    lengths = {f"p{n}": 20 + 5 * n for n in range(7)}
    text = "".join(f">{name}\n{random_sequence(n, length)}\n" for n, (name, length) in enumerate(lengths.items()))
    (tmp_path / "a.fasta").write_text(text)
    predict(1, tiny_esm, tmp_path / "a.fasta", tmp_path / "one")
    two = tmp_path / "two"
    assert run_ranks(predict, 2, 2, tiny_esm, tmp_path / "a.fasta", two, folder=tmp_path) == [(7, 0)] * 2
    for name in lengths:
        ours, theirs = (ContactMap.load(folder / f"{name}.npz") for folder in (two, tmp_path / "one"))
        np.testing.assert_allclose(ours.probability, theirs.probability, atol=1e-6)
    assert {name: int(row["length"]) for name, row in read_summary(two / "summary.csv").items()} == lengths
    (two / "p3.npz").unlink()
    assert run_ranks(predict, 2, 2, tiny_esm, tmp_path / "a.fasta", two, folder=tmp_path) == [(1, 6)] * 2
    assert (two / "p3.npz").is_file() and len(read_summary(two / "summary.csv")) == 7


def sharded_gradients(tiny_esm: Path) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients of this process's half of a batch, with weights spread over both processes (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh

    os.environ["RANK"] = os.environ["LOCAL_RANK"]
    torch.distributed.init_process_group("gloo")
    rank, results = int(os.environ["RANK"]), {}
    for kind, module in some_modules(tiny_esm).items():
        shard_layers(module.backbone, init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",)))
        sharded = dict(module.named_parameters())
        assert all(type(weight.data).__name__ == "DTensor" for weight in sharded.values())
        half = slice(4 * rank, 4 * rank + 4)
        loss = module.loss(module.contact_logits(TOKENS[half]), LABELS[half])
        loss.backward()
        gradients = {name: weight.grad.full_tensor() for name, weight in sharded.items() if weight.grad is not None}
        results[kind] = (float(loss.detach()), gradients)
    torch.distributed.destroy_process_group()
    return results


TOKENS = torch.randint(4, 24, (8, 22), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(-1, 2, (8, 20, 20), generator=torch.Generator().manual_seed(2)).to(torch.int8)


def some_modules(tiny_esm: Path) -> dict[str, ContactModule]:
    return {
        "lora": ContactModule(str(tiny_esm), lora=LoraOptions(dropout=0.0)),
        "all weights": ContactModule(str(tiny_esm), lora=None),
        "checkpointed": ContactModule(str(tiny_esm), lora=None, activation_checkpointing=True),
    }


@pytest.mark.slow
def test_weights_spread_over_processes_give_the_same_gradients(tmp_path: Path, tiny_esm: Path) -> None:
    ranks = run_ranks(sharded_gradients, 2, tiny_esm, folder=tmp_path)
    for kind, module in some_modules(tiny_esm).items():
        loss = module.loss(module.contact_logits(TOKENS), LABELS)
        loss.backward()
        assert sum(rank[kind][0] for rank in ranks) / 2 == pytest.approx(float(loss.detach()), abs=1e-6)
        for rank in ranks:
            nearly_equal(rank[kind][1], {n: p.grad for n, p in module.named_parameters() if p.grad is not None})


def call_noting_reads(arguments: list[str]) -> int:
    """The command line as one of several processes; each structure file that is parsed leaves a line in ``parsed``."""
    from contactlm.data import cache

    read = cache.read_chains

    def noting(path: Path, **options: Any) -> Any:
        with Path("parsed").open("a") as handle:
            handle.write(f"{path}\n")
        return read(path, **options)

    cache.read_chains = noting  # type: ignore[assignment]
    return call(arguments)


@pytest.mark.slow
def test_one_of_two_processes_is_asked_to_end(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    options = ["--trainer.strategy=ddp", "--trainer.devices=2", "--checkpoint.last_every_n_steps=null"]
    arguments = command(tiny_esm, pdb_folders, *options, "--budget.max_tokens=100000000")
    port = free_port()
    processes = [
        start(call_noting_reads, arguments, folder=tmp_path, name=f"rank{rank}", env=rank_env(rank, 2, port))
        for rank in range(2)
    ]
    try:
        wait_until(lambda: any(tmp_path.rglob("*.ckpt")), processes[0])
        assert processes[0].pid is not None
        os.kill(processes[0].pid, signal.SIGTERM)
        for process in processes:
            process.join(120)
    finally:
        for process in processes:
            process.kill()
    texts = [output(tmp_path, f"rank{rank}") for rank in range(2)]
    # the other one was asked by the first, and its end is no crash
    assert [process.exitcode for process in processes] == [143, 0], texts
    saved = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert f"SIGTERM: stopped after step {saved['global_step']};" in texts[0] and "SIGTERM" not in texts[1]
    assert saved["callbacks"]["TokenBudget"]["tokens"] == 2 * 3 * 32 * saved["global_step"]
    parsed = (tmp_path / "parsed").read_text().split()
    assert len(parsed) == len(set(parsed)) == 13 + 3  # once a machine, not once a process


def note_searches() -> None:
    """In this process: each search for relatives leaves a line in ``searched``."""
    from contactlm.homology import cluster

    search = cluster.find_relations

    def noting(pool: list[str], *options: Any) -> Any:
        with Path("searched").open("a") as handle:
            handle.write(f"{len(pool)} by {os.environ['LOCAL_RANK']}\n")
        return search(pool, *options)

    cluster.find_relations = noting


def fit_and_keep(tiny_esm: Path, folders: Folders) -> dict[str, np.ndarray]:
    note_searches()
    data = data_module(folders, batch_size=2)
    saver = SafeCheckpoint(dirpath=Path.cwd() / "kept", monitor=None, stop_on_signals=False)
    runner = trainer(Path.cwd(), TokenBudget(300), saver, enable_checkpointing=True, **processes(2))
    runner.fit(ContactModule(str(tiny_esm)), data)
    return data.identity


def score_alone(tiny_esm: Path, test_dir: Path) -> dict[str, float]:
    note_searches()
    data = ContactDataModule(test_dir=str(test_dir), read_workers=0, min_length=10)
    runner = trainer(Path.cwd(), ContactEvaluation(write_rows=False), **processes(2))
    (logged,) = runner.test(ContactModule(str(tiny_esm)), data, ckpt_path=Path.cwd() / "kept/last.ckpt", verbose=False)
    return {name: value for name, value in logged.items() if "@id" in name}


@pytest.mark.slow
def test_relatives_are_searched_once_a_machine(tmp_path: Path, tiny_esm: Path) -> None:
    for i in range(10):
        write_pdb(tmp_path / "train" / f"t{i:02d}.pdb", {"A": random_sequence(i, 60)}, seed=i)
    for name, numbers in (("test", (0, 30)), ("other", (1, 3, 31))):
        for i in numbers:
            sequence = {"A": mutated(random_sequence(i, 60), 0.3, 1)}
            write_pdb(tmp_path / name / f"s{i:02d}.pdb", sequence, seed=i)
    ranks = run_ranks(fit_and_keep, 2, tiny_esm, (tmp_path / "train", tmp_path / "test"), folder=tmp_path)
    assert (tmp_path / "searched").read_text().split("\n") == ["10 by 0", "11 by 0", ""]  # clusters, and the test set
    assert all(identity["test"].astype(bool).sum() == 1 for identity in ranks)
    scores = run_ranks(score_alone, 2, tiny_esm, tmp_path / "other", folder=tmp_path)
    assert (tmp_path / "searched").read_text().split("\n")[2:] == ["12 by 0", ""]
    assert scores[0] == scores[1] and len({name.partition("@")[2] for name in scores[0]}) == 2


def test_world_size_and_rank_are_those_of_slurm(monkeypatch: pytest.MonkeyPatch, pdb_folders: Folders) -> None:
    from lightning.fabric.plugins.environments import SLURMEnvironment
    from lightning.fabric.utilities import rank_zero
    from lightning.pytorch.utilities import rank_zero as pytorch_rank_zero

    for module in (rank_zero, pytorch_rank_zero):  # a trainer of another rank leaves its rank here
        monkeypatch.setattr(module.rank_zero_only, "rank", 0)
    slurm = {"JOB_ID": 4711, "JOB_NAME": "contacts", "NTASKS": 4, "NTASKS_PER_NODE": 2, "NNODES": 2}
    task = {"PROCID": 3, "LOCALID": 1, "NODEID": 1, "NODELIST": "node[07-08]"}
    for name, value in {**slurm, **task}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "")  # so that what is set here goes away again
    monkeypatch.delenv("MASTER_PORT")
    runner = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, num_nodes=2, logger=False)
    environment = runner.strategy.cluster_environment  # type: ignore[attr-defined]
    assert isinstance(environment, SLURMEnvironment) and environment.main_address == "node07"
    assert (runner.world_size, runner.global_rank, runner.local_rank) == (4, 3, 1)
    data = data_module(pdb_folders, batch_size=2)
    data.setup("fit")
    data.trainer = runner
    # eleven chains, four processes with batches of two: the last one's share of the two batches of an epoch
    assert list(data.train_dataloader().sampler) == [6, 7, 14, 15]
