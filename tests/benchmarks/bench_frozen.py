"""What frozen weights in fewer bits change: contact logits, scores and gradients of adapters against float32.

    python tests/benchmarks/bench_frozen.py [--pretrained tests/benchmarks/backbone] [--config CONFIG]

Logits and scores are those of the test chains of the config's data, with adapters that change something (their second
matrices drawn with a deviation of 0.02); gradients are of one batch of its training set. Step times are medians of
five, in processor seconds, over float32's. Needs bitsandbytes (``contactlm[quant]``) for 4 and 8 bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contactlm import ContactDataModule, ContactModule
from contactlm.alphabet import CLS, EOS
from contactlm.cli.arguments import resolve_arguments
from contactlm.cli.plan import PlanCLI
from contactlm.metrics import PrecisionAtL, ProteinMCC
from contactlm.structure.contacts import contact_labels

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"backbone_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
    "nf4, products in bfloat16": {"quantization": "nf4", "backbone_dtype": "bfloat16"},
}
STEPS = 5


def made(pretrained: str, how: dict[str, Any]) -> ContactModule:
    module = ContactModule(pretrained, **how)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02, generator=generator)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    return module.eval()


@torch.no_grad()
def logits_of(module: ContactModule, data: ContactDataModule) -> list[Tensor]:
    store = data.chains["test"]
    cls, eos = torch.tensor([CLS]), torch.tensor([EOS])
    tokens = (torch.from_numpy(store.tokens_of(i).astype("int64")) for i in range(len(store)))
    return [module.contact_logits(torch.cat([cls, own, eos])[None])[0] for own in tokens]


def scores_of(logits: list[Tensor], data: ContactDataModule) -> tuple[float, float]:
    mcc, precision = ProteinMCC(min_separation=6), PrecisionAtL(min_separation=24)
    for number, own in enumerate(logits):
        labels = contact_labels(torch.tensor(data.chains["test"].cb_of(number))[None])[0]
        mcc.update(own.sigmoid(), labels)
        precision.update(own.sigmoid(), labels)
    return float(mcc.compute()), float(precision.compute())


def gradients(module: ContactModule, batch: dict[str, Any]) -> tuple[Tensor, float]:
    """Of all adapters, and the median of a step's processor seconds."""
    seconds = []
    for _ in range(STEPS + 1):
        module.zero_grad()
        torch.manual_seed(0)
        began = time.process_time()
        module.training_step(dict(batch), 0).backward()
        seconds.append(time.process_time() - began)
    learnt = [p.grad.flatten() for n, p in module.named_parameters() if p.grad is not None and "lora_" in n]
    return torch.cat(learnt), statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", default=str(Path(__file__).parent / "backbone"))
    parser.add_argument("--config", default=str(Path(__file__).parent / "synthetic_pretrain.yaml"), help="whose data")
    args = parser.parse_args()
    data = PlanCLI(resolve_arguments(["fit", "--config", args.config])).datamodule
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    batch = next(iter(data.train_dataloader()))
    print("| held in | MB | logits: largest difference, rms, spread | mcc_sep6 | long P@L | cosine | relative | time |")
    exact: tuple[Tensor, Tensor, float] | None = None
    for name, how in WAYS.items():
        module = made(args.pretrained, how)
        maps = logits_of(module, data)
        mcc, precision = scores_of(maps, data)
        learnt, seconds = gradients(module, batch)
        flat = torch.cat([own.flatten() for own in maps])
        exact = exact or (flat, learnt, seconds)
        size = sum(weight.nbytes for weight in [*module.parameters(), *module.buffers()]) / 1e6
        far = (flat - exact[0]).abs()
        cosine = torch.cosine_similarity(learnt, exact[1], dim=0)
        relative = (learnt - exact[1]).norm() / exact[1].norm()
        told = f"{far.max():.2f}, {far.square().mean().sqrt():.3f}, {exact[0].std():.1f} | {mcc:.3f} | {precision:.3f}"
        ratio = seconds / exact[2]
        print(f"| {name} | {size:.2f} | {told} | {cosine:.4f} | {relative:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
