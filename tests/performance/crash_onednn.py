"""Whether two of torch's convolutions still kill the process: ``python tests/performance/crash_onednn.py``.

Backward passes in processes of their own. Strided 1x1 convolutions for several channel counts and batches:
torch.nn.Conv2d beside `volrec.networks.layers.PointwiseConv2d`. Kernels of 7 slices on few slices: torch.nn.Conv3d
beside `volrec.networks.layers.Conv3d`. Where the column of torch says "whole" everywhere, the way around it can go.
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

FEW_SLICES = """
import torch
from volrec.networks.layers import Conv3d
layer = (torch.nn.Conv3d if {kind!r} == "torch" else Conv3d)(1, 8, 7, stride=2, padding=3)
for batch in (1, 2, 3, 5):
    x = torch.randn(batch, 1, {slices}, 32, 24).requires_grad_()
    for _ in range(4):
        layer(x).sum().backward()
"""


def outcome(code: str) -> str:
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
    return "whole" if died == 0 else f"dies {died}"


def main() -> None:
    print(f"{'channels':>8} {'batch':>5} {'torch':>8} {'volrec':>8}")
    for channels in (4, 8, 12, 16, 32):
        for batch in (8, 9, 45):
            found = [outcome(TRIAL.format(kind=kind, channels=channels, batch=batch)) for kind in ("torch", "volrec")]
            print(f"{channels:>8} {batch:>5} {found[0]:>8} {found[1]:>8}")
    print(f"\n{'slices':>8} {'':>5} {'torch':>8} {'volrec':>8}")
    for slices in (4, 5, 6):
        found = [outcome(FEW_SLICES.format(kind=kind, slices=slices)) for kind in ("torch", "volrec")]
        print(f"{slices:>8} {'':>5} {found[0]:>8} {found[1]:>8}")


if __name__ == "__main__":
    main()
