"""RetrievalModule: contacts from sequence and from known structures of relatives."""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from contactlm.alphabet import decode
from contactlm.data.cache import default_cache_dir
from contactlm.data.store import ChainStore, chain_sequences
from contactlm.maps.full_map import FullMap, Shown, WindowOptions, full_maps
from contactlm.model.backbone import AttentionName, backbone_checksum
from contactlm.model.decoder import RetrievalBackbone
from contactlm.model.evidence import Evidence
from contactlm.model.frozen_weights import is_narrow, load_frozen
from contactlm.model.lora import contact_regression
from contactlm.model.pair_head import PairOptions
from contactlm.modules.base import Evaluated
from contactlm.modules.checkpoint import CHECKPOINT_KEY
from contactlm.modules.contact import prepare_head
from contactlm.modules.language_model import ESM2
from contactlm.modules.optimization import FRESH_HEAD_LR_FACTOR
from contactlm.modules.pair import PairedModule, pair_options
from contactlm.retrieval.copy_homolog import copy_contacts
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.embeddings import FrozenEncoder, SegmentStates
from contactlm.retrieval.evidence import ChainEvidence, CropEvidence, EvidenceSource, collate_evidence
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.search import StructureSearch, check_phmmer
from contactlm.types import ContactDefinition, ModelError

log = logging.getLogger(__name__)

HELD_OUT = "held_out"  # where a checkpoint says which proteins must not be evidence
HELD_OUT_ROLES = ("dev", "test")
_PREPARED_AT_A_TIME = 64  # chains


class EvaluatedWithHits(Evaluated):
    """What validation and test steps of :class:`RetrievalModule` return, one entry a protein."""

    copied: list[Tensor]  # float32 (L, L) in [0, 1]: the contacts of its hits, carried over by the alignments
    nearest: list[tuple[float, float]]  # pair identity and coverage of its best hit; NaN: it has none


