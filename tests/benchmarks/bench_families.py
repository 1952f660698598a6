"""Time and memory of contact logits with every family: streamed, against the stock model's stored maps and its trunk.

    python tests/benchmarks/bench_families.py --out DIR [--threads 2] [--repeats 5] [--families NAME ...] [--layers N]

Published architectures with random weights, float32, LoRA (r = 8) on queries and keys and a trainable contact head:
  stock     the stock class with eager attention, its maps symmetrised, corrected and weighed, its autograd
  streamed  contactlm's ContactBackbone
  trunk     the stock class with SDPA and no contacts; the loss is the sum of the last hidden state
  sparse    streamed, the contact head reading every tenth map
``--layers`` cuts the models, for small computers: every layer costs the same. Every case is timed in a process of its
own, its variants turn by turn; medians are compared. Memory is the peak resident set over the loaded model, every
variant in its own process. Writes families.md and families.csv to DIR.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from contactlm.model.backbone import ContactBackbone, load_esm
from contactlm.model.families.family import family_of
from contactlm.model.lora import LoraOptions, add_lora, contact_regression

sys.path.insert(0, str(Path(__file__).parent))
from bench_contact_attention import Run, once, peak, reset_peak

ESM = {"num_hidden_layers": 33, "hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 5120}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ESM2 8M": {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280},
    "ESM-1b 650M": {**ESM, "position_embedding_type": "absolute"},
    "SaProt 650M": {**ESM, "vocab_size": 446, "mask_token_id": 4},
    "ESM C 300M": {
        "model_type": "esmc",
        "num_hidden_layers": 30,
        "hidden_size": 960,
        "num_attention_heads": 15,
        "intermediate_size": 2560,
    },
    "ProtBert 420M": {
        "model_type": "bert",
        "num_hidden_layers": 30,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 1100,
    },
}
VARIANTS = ("stock", "streamed", "trunk", "sparse")
CASES = {"forward 1x1020": (1, 1020, False), "forward+backward 1x1020": (1, 1020, True)}


def build(name: str, variant: str, layers: int | None) -> Run:
    """Return the family's tokens -> a tensor to sum up."""
    architecture = ARCHITECTURES[name] | ({} if layers is None else {"num_hidden_layers": layers})
    esm = load_esm(None, architecture, seed=0)
    with torch.no_grad():
        weight = contact_regression(esm).weight
        weight.normal_(generator=torch.Generator().manual_seed(0))
        if variant == "sparse":
            weight[:, torch.arange(weight.shape[1]) % 10 != 0] = 0
    add_lora(esm, LoraOptions())
    if variant in ("streamed", "sparse"):
        if variant == "sparse":
            contact_regression(esm).requires_grad_(False)
        backbone = ContactBackbone(esm)
        return Run(backbone, backbone)
    esm.set_attn_implementation("eager" if variant == "stock" else "sdpa")
    if variant == "trunk":
        return Run(esm, lambda tokens: esm(tokens).last_hidden_state)
    return Run(esm, lambda tokens: stock_contacts(esm, tokens))


def share_weights(first: torch.nn.Module, other: torch.nn.Module) -> None:
    """Let a variant have the frozen weights of the first one, which are the same numbers: all fit into memory."""
    frozen = {name.removeprefix("esm."): p for name, p in first.named_parameters() if not p.requires_grad}
    for name, parameter in other.named_parameters():
        same = frozen.get(name.removeprefix("esm."))
        if same is not None and not parameter.requires_grad and torch.equal(parameter, same):
            parameter.data = same.data


def stock_contacts(esm: Any, tokens: torch.Tensor) -> torch.Tensor:
    """As transformers' ``predict_contacts`` computes them, for classes that have no such method."""
    maps = torch.cat(esm(tokens, output_attentions=True).attentions, 1)[..., 1:-1, 1:-1]
    maps = maps + maps.mT
    product = maps.sum(-1, keepdim=True) * maps.sum(-2, keepdim=True)
    product.div_(maps.sum((-1, -2), keepdim=True))
    return contact_regression(esm)((maps - product).permute(0, 2, 3, 1)).squeeze(3)


def batch(name: str, samples: int, residues: int) -> torch.Tensor:
    tokens = torch.randint(4, 24, (samples, residues + 2), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 0, 2
    kind = {"model_type": "esm", "position_embedding_type": "rotary", **ARCHITECTURES[name]}
    return family_of(kind).tokens.own(tokens)


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Seconds of every variant, or megabytes of one."""
    name, variants, layers = request["name"], request["variants"], request["layers"]
    samples, residues, backward = CASES[request["case"]]
    runs: dict[str, Run] = {}
    for variant in variants:
        runs[variant] = build(name, variant, layers)
        share_weights(runs[variants[0]].model, runs[variant].model)
    tokens = batch(name, samples, residues)
    for run in runs.values():
        once(run, batch(name, 1, 16), backward)
    if request["what"] == "memory":
        loaded = reset_peak()
        once(runs[variants[0]], tokens, backward)
        return {variants[0]: max(0.0, peak() - loaded) / 1e6}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(request["repeats"]):
        for variant, run in runs.items():
            seconds[variant].append(once(run, tokens, backward))
    return {variant: statistics.median(values) for variant, values in seconds.items()}


def in_own_process(request: dict[str, Any], threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{request}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, case: str, given: argparse.Namespace) -> dict[str, Any]:
    variants = [v for v in VARIANTS if v != "sparse" or "backward" not in case]
    shared = {"name": name, "case": case, "layers": given.layers, "repeats": given.repeats}
    seconds = in_own_process({**shared, "what": "time", "variants": variants}, given.threads)
    row: dict[str, Any] = {"family": name, "case": case}
    row |= {f"{variant} s": round(value, 3) for variant, value in seconds.items()}
    for variant in ("stock", "streamed"):
        memory = in_own_process({**shared, "what": "memory", "variants": [variant]}, given.threads)
        row[f"{variant} MB"] = round(memory[variant])
    row["faster"] = round(seconds["stock"] / seconds["streamed"], 1)
    row["less memory"] = round(row["stock MB"] / max(row["streamed MB"], 1), 1)
    row["of the trunk"] = round(seconds["streamed"] / seconds["trunk"], 2)
    row["sparse, of the trunk"] = round(seconds["sparse"] / seconds["trunk"], 2) if "sparse" in seconds else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--families", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.worker:
        print(json.dumps(measure(json.loads(given.worker))))
        return
    rows = [compare(name, case, given) for name in given.families for case in CASES]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "families.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = [columns, ["---"] * len(columns), *([str(row.get(column, "")) for column in columns] for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (given.out / "families.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
