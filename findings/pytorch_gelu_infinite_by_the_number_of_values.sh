#!/usr/bin/env bash
# PyTorch 2.15.0: F.gelu of one and the same large number is finite or infinite, depending on how many numbers stand beside it.
#
# Version:  torch 2.15.0 (CPU)
# Expected: gelu(x) = x Phi(x) is x for large x, whatever the tensor's length, as silu, mish and gelu(approximate="tanh")
#           give it.
# Seen:     float32 beyond half of the type's maximum: right for a tensor of one value, infinite in a tensor of 64, whose
#           loop computes in another order; float64 is right in both. So a network's answer to a sample can depend on the
#           size of its batch without any layer that mixes samples.
# Fails (exit 1) if that changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.0
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn import functional as F

print("torch", torch.__version__)
x = 0.6 * torch.finfo(torch.float32).max
alone, beside = (float(F.gelu(torch.full((n,), x))[0]) for n in (1, 64))
others = [float(f(torch.full((64,), x))[0]) for f in (lambda v: F.gelu(v, approximate="tanh"), F.silu, F.mish)]
print(f"expected {x:.6g}; seen: {alone:.6g} alone, {beside:.6g} among 64; tanh form, silu and mish among 64: {others}")
right = [abs(value / x - 1) < 1e-6 for value in (alone, *others)]
sys.exit(0 if all(right) and beside == float("inf") else 1)
PYTHON
