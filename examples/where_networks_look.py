"""Where networks look: how often each method of `volrec explain` points at the lesion that makes the class.

Two tasks on phantoms: a *bleed* that one slice shows, and a *nodule* that only the order of the slices tells from a
vessel. A narrow C3D is trained on each (the recipe of `volrec demo`), then every positive test study that it calls
positive is mapped, and the strongest voxel and the strongest slice are compared with the planted lesion. Chance is the
share of the body, or of the slices, that the lesion takes. Intervals are Wilson's, 95 %.

Figures of the command below (a dash: the method has one value a slice)::

    nodule (240 studies, test AUC 1.00; 60 positive test studies called positive, 0 not)
                                  voxel on lesion chance       slice holds lesion chance
    gradcam                0/60 0.00 [0.00, 0.06]  0.031  25/60 0.42 [0.30, 0.54]  0.517
    gradcam-slicewise      0/60 0.00 [0.00, 0.06]  0.031  25/60 0.42 [0.30, 0.54]  0.517
    occlusion                                   -         55/60 0.92 [0.82, 0.96]  0.517
    occlusion-3d          54/60 0.90 [0.80, 0.95]  0.031  55/60 0.92 [0.82, 0.96]  0.517
    integrated-gradients  52/60 0.87 [0.76, 0.93]  0.031  29/60 0.48 [0.36, 0.61]  0.517
    deconvnet             10/60 0.17 [0.09, 0.28]  0.031   9/60 0.15 [0.08, 0.26]  0.517

    bleed (140 studies, test AUC 1.00; 30 positive test studies called positive, 5 not)
                                  voxel on lesion chance       slice holds lesion chance
    gradcam                1/30 0.03 [0.01, 0.17]  0.007  11/30 0.37 [0.22, 0.54]  0.276
    gradcam-slicewise      1/30 0.03 [0.01, 0.17]  0.007  11/30 0.37 [0.22, 0.54]  0.276
    occlusion                                   -         30/30 1.00 [0.89, 1.00]  0.276
    occlusion-3d          25/30 0.83 [0.66, 0.93]  0.007  30/30 1.00 [0.89, 1.00]  0.276
    integrated-gradients  30/30 1.00 [0.89, 1.00]  0.007  30/30 1.00 [0.89, 1.00]  0.276
    deconvnet             15/30 0.50 [0.33, 0.67]  0.007  29/30 0.97 [0.83, 0.99]  0.276

How to read it
--------------
- Occlusion and integrated gradients find both lesions. The strongest *slice* of integrated gradients is at chance on
  nodules: a slice has the sum of its voxels, in which the lesion's drown among vessels and tissue for and against.
- Grad-CAM of this network misses, and can hardly do otherwise: the last maps of C3D have 3 x 3 x 3 positions for a clip
  of 24 x 48 x 48, so that its maximum stands in the middle of the clip or at its rim. The last pool rounds up: the last
  position along each axis has a window for itself, and with it more weight. What it needs is a larger canvas or a
  network with finer maps; a smooth map with a clear maximum is no proof of a place.
- The deconvnet starts from the output. On the way down all that is left of the clip are the switches of the pools: it
  shows what kind of pattern the network reacts to, and hardly which of several alike was decisive (A. Mahendran, A.
  Vedaldi, "Salient Deconvolutional Networks", ECCV 2016). The bleed is the only one of its kind; a nodule looks, slice
  by slice, like the vessels, and there the strongest slice lies on it less often than by chance.

What is finished is kept: an interrupted run goes on with the same command.

Usage: python examples/where_networks_look.py [--out FOLDER] [--tolerance MM]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import volrec
from volrec.api.explaining import hit_rates
from volrec.data.phantoms import make_phantoms
from volrec.demo import SIZE, SLICES, STUDIES, demo_config
from volrec.training import train

METHODS = {
    "gradcam": {},
    "gradcam-slicewise": {},
    "occlusion": {"slab": 3},
    "occlusion-3d": {"block": [6, 12, 12], "stride": [3, 6, 6]},
    "integrated-gradients": {"steps": 16},
    "deconvnet": {},
}


def main() -> None:
    """Train, explain, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("where-networks-look"), help="phantoms, runs and results")
    parser.add_argument("--tolerance", type=float, default=0.0, help="millimetres around the lesion that count as it")
    given = parser.parse_args()
    for task, studies in STUDIES.items():
        run = trained(given.out, task)
        auc = run.folder.metrics["test"]["auc"]["value"]
        rates = (found(given.out, run, task, name, own, given.tolerance) for name, own in METHODS.items())
        for number, rate in enumerate(rates):
            if not number:
                counts = f"{rate['studies']} positive test studies called positive, {rate['missed']} not"
                print(f"\n{task} ({studies} studies, test AUC {auc:.2f}; {counts})")
                print(f"{'':20} {'voxel on lesion':>24} {'chance':>6} {'slice holds lesion':>24} {'chance':>6}")
            print(line(rate), flush=True)


def trained(out: Path, task: str) -> volrec.Run:
    """Return the run on a task, trained where it is not there."""
    folder, path = out / "phantoms" / task, out / "runs" / task
    if not (folder / "labels.csv").is_file():
        make_phantoms(folder, task=task, studies=STUDIES[task], size=SIZE, slices=SLICES)
    if not (path / "metrics.json").is_file():
        train(demo_config(folder, "c3d", store=out / "store"), path, resume=(path / "config.yaml").is_file())
    return volrec.load(path)


def found(
    out: Path, run: volrec.Run, task: str, method: str, options: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    """Return the hit rate of a method, counted where it is not in its file."""
    path = out / "hits" / f"{task}-{method}-{tolerance:g}.json"
    if path.is_file():
        return json.loads(path.read_text())
    (rate,) = hit_rates(
        run, [method], task=task, studies=STUDIES[task], size=SIZE, slices=SLICES, options=options, tolerance=tolerance
    )
    told = rate.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2))
    return told


def line(rate: dict[str, Any]) -> str:
    """Return a row of the table."""

    def share(part: dict[str, Any]) -> str:
        if part["value"] is None:
            return f"{'-':>24} {'':>6}"
        text = f"{part['hits']}/{rate['studies']} {part['value']:.2f} [{part['low']:.2f}, {part['high']:.2f}]"
        return f"{text:>24} {part['chance']:6.3f}"

    return f"{rate['method']:20} {share(rate['voxels'])} {share(rate['slices'])}"


if __name__ == "__main__":
    main()
