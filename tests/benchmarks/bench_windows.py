"""Passes of a full-length map, and what each costs beside a bare pass of the model.

    python tests/benchmarks/bench_windows.py --length 3000 --window 1022

Random weights in the shape of ESM2-8M. After each pass of the map, a bare pass of one window (tokens in, logits out) is
run and timed, so that both see the same machine however busy it is. The ratio is the map's time over the time of as
many bare passes: planning, batching, positions, blending and the last normalisation are the rest.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.nn.functional import pad

from contactlm.alphabet import CLS, EOS
from contactlm.maps.windows import WindowOptions
from contactlm.model.backbone import ContactBackbone, load_esm
from tests.maps.made import full_map

ESM2_8M = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}


class Beside:
    """The model, and a bare pass after each of its passes; both in seconds."""

    def __init__(self, model: ContactBackbone, bare: Tensor) -> None:
        self.model = model
        self.bare = bare
        self.in_model = self.in_bare = 0.0

    def __call__(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        times = [self._now()]
        logits = self.model(tokens, attention_mask, positions)
        times.append(self._now())
        self.model(self.bare[: len(tokens)])
        times.append(self._now())
        self.in_model += times[1] - times[0]
        self.in_bare += times[2] - times[1]
        return logits

    def _now(self) -> float:
        if self.bare.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=3000)
    parser.add_argument("--window", type=int, default=1022)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="windows in a batch, of the map and of the bare pass")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = ContactBackbone(load_esm(None, ESM2_8M)).eval().to(args.device)
    chain = torch.randint(4, 24, (args.length,), generator=torch.Generator().manual_seed(0))
    bare = pad(pad(chain[: args.window], (1, 0), value=CLS), (0, 1), value=EOS).repeat(args.batch, 1)
    beside = Beside(model, bare.to(args.device))
    model(beside.bare)  # the first call builds caches
    options = WindowOptions(window=args.window, max_cost=args.batch * (args.window + 2) ** 2)
    start = time.perf_counter()
    passes = full_map(beside, chain, options, args.device).how["passes"]
    whole = time.perf_counter() - start - beside.in_bare

    count = sum(passes.values())
    print(f"{args.device}, {args.threads} threads, L={args.length}, window={args.window}, batch={args.batch}")
    print(f"passes             {count} {passes}")
    print(f"bare pass          {1000 * beside.in_bare / count:.1f} ms")
    print(f"map, each pass     {1000 * whole / count:.1f} ms, ratio {whole / beside.in_bare:.3f}")
    print(f"map / model alone  {whole / beside.in_model:.3f}")


if __name__ == "__main__":
    main()
