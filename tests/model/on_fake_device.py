"""Run a model on an accelerator that is not there; tell where tensors were and what would have waited for it.

    python -m tests.model.on_fake_device fused training evaluation prediction windows retrieval

prints a JSON object: of every stage the devices of what it returns ("results") and of all on the way ("devices"), and
the operations that wait ("waits"). "windows" are the passes over a long chain, put together on the processor, and
their results brought back there; "retrieval" is a step of training with evidence, which lies on the device.
``fused,backbone_dtype=bfloat16`` is a module with options.

Tensors have shapes, dtypes and devices, but no data (``FakeTensorMode``): whatever asks for a number or mixes devices
raises. PyTorch built without CUDA cannot run autograd on such "cuda" tensors; there, the accelerator is one that
PyTorch lets Python define (``PrivateUse1``). That is done for a whole process: hence a process of its own.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contactlm import ContactModule
from contactlm.maps.copies import Fetched
from contactlm.maps.full_map import _Chain, _run
from contactlm.maps.windows import WindowOptions, plan_passes
from contactlm.model.evidence import Evidence
from contactlm.model.loading import load_esm
from contactlm.model.retrieval_backbone import RetrievalBackbone
from contactlm.structure.labels import contact_labels

TINY = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique", "equal.")


def accelerator():
    if torch.cuda.is_available():
        return "cuda"
    torch.utils.backend_registration._setup_privateuseone_for_python_backend("imagined")
    torch.imagined.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return "imagined"


class Watch(TorchDispatchMode):
    """Notes where results were, and operations for which the processor waits: numbers asked for, copies to and fro."""

    def __init__(self):
        super().__init__()
        self.devices, self.waits = set(), []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        given, made = ({x.device.type for x in tree_leaves(y) if isinstance(x, torch.Tensor) and x.ndim}
                       for y in ((args, kwargs), results))  # fmt: skip
        self.devices |= made
        if any(name in str(operation) for name in WAITING) or len(given | made) > 1:
            self.waits.append(str(operation))
        return results


def moved(module, device):
    """The same module with tensors that are shapes alone."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, x in kept.items():
                if x is not None:
                    fake = torch.empty(x.shape, dtype=x.dtype, device=device)
                    kept[name] = torch.nn.Parameter(fake, x.requires_grad) if kept is part._parameters else fake
    return module


def run(way, stages):
    device = accelerator()
    attention, *options = way.split(",")
    module = ContactModule(None, TINY, attention=attention, **dict(option.split("=") for option in options))
    reader = RetrievalBackbone(load_esm(None, TINY, 0), attention)
    B, L = 2, 40
    report = {}
    with FakeTensorMode():
        moved(module, device)
        moved(reader, device)
        optimizer = torch.optim.SGD([x for x in module.parameters() if x.requires_grad], lr=0.1)
        batch = {
            "tokens": torch.empty(B, L + 2, dtype=torch.int64, device=device),
            "attention_mask": torch.empty(B, L + 2, dtype=torch.bool, device=device),
            "positions": torch.empty(B, L + 2, dtype=torch.int64, device=device),
            "cb": torch.empty(B, L, 3, device=device),
        }

        def training():
            loss = module.training_step(batch, 0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        def evaluation():
            logits = module.eval().contact_logits(batch["tokens"], batch["attention_mask"])
            return torch.sigmoid(logits), contact_labels(batch["cb"])

        def prediction():
            return module.contact_logits(batch["tokens"], batch["attention_mask"], batch["positions"]).sigmoid()

        def windows():
            chain = _Chain(torch.empty(100, dtype=torch.uint8), None, 0)
            passes = [(chain, piece) for piece in plan_passes(100, WindowOptions(window=40))]
            probability = _run(module._logits_of_pass, passes, device, tell_shown=False).sigmoid()
            return probability, Fetched(probability).wait()

        evidence = Evidence.none(B, L, TINY["hidden_size"], hits=4, segments=16, device=device)

        def retrieval():
            loss = reader(batch["tokens"], batch["attention_mask"], batch["positions"], evidence).square().mean()
            loss.backward()
            return loss, [x.grad for x in reader.parameters() if x.grad is not None]

        for stage in (training, evaluation, prediction, windows, retrieval):
            if stage.__name__ not in stages:
                continue
            with Watch() as watch, torch.set_grad_enabled(stage in (training, retrieval)):
                results = stage()
            report[stage.__name__] = {
                "results": sorted({x.device.type for x in tree_leaves(results)}),
                "devices": sorted(watch.devices),
                "waits": watch.waits,
            }
    return device, report


if __name__ == "__main__":
    where, found = run(sys.argv[1], sys.argv[2:])
    json.dump({"device": where, **found}, sys.stdout)
