"""Run a model on an accelerator that is not there; tell where tensors were and what would have waited for it.

    python -m tests.model.on_fake_device fused training evaluation prediction windows retrieval scores

prints a JSON object: of every stage the devices of what it returns ("results") and of all on the way ("devices"), and
the operations that wait ("waits"). "windows" are the passes over a long chain, put together on the processor, and
their results brought back there; "retrieval" is a step of training with evidence, which lies on the device; "scores"
are those of an evaluation's batch, maps that are put together there and labels that are made there, and all counts.
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
from contactlm.callbacks import ContactEvaluation
from contactlm.callbacks.dashboard import PrecisionRecall
from contactlm.maps.copies import Fetched
from contactlm.maps.full_map import FullMap, _Blend, _Chain, _run
from contactlm.maps.windows import WindowOptions, plan_passes
from contactlm.metrics import ranked
from contactlm.metrics.calibration import Calibration
from contactlm.model.decoder import RetrievalBackbone
from contactlm.model.evidence import Evidence
from contactlm.model.loading import load_esm
from contactlm.structure.contacts import contact_labels

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


class Numbers(list):
    """Some that are known, as a tensor tells them."""

    def tolist(self):
        return list(self)


def scored(module, cb, device):
    """Score two proteins, one of them in windows; returns their maps and what was counted."""
    B, L, _ = cb.shape
    blend = _Blend(L, plan_passes(L, WindowOptions(window=24)), torch.device(device))
    for piece in plan_passes(L, WindowOptions(window=24)):
        blend.add(piece, torch.empty(piece.residues, piece.residues, device=device), torch.sigmoid)
    whole, copied = (torch.empty(L, L, device=device) for _ in range(2))
    maps = [FullMap(probability, {}) for probability in (blend.probability, whole)]
    outputs = module._with_labels({"ids": ["a", "b"], "indices": Numbers(range(B)), "cb": cb}, maps)
    evaluation, curve = ContactEvaluation(), PrecisionRecall(device)
    evaluation._forget(module.device, 0.4, Calibration("platt", (1.1,) * 4, (0.2,) * 4, 0.3, (1.0, 0.0)))
    outputs |= {"copied": [copied, copied], "nearest": [(0.3, 1.0)] * 2}
    evaluation.on_validation_batch_end(None, module, outputs, None, 0)
    curve.add(outputs)
    metrics = (evaluation._scores, evaluation._hits.copied, *evaluation._reliability)
    on_processor = ("key", "id_bytes", "noted")  # which nobody has to ask for
    counted = [getattr(each, name) for each in metrics for name in each._row_shapes if name not in on_processor]
    return [outputs["probability"], outputs["labels"], curve.called, counted]


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

        questions = []
        # the one that an evaluation asks
        ranked.check_probability = lambda *maps: questions.extend([len(maps)] if maps else [])

        def scores():
            return scored(module, batch["cb"], device)

        for stage in (training, evaluation, prediction, windows, retrieval, scores):
            if stage.__name__ not in stages:
                continue
            if stage is scores:  # what is compared with lies on the device from then on
                stage()
                questions.clear()
            with Watch() as watch, torch.set_grad_enabled(stage in (training, retrieval)):
                results = stage()
            report[stage.__name__] = {
                "results": sorted({x.device.type for x in tree_leaves(results)}),
                "devices": sorted(watch.devices),
                "waits": watch.waits,
            }
    return device, report | ({"questions": questions} if "scores" in stages else {})


if __name__ == "__main__":
    where, found = run(sys.argv[1], sys.argv[2:])
    json.dump({"device": where, **found}, sys.stdout)
