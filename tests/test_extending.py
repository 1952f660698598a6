"""What a newcomer adds: another kind of label, another crop scheme, another backbone."""

from __future__ import annotations

from typing import get_args

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from contactlm import ContactModule, MapModule
from contactlm.data.crop import SCHEMES, CropScheme
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.store import ChainStore
from contactlm.model.backbone import ContactBackbone
from tests.data.test_store import make_chain

TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


class DistanceBins(ContactModule):
    """Learns whether pairs are closer than 6, 8, 12 and 16 Å; the map is the probability of 8 Å."""

    LIMITS = (6.0, 8.0, 12.0, 16.0)

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.offsets = nn.Parameter(torch.linspace(-1.0, 2.0, len(self.LIMITS)))

    def training_labels(self, cb: Tensor) -> Tensor:
        distance = torch.cdist(cb, cb)
        within = torch.stack([(distance < limit).to(torch.int8) for limit in self.LIMITS], -1)
        return within.masked_fill(distance.isnan().unsqueeze(-1), -1)

    def pair_scores(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        return super().contact_logits(tokens, attention_mask, positions).unsqueeze(-1) + self.offsets

    def contact_logits(self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None):
        return self.pair_scores(tokens, attention_mask, positions)[..., self.LIMITS.index(8.0)]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        known = labels >= 0
        return F.binary_cross_entropy_with_logits(scores[known], labels[known].float())


class Nearness(nn.Module):
    """A backbone of another kind: near in sequence, near in space; ``scale`` is all it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        residue = torch.arange(tokens.shape[1] - 2)
        return (4.0 - self.scale * (residue[:, None] - residue).abs()).expand(len(tokens), -1, -1)


class NearnessModule(MapModule):
    head = "nearness"

    def __init__(self, **options) -> None:
        super().__init__(Nearness(), **options)


def batch_of(*lengths: int):
    store = ChainStore.from_chains([make_chain(f"c{i}", length, i) for i, length in enumerate(lengths)])
    return collate([CropDataset(store, 20)[n] for n in range(len(lengths))])


@pytest.mark.parametrize("made_by", [DistanceBins, NearnessModule])
def test_a_subclass_trains_and_predicts(made_by: type[MapModule]) -> None:
    module = NearnessModule() if made_by is NearnessModule else made_by(pretrained=None, architecture=TINY, lora=None)
    trainer = L.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    before = {name: value.clone() for name, value in module.named_parameters() if value.requires_grad}
    batches = [batch_of(30, 25), batch_of(22, 40), batch_of(20, 21)]
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list is a dataset
    own = "offsets" if made_by is DistanceBins else "backbone.scale"
    assert not torch.equal(before[own], dict(module.named_parameters())[own])
    probability = module.predict_map("MKTAYIAKQRQISFVKSHFSRQ").probability
    assert probability.shape == (22, 22) and ((probability >= 0) & (probability <= 1)).all()


def test_distance_bins_order_their_probabilities() -> None:
    module = DistanceBins(pretrained=None, architecture=TINY, lora=None).eval()
    batch = batch_of(30, 25)
    scores = module.pair_scores(batch["tokens"], batch["attention_mask"], None)
    assert (scores.diff(dim=-1) > 0).all()
    assert module.training_labels(batch["cb"]).shape == scores.shape


def test_every_crop_scheme_has_a_function() -> None:
    assert set(SCHEMES) | {"whole"} == set(get_args(CropScheme))


def test_the_shipped_backbone_is_what_a_subclass_replaces() -> None:
    assert isinstance(ContactModule(pretrained=None, architecture=TINY, lora=None).backbone, ContactBackbone)
