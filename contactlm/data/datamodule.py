"""ContactDataModule: folders of structure files in, batches of crops and whole chains out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from contactlm.data.batches import CostBound, check_positive
from contactlm.data.cache import StructureCache
from contactlm.data.complexes import assemble, read_pairs, rows_of
from contactlm.data.crop import CropScheme
from contactlm.data.dataset import CropDataset
from contactlm.data.files import find_predictable
from contactlm.data.leakage import LeakSearch
from contactlm.data.loaders import Complete, bound_for, training_loader, whole_loader
from contactlm.data.packed.store import MIN_KNOWN, ClusterRule
from contactlm.data.rcsb.download import RCSB
from contactlm.data.sources import Source, find_sources, need_predict_paths, need_role, read_predict_inputs
from contactlm.data.split import (
    by_length,
    cluster_chains,
    group_identical,
    join_groups,
    name_problems,
    select_chains,
    split_groups,
)
from contactlm.data.store import ChainStore, chain_sequences, join_chains
from contactlm.data.stream import StreamLoader
from contactlm.data.synthetic import SyntheticOptions, write_synthetic
from contactlm.data.training_set import NAME as KEPT_TRAINING
from contactlm.data.training_set import check_same_run, describe_chains, kept_training, other_chains
from contactlm.homology.cluster import ClusterOptions
from contactlm.structure.files import is_structure_name
from contactlm.types import CHAIN_JUMP, ContactDefinition, DataError

NEEDED = {"fit": ("train", "test"), "validate": ("train",), "test": ("test",), "predict": ()}  # sources, by stage
log = logging.getLogger(__name__)


class ContactDataModule(L.LightningDataModule):
    """Training crops and whole dev and test chains from structure files.

    Args:
        train_dir: Folder with structure files (PDB, mmCIF, BinaryCIF, also compressed; searched recursively), text file
            that lists their paths, folder or URL (``s3://…``, ``https://…``) of a set that ``contactlm pack`` wrote,
            or ``antibodies/train``, a shipped one. A part of it is held out as the dev set.
        test_dir: The same for the test set; None: no test set.
        train_ids: Text file with one PDB id per line, with a chain (``1abc_A``) or without. The structures are
            downloaded from the Protein Data Bank. Used only without ``train_dir`` and ``test_dir``. ``ids/train.txt``
            names a list of the package.
        test_ids: The same for the test set.
        download_dir: Folder for downloaded structures; None: ``structures`` in the cache folder.
        base_url: Server to download from, as ``<base_url>/1ABC.cif.gz``.
        predict_paths: FASTA and structure files, or folders of them, as input of ``predict``. In FASTA ``SEQ1:SEQ2`` is
            a complex.
        pairs: CSV file with one complex per line: the ids of its chains, such as ``1abc_H,1abc_L``. Only these are
            used. Training and tests need structures in one frame; ``predict`` needs sequences only.
        crop_length: Residues per training sample, L'.
        crop: ``"random"``: L' consecutive residues, fresh each epoch, uniform over all starts; ``"cut"``: the first L';
            ``"two_segments"``: two segments of half a crop each, at their true positions, uniform over all positions;
            ``"whole"``: whole chains.
        true_ends: Keep ``<cls>`` and ``<eos>`` of a crop at the positions of the chain's real ends; otherwise they are
            next to the crop, as in the passes of the sliding window.
        batch_size: Training samples per batch and device.
        batch_tokens: Instead of ``batch_size``: maximum tokens per batch and device, padding included, for whole
            chains. Batches hold chains of similar length, and fewer of them if an epoch would have more than about
            4 % padding. Every protein has the same weight in the loss. A longer chain is a batch of its own.
        batch_pairs: Instead of ``batch_tokens``: maximum of B × L², which memory grows with.
        weights: ``"uniform"``: an epoch is every chain once; ``"cluster"``: one chain of each cluster, in turns.
        eval_batch_size: Whole chains per dev, test or predict batch. None: as many as keep the device busy.
        dev_fraction: Fraction of the groups of training chains held out as the dev set.
        split: Groups of the split: ``"cluster"``: of related sequences; ``"random"``: of identical sequences.
        cluster: When two sequences are related, for the split, the leak report and the scores by identity.
        min_length: Skip shorter chains, in training and evaluation.
        min_known: Skip chains with a smaller share of known residues (not X) among the resolved ones.
        contact: When two residues touch: which atoms (``cb``, ``ca``) are how near (6 to 12 Å); None: as the checkpoint
            was trained, C-betas below 8 Å in a new run. Two definitions are never compared.
        sequence: ``"seqres"``: full sequences, unresolved residues included; ``"observed"``: resolved residues only.
        assembly: ``"chain"``: each chain is a sample; ``"complex"``: all protein chains of a file (in a biological
            assembly, of all models) are one sample, with a jump in the positions between chains. Copies and short
            chains are included, ``min_length`` applies to the complex, and crops may span chains.
        chain_jump: Positions left free between the chains of a complex; None: as the checkpoint was trained, 200 in a
            new run.
        seed: Seed of the order of chains and of the crops.
        split_seed: Seed of the split into training and dev chains.
        num_workers: Processes that prepare batches; one takes about a millisecond, so 0 is fine.
        read_workers: Processes that read structure files that are not cached; None: one per core.
        cache_dir: Cache folder; None: ``$CONTACTLM_CACHE`` or ``~/.cache/contactlm``.
        on_bad_file: ``"skip"``: name and skip unreadable files; ``"raise"``: end the run.
        leak_report: Whether to score test and dev chains by identity to training chains. ``"auto"``: unless the
            comparison takes more than some minutes; ``"always"``; ``"never"``.
        synthetic: Write a set of synthetic proteins first and use it instead of ``train_dir`` and ``test_dir``.

    Examples:
        >>> from contactlm import ContactDataModule
        >>> from contactlm.data.synthetic import SyntheticOptions
        >>> made = SyntheticOptions("proteins", n_train=8, n_test=2)  # or ContactDataModule("my/train", "my/test", …)
        >>> data = ContactDataModule(synthetic=made, crop_length=40, batch_size=4, read_workers=0)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["tokens"].shape, batch["cb"].shape
        (torch.Size([4, 42]), torch.Size([4, 40, 3]))
    """

    def __init__(
        self,
        train_dir: str | None = None,
        test_dir: str | None = None,
        train_ids: str | None = None,
        test_ids: str | None = None,
        download_dir: str | None = None,
        base_url: str = RCSB,
        predict_paths: list[str] | None = None,
        pairs: str | None = None,
        crop_length: int = 200,
        crop: CropScheme = "random",
        true_ends: bool = False,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        batch_pairs: int | None = None,
        weights: Literal["uniform", "cluster"] = "uniform",
        eval_batch_size: int | None = None,
        dev_fraction: float = 0.1,
        split: Literal["cluster", "random"] = "cluster",
        cluster: ClusterOptions = ClusterOptions(),  # noqa: B008 - frozen; shown by --help
        min_length: int = 30,
        min_known: float = MIN_KNOWN,
        contact: ContactDefinition | None = None,
        sequence: Literal["seqres", "observed"] = "seqres",
        assembly: Literal["chain", "complex"] = "chain",
        chain_jump: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
        read_workers: int | None = None,
        cache_dir: str | None = None,
        on_bad_file: Literal["skip", "raise"] = "skip",
        leak_report: Literal["auto", "always", "never"] = "auto",
        synthetic: SyntheticOptions | None = None,
    ) -> None:
        super().__init__()
        check_positive(crop_length=crop_length, batch_size=batch_size, min_length=min_length)
        check_positive(eval_batch_size=1 if eval_batch_size is None else eval_batch_size)
        self.train_dir, self.test_dir, self.synthetic = train_dir, test_dir, synthetic
        self.train_ids, self.test_ids, self.download_dir, self.base_url = train_ids, test_ids, download_dir, base_url
        self.crop_length, self.crop, self.batch_size, self.true_ends = crop_length, crop, batch_size, true_ends
        self.eval_batch_size, self.dev_fraction = eval_batch_size, dev_fraction
        self.min_length, self.min_known = min_length, min_known
        self.seed, self.split_seed = seed, split_seed
        self.num_workers, self.on_bad_file, self.leak_report = num_workers, on_bad_file, leak_report
        check_positive(chain_jump=1 if chain_jump is None else chain_jump)
        self.assembly, self.predict_paths, self.pairs, self.chain_jump = assembly, predict_paths, pairs, chain_jump
        models = "copies" if assembly == "complex" else "first"
        self._reader = partial(StructureCache, cache_dir, sequence, read_workers, models=models)
        self.contact = contact
        self.split, self.cluster, self.weights = split, cluster, weights
        self.bound = CostBound.of_options(batch_tokens, batch_pairs)
        self._train_clusters: NDArray[np.int64] | None = None
        self._clustered_by, self._is_quiet = "", False
        self._trained_on: dict[str, Any] | None = None
        self.trained_before: list[dict[str, Any]] = []  # other training sets of the runs that this one resumed
        self.identity: dict[str, NDArray[np.float32]] = {}
        self._chains: dict[str, ChainStore] = {}
        self._finished: Callable[[ChainStore], Collection[str]] | None = None
        self._complete: Complete | None = None
        self.problems: dict[str, str] = {}
        self.predict_files: dict[str, Path] = {}  # structure files of chains to predict, by id

    @property
    def chains(self) -> dict[str, ChainStore]:
        """The chains in use after :meth:`setup`, by role: ``train``, ``dev``, ``test``, ``predict``."""
        return self._chains

    def prepare_data(self) -> None:
        """Get the files and fill the cache, once a node, so that :meth:`setup` finds everything in every process."""
        stage = self._stage
        if self.synthetic is not None:
            write_synthetic(self.synthetic)
        for source in self._sources(stage).values():
            source.fetch()
            source.load(self._cache())
        if self.predict_paths and stage in (None, "predict"):
            found = [path for given in self.predict_paths for path in find_predictable(given)]
            if structures := [path for path in found if is_structure_name(path)]:
                self._cache().load(structures)
        if self.trainer is not None and self.trainer.world_size > 1 and stage != "predict":
            self._fill_cache(stage)

    def _fill_cache(self, stage: str | None) -> None:
        """Do once what each process would do: clusters and identities to training chains are kept in the cache."""
        twin = copy(self)
        twin._chains, twin.identity, twin._is_quiet = {}, {}, True
        with suppress(DataError):  # each process meets it again, and says so
            twin.setup(stage or "fit")

    @property
    def _stage(self) -> str | None:
        """What the trainer is about to do; None: there is no trainer."""
        return None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value

    def setup(self, stage: str) -> None:
        """Open the chains a stage needs: ``fit``, ``validate``, ``test`` or ``predict``."""
        sources = self._sources()
        if stage in ("fit", "validate") and "train" not in self._chains:
            need_role(stage, sources)
            self._split(self._select(sources["train"]))
        if stage in ("fit", "test") and "test" not in self._chains and "test" in sources:
            self._chains["test"] = by_length(self._select(sources["test"]))
        if "test" not in self._chains and stage == "test":
            need_role(stage, sources)
        if "train" in self._chains and self._not_compared():
            train = self._chains["train"]
            self._look_for_leaks(cache(lambda: chain_sequences(train)[0]), train.chain_keys()[0])
        if stage == "predict" and "predict" not in self._chains:
            self._setup_predict()

    def _look_for_leaks(self, training: Callable[[], Sequence[str]], keys: Sequence[str]) -> None:
        """Find how near dev and test chains are to what is trained on; the arguments are those of LeakSearch."""
        search = LeakSearch(self.cluster, self._cache().directory, self.leak_report, self._is_main_process)
        apart = ("dev",) if self.split == "cluster" and self._clustered_by == "builtin" else ()
        sets = {role: self._chains[role] for role in self._not_compared()}
        self.identity |= search.identities(sets, training, keys, apart)

    def _not_compared(self) -> list[str]:
        """The roles whose chains were not yet compared with those trained on."""
        return sorted({"dev", "test"} & self._chains.keys() - self.identity.keys())

    def _look_for_kept_training(self, path: str | Path, trained_on: Mapping[str, Any]) -> None:
        """Take the training sequences next to the checkpoint, where no training chains are known."""
        kept = kept_training(path) if "train" not in self._chains and self.leak_report != "never" else None
        if kept is not None and kept.about == trained_on:
            self._look_for_leaks(lambda: kept.sequences, kept.sequences)
        elif kept is not None and self._is_main_process:
            log.warning(
                "the %s next to %s lists other chains than it was trained on and is ignored: no scores by identity to "
                "training chains", KEPT_TRAINING, path,
            )  # fmt: skip

    def _setup_predict(self) -> None:
        inputs = read_predict_inputs(
            need_predict_paths(self.predict_paths), self._cache(progress=False), self.assembly == "complex", self.pairs
        )
        self._chains["predict"], self.problems = by_length(inputs.store), inputs.problems
        self.predict_files = inputs.files
        if self._is_main_process:
            for note in inputs.notes:
                log.info("%s", note)
            name_problems(inputs.problems)
        if not len(inputs.store):
            raise DataError(f"predict_paths: nothing to predict: {len(inputs.problems)} problems, all named above")

    def leave_out(self, finished: Callable[[ChainStore], Collection[str]]) -> None:
        """Do not predict chains whose results exist already.

        Args:
            finished: Gives their ids; asked when predictions begin, and the weights of a checkpoint are loaded.
        """
        self._finished = finished

    def _sources(self, stage: str | None = None) -> dict[str, Source]:
        """Where the structures of each role come from that a stage needs; None: of all."""
        found = find_sources(vars(self), self._cache().directory)
        return {role: source for role, source in found.items() if role in NEEDED.get(stage or "", found)}

    def _select(self, source: Source) -> ChainStore:
        """Read a source and keep the chains that can be used."""
        option = source.option
        store, report = source.load(self._cache(progress=False))
        if report.problems and self.on_bad_file == "raise":
            path, reason = next(iter(report.problems.items()))
            raise DataError(f"{option}: {path}: {reason} (one of {len(report.problems)} files that cannot be read)")
        store = join_chains(store) if self.assembly == "complex" else source.wanted(store)
        if self.pairs is not None:
            store, problems = assemble(store, rows_of(read_pairs(self.pairs), store), keeps_coordinates=True)
            name_problems(problems if self._is_main_process else {})
        selection = select_chains(store, report, self.min_length, self.min_known)
        if self._is_main_process:
            selection.announce(option, source.location)
        if not len(selection.store):
            unreadable = [f"; the first unreadable file: {path}: {why}" for path, why in report.problems.items()]
            raise DataError(
                f"{option}: {source.location}: nothing left to use of {report.files} files: {selection.summary()}; "
                f"min_length is {self.min_length}{''.join(unreadable[:1])}"
            )
        return selection.store

    def _split(self, store: ChainStore) -> None:
        keys, entries = store.chain_keys()
        groups = group_identical(keys) if self.split == "random" else None
        if groups is None or self.weights == "cluster":
            assembly = self.assembly if self.pairs is None else self.pairs  # of which no packed set has clusters
            rule = ClusterRule(self.cluster, self.min_length, assembly, min_known=self.min_known)
            clusters, options = cluster_chains(store, rule, self._cache().directory)
            self._clustered_by = options.program
            groups = clusters if groups is None else groups
        is_dev = split_groups(join_groups(groups, entries), self.dev_fraction, self.split_seed)
        if self.weights == "cluster":
            self._train_clusters = join_groups(clusters, entries)[~is_dev]
        self._chains["train"] = store.select(np.flatnonzero(~is_dev))
        self._chains["dev"] = by_length(store.select(np.flatnonzero(is_dev)))
        if self._is_main_process:
            log.info("%d chains to train on, %d held out as dev set", (~is_dev).sum(), is_dev.sum())
            if self.split == "random":
                log.warning("split is random: relatives of dev chains are trained on, and dev scores flatter the model")

    def state_dict(self) -> dict[str, Any]:
        """Seeds, split and training chains, which a resumed run must have again."""
        options = {name: getattr(self, name) for name in ("seed", "split_seed", "split", "dev_fraction")}
        train = self._chains.get("train")
        if self._trained_on is None and train is not None:
            self._trained_on = describe_chains(train.ids, train.lengths)
        now = {} if self._trained_on is None else {"train": self._trained_on}
        return options | now | {"trained_before": self.trained_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume a run of another seed or split; name other training chains.

        A test looks for the chains that the checkpoint was trained on, for the scores by identity.
        """
        trainer, trained_on = self.trainer, state_dict.get("train")
        if trainer is None:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            now = self.state_dict()
            self.trained_before = check_same_run(state_dict, now, trainer.ckpt_path)
            if self.trained_before and self._is_main_process:
                log.warning("%s", other_chains(self.trained_before, now["train"]))
        elif trainer.state.fn == TrainerFn.TESTING and trained_on is not None and trainer.ckpt_path is not None:
            # the first process of each node goes first, and leaves the answer for the others in the cache
            if trainer.local_rank == 0:
                self._look_for_kept_training(trainer.ckpt_path, trained_on)
            trainer.strategy.barrier()
            if trainer.local_rank != 0:
                self._look_for_kept_training(trainer.ckpt_path, trained_on)

    @property
    def _is_main_process(self) -> bool:
        return not self._is_quiet and (self.trainer is None or self.trainer.is_global_zero)

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> StreamLoader:
        """Crops, batch after batch: ``Batch`` dictionaries (see :mod:`contactlm.data.dataset`)."""
        store, options = self._chains["train"], self._loader_options()
        dataset = CropDataset(
            store, self.crop_length, self.crop, self.seed, true_ends=self.true_ends, groups=self._train_clusters,
            jump=self.jump,
        )  # fmt: skip
        if self.weights == "cluster" and self._is_main_process:
            log.info("an epoch is one chain of each of %d clusters of %d chains", len(dataset), len(store))
        size = self.batch_size if self.bound is None else self.bound
        return training_loader(dataset, size, self._rank(), self._progress, self._complete, **options)

    def complete_batches(self, complete: Complete | None) -> None:
        """Let ``complete`` add to every training batch, in the process that loads it; None: nothing is added."""
        self._complete = complete

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Whole dev chains; an empty list when none are held out."""
        return self._whole(self._chains["dev"]) if len(self._chains["dev"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole test chains."""
        return self._whole(self._chains["test"])

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Whole chains to predict; an empty list when no one is left."""
        store = self._chains["predict"]
        done = set() if self._finished is None else set(self._finished(store))
        left = store.select([i for i, name in enumerate(store.ids) if name not in done])
        return self._whole(left) if len(left) else []

    def _whole(self, store: ChainStore) -> DataLoader[Any]:
        learnt = self.definition if self.trainer is None else getattr(self.trainer.lightning_module, "contact", None)
        if learnt not in (None, self.definition):
            raise DataError(f"contact: {self.definition} given, the model has {learnt}: leave it out, or train with it")
        return whole_loader(store, self.evaluation_size, *self._rank(), self.jump, **self._loader_options())

    def _cache(self, **options: Any) -> StructureCache:
        return self._reader(atom=self.definition.atom, **options)

    @property
    def definition(self) -> ContactDefinition:
        """When two residues touch: what is given, else the module's."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        learnt: ContactDefinition = getattr(module, "contact", ContactDefinition())
        return self.contact or learnt

    @property
    def jump(self) -> int:
        """Positions left free between chains: those given, else the module's, which a checkpoint keeps."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        learnt: int = getattr(module, "chain_jump", CHAIN_JUMP)
        return self.chain_jump or learnt

    @property
    def evaluation_size(self) -> int | CostBound:
        """Whole chains a dev, test or predict batch, or what such a batch may cost."""
        device_type = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        return bound_for(device_type) if self.eval_batch_size is None else self.eval_batch_size

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # or each pass would draw from the generator that dropout draws from
        }

    def _progress(self) -> tuple[int, int]:
        """The epoch and how many of its batches were trained on; an epoch that is over is the next one's start."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        started = loop.epoch_progress.state_dict()["current"]["started"]
        epoch, batch = max(0, started - 1), loop.epoch_loop.batch_progress.current.ready
        return (epoch + 1, 0) if batch >= self.trainer.num_training_batches else (epoch, batch)