class RetrievalModule(PairedModule):
    """Predicts contacts from sequence and from the structures of similar proteins in a database.

    Helices and strands of a query's hits become tokens: mean residue state in the frozen backbone, kind, position on
    the query and the hit's similarity. A small decoder lets the query's residues read them; the contact head reads the
    backbone's attention maps and the decoder's. With ``template_bias`` pairs aligned to what touches in a hit get a
    learned bias. Both start at 0: an untrained module predicts what its backbone's contact head does.

    While training and in evaluation no hit is of the query's own entry, above ``max_identity``, or a dev or test
    protein (those of the data module, and those that the checkpoint was trained without). For predictions, and right
    after construction, every chain of the database may be a hit.

    Args:
        pretrained: Name on the Hugging Face hub, or a local directory in its format. None: a randomly initialised
            backbone from ``architecture``.
        architecture: Configuration of a randomly initialised backbone; ``model_type`` defaults to ``esm``. Requires
            ``pretrained=None``.
        index: Folder of a structure database that ``contactlm index build`` wrote. It is no hyperparameter: a trained
            model can use another one.
        hits: Maximum hits per query.
        decoder_layers: Layers of the decoder.
        decoder_width: Width of the decoder, a multiple of 16.
        template_bias: Add the template bias to pairs.
        decoder_lr_factor: Factor on the learning rate of decoder and template bias, which start at zero.
        max_identity: Skip hits with a larger share of identical residues among the aligned ones, except in predictions.
        cache_dir: Folder for searches and segments' states; None: ``$CONTACTLM_CACHE`` or ``~/.cache/contactlm``.
        train_head: Train the contact head.
        attention: As of :class:`contactlm.ContactModule`.
        init_seed: Seed of a randomly initialised backbone, and of the decoder.
        pair: A pair head as of :class:`contactlm.ContactModule`. It reads the hits' distances as well, and begins from
            the copy of their contacts, which it learns to trust by identity and to correct.
        distance_bins: As of :class:`contactlm.ContactModule`.
        options: As of :class:`contactlm.ContactModule`.

    Raises:
        MissingExtraError: The library that searches comes with ``contactlm[retrieval]``, which is not installed.
        ModelError: Options that do not fit together, no index, or a backbone that cannot be loaded.
        DataError: A database that is missing, damaged, empty or of another format; the message gives the command that
            rebuilds it.
    """

    head = "contact head with a retrieval decoder"
    fresh_head_lr_factor = FRESH_HEAD_LR_FACTOR
    backbone: RetrievalBackbone

    def __init__(
        self,
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        index: str | None = None,
        hits: int = 4,
        decoder_layers: int = 2,
        decoder_width: int = 128,
        template_bias: bool = True,
        decoder_lr_factor: float = 10.0,
        max_identity: float = 0.95,
        cache_dir: str | None = None,
        train_head: bool = True,
        attention: AttentionName = "auto",
        init_seed: int = 0,
        pair: PairOptions | None = None,
        distance_bins: bool = False,
        **options: Any,
    ) -> None:
        check_phmmer()
        pair = pair_options(pair)
        if index is None:
            raise ModelError(
                "index is not given: name a structure database with --model.index (in Python: index=); "
                "make one with: contactlm index build --structures FOLDER --out FOLDER"
            )
        database = StructureDatabase.open(index)
        decoder = {
            "layers": decoder_layers,
            "width": decoder_width,
            "template_bias": template_bias,
            "seed": init_seed,
            "pair": pair,
        }
        network = partial(_network, attention, train_head, pretrained is None and options.get("head") is None, decoder)
        super().__init__(network, pretrained, architecture, init_seed=init_seed, distance_bins=distance_bins, **options)
        own: dict[str, Any] = {"train_head": train_head, "hits": hits, "decoder_layers": decoder_layers}
        own |= {"decoder_width": decoder_width, "template_bias": template_bias}
        own |= {"pair": None if pair is None else asdict(pair)}
        self.save_hyperparameters(own)
        if not options.get("head"):
            self.take_published()
        self.hits, self.decoder_lr_factor, self.max_identity = hits, decoder_lr_factor, max_identity
        self._held_out: dict[str, set[str]] = {"ids": set(), "sequences": set()}
        self._evaluated = False  # whether dev and test proteins must not be evidence
        self._exclusion: Exclusion | None = None
        self._in_loader: CropEvidence | None = None
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.evidence = self._source(database)
        self.exclusion  # noqa: B018 - complains about a max_identity out of range

    def _source(self, database: StructureDatabase) -> EvidenceSource:
        pretrained, architecture, seed, *held = (
            self.hparams[name] for name in ("pretrained", "architecture", "init_seed", "backbone_dtype", "quantization")
        )
        checksum = self.backbone_checksum or backbone_checksum(self.backbone.esm)
        if is_narrow(*held):  # whose states are others
            checksum = hashlib.sha256(f"{checksum} {held}".encode()).hexdigest()
        encoder = FrozenEncoder(partial(load_frozen, pretrained, architecture, seed, *held), checksum)
        search = StructureSearch(database, self.hits, cache_dir=self._cache_dir)
        return EvidenceSource(search, SegmentStates(database, encoder, self._cache_dir))

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight (1, C) and bias (1,) of the contact head."""
        return list(contact_regression(self.backbone.esm).parameters())

    def lr_factors(self) -> list[tuple[list[nn.Parameter], float]]:
        """The contact head's, and the decoder's and template bias's."""
        parts = (self.backbone.decoder, self.backbone.template, self.backbone.copy)
        own = [parameter for part in parts if part is not None for parameter in part.parameters()]
        return [*super().lr_factors(), (own, self.decoder_lr_factor)]

    @property
    def exclusion(self) -> Exclusion:
        """What must not be a hit now."""
        if self._exclusion is None:
            evaluated = Exclusion.of_proteins(self._held_out["ids"], self._held_out["sequences"], self.max_identity)
            self._exclusion = evaluated if self._evaluated else Exclusion.nothing()
        return self._exclusion

    @property
    def run_facts(self) -> dict[str, dict[str, Any]]:
        """For ``run.json``: the database, which runs that are compared must share, and what is read of it."""
        database = self.evidence.database
        chains = {"chains": len(database), "residues": len(database.store.tokens), "checksum": database.fingerprint}
        names = ("hits", "decoder_layers", "decoder_width", "template_bias")
        held, reads = super().run_facts, {name: self.hparams[name] for name in names}
        return {
            "equal": {**held["equal"], "structures": chains, "max_identity": self.max_identity},
            "reads": held["reads"] | reads,
        }

    def setup(self, stage: str) -> None:
        """Take note of the dev and test proteins, which must not be evidence unless for predictions."""
        super().setup(stage)
        if self.contact != ContactDefinition():
            raise ModelError(
                f"data.contact: {self.contact} given, but known structures are read as contacts of C-betas"
            )
        self._evaluated = stage != "predict"
        for role, store in self._stores().items():
            if role in HELD_OUT_ROLES:
                self._hold_out(store.ids, chain_sequences(store)[0])
        self._exclusion = None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if stage == "fit" and "train" in self._stores() and hasattr(data, "complete_batches"):
            self._in_loader = self._crops(self._stores()["train"])
            data.complete_batches(self._in_loader)

    def teardown(self, stage: str) -> None:
        """Free the frozen backbone."""
        super().teardown(stage)
        self.evidence.segment_states.encoder.release()
        if self._in_loader is not None:
            self._in_loader = None
            self.trainer.datamodule.complete_batches(None)  # type: ignore[attr-defined]  # it may serve another module

    def hold_out(self, ids: Sequence[str], sequences: Sequence[str]) -> None:
        """From now on, use neither these proteins' own structures as evidence nor those of the run's dev and test."""
        self._evaluated = True
        self._hold_out(ids, sequences)

    def _hold_out(self, ids: Sequence[str], sequences: Sequence[str]) -> None:
        self._held_out["ids"].update(ids)
        self._held_out["sequences"].update(sequences)
        self._exclusion = None

    def _stores(self) -> dict[str, ChainStore]:
        return getattr(self.trainer.datamodule, "chains", {})  # type: ignore[attr-defined]  # a connector sets it

    def on_fit_start(self) -> None:
        """Find the evidence of all training and dev chains, each process its share, so that its cache has all."""
        super().on_fit_start()
        if "train" not in self._stores():
            raise ModelError("RetrievalModule searches with whole chains: train it with a ContactDataModule")
        part, parts = own_share(self.trainer, self._cache_dir)
        self.evidence.segment_states.encoder.device = self.device
        hit = torch.zeros(len(self.evidence.database), dtype=torch.int64, device=self.device)
        for role in ("train", "dev"):
            hit[self._search(role, part, parts)] = 1
        hit = self.trainer.strategy.reduce(hit, reduce_op="sum")  # several processes may have hit the same chain
        for index in hit.nonzero().flatten().tolist()[part::parts]:
            self.evidence.segment_states.of(index)
        self.evidence.segment_states.encoder.release()
        self.trainer.strategy.barrier()
        if self._in_loader is not None:
            self._in_loader.exclusion = self.exclusion  # the loader's processes start later

    def _search(self, role: str, part: int, parts: int) -> list[int]:
        """Search with this process's share of a role's chains, equal ones in one share; returns what they hit."""
        store = self._stores().get(role)
        if store is None:
            return []
        own = [i for i in range(len(store)) if zlib.crc32(store.tokens_of(i).tobytes()) % parts == part]
        with_hits, found = 0, set[int]()  # all alignments would be much to keep
        for start in range(0, len(own), _PREPARED_AT_A_TIME):
            some = own[start : start + _PREPARED_AT_A_TIME]
            ids, sequences = [store.ids[i] for i in some], [store.sequence_of(i) for i in some]
            for hits in self.evidence.hits(ids, sequences, self.exclusion):
                with_hits += bool(hits)
                found.update(hit.index for hit in hits)
        log.info("%d of %d %s chains have hits in %s", with_hits, len(own), role, self.evidence.database.path)
        return sorted(found)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add to a batch of training crops what is known of the residues they show, unless its maker has done so."""
        if self.trainer.training and isinstance(batch, dict) and "evidence" not in batch:
            return {**batch, "evidence": self.crop_evidence(batch)}
        return batch

    def crop_evidence(self, batch: dict[str, Any]) -> Evidence:
        """What is known of the residues of a batch of training crops, on the CPU."""
        self.evidence.segment_states.encoder.device = self.device
        return self._crops(self._stores()["train"]).of(batch, self.exclusion)

    def _crops(self, store: ChainStore) -> CropEvidence:
        return CropEvidence(self.evidence, store, self.hits, self.backbone.esm.config.hidden_size)

    def _of_chains(self, ids: Sequence[str], sequences: Sequence[str]) -> list[ChainEvidence]:
        self.evidence.segment_states.encoder.device = self.device
        return self.evidence.of(ids, sequences, self.exclusion)

    def batch_scores(self, batch: dict[str, Any]) -> Any:
        """Contact logits of a batch of crops, with what is known of them (see :meth:`crop_evidence`)."""
        parts = (batch["attention_mask"], batch.get("positions"), batch.get("evidence"))
        if self.pair is not None:
            return self.backbone(self.own_tokens(batch["tokens"]), *parts, wanted="bins")
        return self.contact_logits(self.own_tokens(batch["tokens"]), *parts)

    def contact_logits(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        evidence: Evidence | None = None,
    ) -> Tensor:
        """As of :class:`contactlm.MapModule`; ``evidence`` is what is known of the residues shown."""
        return self.backbone(tokens, attention_mask, positions, evidence)

    def chain_maps(
        self, ids: Sequence[str], chains: Sequence[Tensor], windows: WindowOptions, positions: Sequence[Any] | None
    ) -> Iterator[FullMap]:
        """Full-length maps of whole chains, whose ``how`` names the hits that were used."""
        evidence = self._of_chains(ids, [decode(tokens.cpu().numpy()) for tokens in chains])
        logits_fn = partial(self._pass_logits, evidence)
        maps = full_maps(logits_fn, chains, self.sized(windows), self.device, positions, tell_shown=True)
        for full, own in zip(maps, evidence, strict=True):
            full.how["hits"] = list(own.ids)
            yield full

    def _evaluate(self, batch: dict[str, Any]) -> EvaluatedWithHits:
        """Full-length maps with their labels, and what copying the hits' contacts predicts."""
        tokens = batch["tokens"].cpu().numpy()
        sequences = [decode(row[1 : length + 1]) for row, length in zip(tokens, batch["lengths"].tolist(), strict=True)]
        evaluated = super()._evaluate(batch)
        copied, nearest = [], []
        for row, own in enumerate(self._of_chains(batch["ids"], sequences)):
            chain_of = None if evaluated["chain_of"] is None else evaluated["chain_of"][row].cpu().numpy()
            copied.append(torch.from_numpy(copy_contacts(own.cb, own.similarity[:, 0].tolist(), chain_of=chain_of)))
            nearest.append(tuple(own.similarity[0].tolist()) if own.ids else (math.nan, math.nan))
        return EvaluatedWithHits(**evaluated, copied=copied, nearest=nearest)

    def _pass_logits(
        self,
        evidence: Sequence[ChainEvidence],
        tokens: Tensor,
        attention_mask: Tensor,
        positions: Tensor | None,
        shown: Sequence[Shown],
    ) -> Tensor:
        cut = [evidence[chain].shown(residues.numpy()) for chain, residues in shown]
        known = collate_evidence(cut, self.hits, self.backbone.esm.config.hidden_size, tokens.shape[1] - 2)
        own = self.own_tokens(tokens)
        if self.pair is None:
            return self.contact_logits(own, attention_mask, positions, known)
        made: Tensor = self.backbone(own, attention_mask, positions, known, wanted=self.of_a_pass)
        return made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep, next to what was trained, which proteins must not be evidence when the model is scored."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY][HELD_OUT] = {name: sorted(values) for name, values in self._held_out.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong on this model; take over its dev and test proteins."""
        super().on_load_checkpoint(checkpoint)
        self._hold_out(**checkpoint[CHECKPOINT_KEY].get(HELD_OUT, {"ids": [], "sequences": []}))


def _network(
    attention: AttentionName, train_head: bool, fresh: bool, decoder: dict[str, Any], esm: Any
) -> RetrievalBackbone:
    prepare_head(esm, train_head, fresh)
    return RetrievalBackbone(esm, attention, **decoder)


def own_share(trainer: Trainer, folder: Path) -> tuple[int, int]:
    """The number of this process's part of the work, and of how many; a collective call.

    The parts are those of all processes where every node sees the same cache folder, else those of a node's.
    """
    if trainer.world_size == 1:
        return 0, 1
    mark = folder / trainer.strategy.broadcast(f".{uuid.uuid4().hex}.tmp")
    if trainer.is_global_zero:
        with suppress(OSError):  # then no process sees it
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    trainer.strategy.barrier()
    shared = trainer.strategy.reduce_boolean_decision(mark.exists(), all=True)
    if trainer.is_global_zero:
        mark.unlink(missing_ok=True)
    return (trainer.global_rank, trainer.world_size) if shared else (trainer.local_rank, trainer.num_devices)
