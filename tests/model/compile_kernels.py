"""Compile the Triton kernels for cards that are not there, with the tiles and arguments that they are launched with.

    TRITON_INTERPRET=0 python -m tests.model.compile_kernels 90:bfloat16:64 86:float16:128

takes compute capability, dtype, head width and, behind another colon, a number of read-outs, and prints one JSON object
a kernel: shared memory in bytes, registers and stack bytes of a thread. A kernel whose registers spill has a stack.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contactlm.model.fused import launch

POINTER = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
    torch.int32: "*i32",
}
ALIGNED = [["tt.divisibility", 16]]


def launches(dtype, width, K=None, B=2, H=20, T=1024):
    """All launches of one layer's forward and backward pass, on tensors without data."""
    recorded = []
    launch.start = lambda *call: recorded.append(call)
    with FakeTensorMode():
        empty = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device="cuda")  # noqa: E731
        q, k, v = (empty(B, T, H, width, dtype=dtype).transpose(1, 2) for _ in range(3))
        layout = empty(B, T, dtype=torch.bool), empty(B, T), empty(B, 2, dtype=torch.int32)
        given = launch.Given(q, k, v, empty(H) if K is None else empty(K, H), *layout)
        context, log_sums, inner = launch.attend(given)
        weighted, margins = launch.share(given, log_sums, False)
        outer = launch.Outer(context, weighted, margins, log_sums)
        _, dots = launch.row_sums(given, outer, context, inner)
        launch.query_gradient(given, outer, dots)
        launch.key_value_gradient(given, outer, dots, True)
    return recorded


def compiled(capability, kernel, arguments, constants, options):
    """Specialised as Triton does at a launch: aligned pointers, numbers that are multiples of 16."""
    signature, attributes = {}, {}
    for place, (name, argument) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        is_tensor = isinstance(argument, torch.Tensor)
        signature[name] = POINTER[argument.dtype] if is_tensor else "i32"
        if is_tensor or argument % 16 == 0:
            attributes[(place,)] = ALIGNED
    signature |= dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, values, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})


def usage(kernel):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", told).groups())
    return {"shared": kernel.metadata.shared, "registers": registers, "stack": stack}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    for case in parser.parse_args().cases:
        capability, dtype, width, *K = case.split(":")
        for kernel, _, arguments, constants, options in launches(getattr(torch, dtype), int(width), *map(int, K)):
            made = compiled(int(capability), kernel, arguments, constants, options)
            print(json.dumps({"case": case, "kernel": kernel.__name__, **usage(made)}), flush=True)


if __name__ == "__main__":
    main()
