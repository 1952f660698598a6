from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule, predict_contacts
from contactlm.alphabet import CLS, EOS, encode
from contactlm.model.lora import LoraOptions
from contactlm.model.losses import contact_loss
from contactlm.types import ContactLMError, ModelError
from tests.callbacks.test_callbacks import data_module, trainer
from tests.conftest import make_tiny_esm, random_sequence


def tokens_of(sequence: str) -> torch.Tensor:
    return torch.tensor([[CLS, *encode(sequence).tolist(), EOS]])


def stock_probabilities(directory: Path, sequence: str) -> torch.Tensor:
    from transformers import EsmModel

    model = EsmModel.from_pretrained(directory, attn_implementation="eager", add_pooling_layer=False).eval()
    tokens = tokens_of(sequence)
    with torch.no_grad():
        return model.predict_contacts(tokens, torch.ones_like(tokens))[0]


def test_logits_are_those_of_transformers(tiny_esm: Path) -> None:
    sequence = random_sequence(0, 50)
    logits = ContactModule(str(tiny_esm)).contact_logits(tokens_of(sequence))[0]
    stock = stock_probabilities(tiny_esm, sequence)
    torch.testing.assert_close(torch.sigmoid(logits), stock, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, torch.logit(stock.double()).float(), atol=1e-4, rtol=1e-4)


def test_maps_are_the_same_whether_training_or_not(tiny_esm: Path) -> None:
    sequence = random_sequence(1, 40)
    module = ContactModule(str(tiny_esm))
    assert module.training
    predicted = module.predict_map(sequence)
    assert module.training
    np.testing.assert_allclose(predicted.probability, stock_probabilities(tiny_esm, sequence), atol=1e-6)
    assert predicted.probability.dtype == np.float32


def trainable(module: ContactModule) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_what_is_trained_is_what_was_asked_for(tiny_esm: Path) -> None:
    lora = trainable(ContactModule(str(tiny_esm)))
    kinds = {name.split(".self.")[1].split(".lora")[0] for name in lora if "lora" in name}
    assert kinds == {"query", "key"}
    assert sum("contact_head" in name for name in lora) == 2 and all("lora" in n or "contact_head" in n for n in lora)
    assert not any("contact_head" in name for name in trainable(ContactModule(str(tiny_esm), train_head=False)))
    frozen = trainable(ContactModule(str(tiny_esm), lora=None, freeze_backbone=True))
    assert len(frozen) == 2
    full = trainable(ContactModule(str(tiny_esm), lora=None))
    assert any("embeddings" in name for name in full) and not any("lora" in name for name in full)


def test_every_trainable_weight_gets_a_gradient(tiny_esm: Path) -> None:
    for options in ({}, {"lora": None}, {"lora": None, "freeze_backbone": True}):
        module = ContactModule(str(tiny_esm), **options)  # type: ignore[arg-type]
        logits = module.contact_logits(tokens_of(random_sequence(0, 30)))
        labels = torch.randint(0, 2, logits.shape, dtype=torch.int8)
        module.loss(logits, labels).backward()
        assert trainable(module) == {name for name, p in module.named_parameters() if p.grad is not None}


def test_nothing_to_train_is_an_error(tmp_path: Path, tiny_esm: Path, pdb_folders) -> None:
    module = ContactModule(str(tiny_esm), lora=None, freeze_backbone=True, train_head=False)
    with pytest.raises(ModelError, match="nothing to train"):
        trainer(tmp_path).fit(module, data_module(pdb_folders))


def test_loss_is_the_mean_over_proteins_of_the_mean_over_known_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, 12, generator=generator)
    logits = logits + logits.mT
    labels = torch.randint(-1, 2, (3, 12, 12), generator=generator, dtype=torch.int8)
    labels = torch.triu(labels, 1) + torch.triu(labels, 1).mT
    labels[:, range(12), range(12)] = -1
    for separation in (1, 6):
        per_protein = []
        for own, truth in zip(logits.double(), labels, strict=True):
            terms = [
                torch.log1p(torch.exp(own[i, j])) - own[i, j] * (truth[i, j] == 1)
                for i in range(12)
                for j in range(i + separation, 12)
                if truth[i, j] >= 0
            ]
            per_protein.append(torch.stack(terms).mean())
        expected = torch.stack(per_protein).mean().float()
        torch.testing.assert_close(contact_loss(logits, labels, separation), expected)


def test_a_protein_of_which_nothing_is_known_contributes_nothing() -> None:
    logits = torch.randn(2, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 8, 8, dtype=torch.int8)
    labels[1] = -1
    torch.testing.assert_close(contact_loss(logits, labels), contact_loss(logits[:1], labels[:1]))
    loss = contact_loss(logits, torch.full_like(labels, -1))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"lora": LoraOptions(r=2, alpha=4)}])
def test_checkpoint_round_trip(tmp_path: Path, tiny_esm: Path, pdb_folders, options: dict[str, object]) -> None:
    module = ContactModule(str(tiny_esm), **options)  # type: ignore[arg-type]
    runner = trainer(tmp_path, max_steps=3)
    runner.fit(module, data_module(pdb_folders))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == trainable(module)  # nothing but what was trained
    again = ContactModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    tokens = tokens_of(random_sequence(3, 45))
    with torch.no_grad():
        expected = module.eval().contact_logits(tokens)
        assert torch.equal(again.eval().contact_logits(tokens), expected)
    start = ContactModule(str(tiny_esm)).eval()
    assert not torch.allclose(start.contact_logits(tokens), expected)


def test_a_random_backbone_is_saved_whole(tmp_path: Path, pdb_folders) -> None:
    architecture = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    module = ContactModule(None, architecture, lora=None)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(module, data_module(pdb_folders))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = ContactModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    for name, weight in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_checkpoint_does_not_go_onto_another_backbone(tmp_path: Path, tiny_esm: Path, pdb_folders) -> None:
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    other = make_tiny_esm(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"trained on the backbone .*tiny.*other"):
        trainer(tmp_path).test(ContactModule(str(other)), data_module(pdb_folders), ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match="do not fit this model"):
        ContactModule.load_from_checkpoint(tmp_path / "a.ckpt", lora={"r": 3}, map_location="cpu")


def test_a_crop_longer_than_the_window_is_refused(tmp_path: Path, tiny_esm: Path, pdb_folders) -> None:
    with pytest.raises(ModelError, match="crop_length is 30, longer than the window of 20"):
        trainer(tmp_path).fit(ContactModule(str(tiny_esm), window=20), data_module(pdb_folders))


def test_a_hub_name_without_network_says_how_to_give_a_directory() -> None:
    with pytest.raises(ContactLMError, match=r"HF_HUB_OFFLINE forbids the download.*give DIR"):
        ContactModule("someone/esm2-nowhere")


def test_predict_contacts_takes_modules_checkpoints_and_directories(tmp_path: Path, tiny_esm: Path) -> None:
    sequences = [random_sequence(5, 20), random_sequence(6, 70)]
    zero_shot = predict_contacts(sequences, model=tiny_esm, window=32)
    assert [len(one) for one in zero_shot] == [20, 70]
    single = predict_contacts(sequences[0], model=ContactModule(str(tiny_esm)))
    np.testing.assert_allclose(single.probability, zero_shot[0].probability, atol=1e-6)
    with pytest.raises(ValueError, match="position 2"):
        predict_contacts("M*K", model=tiny_esm)
