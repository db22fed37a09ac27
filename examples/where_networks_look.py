"""Where networks look: how often each method of `volrec explain` points at the lesion that makes the class.

Two tasks on phantoms: a *bleed* that one slice shows, and a *nodule* that only the order of the slices tells from a
vessel. A narrow C3D is trained on each (the recipe of `volrec demo`), then every positive test study that it calls
positive is mapped, and the strongest voxel and the strongest slice are compared with the planted lesion. Chance is the
share of the body, or of the slices, that the lesion takes. Intervals are Wilson's, 95 %.

What is finished is kept: an interrupted run goes on with the same command.

Usage: python examples/where_networks_look.py [--out FOLDER] [--tolerance MM]
"""

from __future__ import annotations

import argparse
import json
import time
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
        print(f"\n{task}: {studies} studies, test AUC {auc:.2f}")
        print(f"{'method':22} {'voxel on it':>24} {'chance':>7} {'slice holds it':>24} {'chance':>7} {'s a study':>10}")
        for method, options in METHODS.items():
            print(line(found(given.out, run, task, method, options, given.tolerance)), flush=True)


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
    began = time.perf_counter()
    (rate,) = hit_rates(
        run, [method], task=task, studies=STUDIES[task], size=SIZE, slices=SLICES, options=options, tolerance=tolerance
    )
    told = {**rate.to_json(), "seconds": (time.perf_counter() - began) / (rate.studies + rate.missed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2))
    return told


def line(rate: dict[str, Any]) -> str:
    """Return a row of the table."""

    def share(part: dict[str, Any]) -> str:
        if part["value"] is None:
            return f"{'-':>24} {'':>7}"
        text = f"{part['hits']}/{rate['studies']} {part['value']:.2f} [{part['low']:.2f}, {part['high']:.2f}]"
        return f"{text:>24} {part['chance']:7.3f}"

    return f"{rate['method']:22} {share(rate['voxels'])} {share(rate['slices'])} {rate['seconds']:10.1f}"


if __name__ == "__main__":
    main()
