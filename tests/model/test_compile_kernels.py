"""The Triton kernels compile for every card from compute capability 8.0 to 9.0, without any card."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNELS = {"attend", "share", "row_sums", "query_gradient", "key_value_gradient"}
CASES = (
    "80:bfloat16:64",
    "90:bfloat16:64",
    "86:bfloat16:128",
    "89:float32:32",
    "86:bfloat16:128:16",
    "90:float16:16:5",
)
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}  # most that a block may have, bytes (CUDA's guide)


def compiled(*arguments):
    command = [sys.executable, "-m", "tests.model.compile_kernels", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_all_kernels_compile_without_spills_and_fit_the_shared_memory():
    made = compiled(*CASES)
    names = {case: KERNELS if case.count(":") == 2 else KERNELS - {"share"} | {"share_many"} for case in CASES}
    wanted = sorted((case, name) for case, own in names.items() for name in own)
    assert sorted((kernel["case"], kernel["kernel"]) for kernel in made) == wanted
    for kernel in made:
        assert kernel["stack"] == 0, kernel
        assert 0 < kernel["shared"] <= SHARED[int(kernel["case"].split(":")[0])], kernel
