"""Whether torch's own strided 1x1 convolution still kills the process: ``python tests/performance/crash_pointwise.py``.

Backward passes in processes of their own, for several channel counts and batches: torch.nn.Conv2d beside
`volrec.networks.layers.PointwiseConv2d`. When the first column says "whole" everywhere, the second class can go.
"""

from __future__ import annotations

import subprocess
import sys

TRIAL = """
import torch
from volrec.networks.layers import PointwiseConv2d
torch.set_num_threads(2)
kind, channels, batch = {kind!r}, {channels}, {batch}
layer = torch.nn.Conv2d(channels, 16, 1, 2, bias=False) if kind == "torch" else PointwiseConv2d(
    channels, 16, stride=2, bias=False)
layer = layer.to(memory_format=torch.channels_last)
x = torch.randn(batch, channels, 28, 24).to(memory_format=torch.channels_last).requires_grad_()
for _ in range(20):
    layer(x).sum().backward()
"""


def main() -> None:
    print(f"{'channels':>8} {'batch':>5} {'torch':>8} {'volrec':>8}")
    for channels in (4, 8, 12, 16, 32):
        for batch in (8, 9, 45):
            found = []
            for kind in ("torch", "volrec"):
                code = TRIAL.format(kind=kind, channels=channels, batch=batch)
                died = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
                found.append("whole" if died == 0 else f"dies {died}")
            print(f"{channels:>8} {batch:>5} {found[0]:>8} {found[1]:>8}")


if __name__ == "__main__":
    main()
