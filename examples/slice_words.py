"""Which words of its vocabulary ActionVLAD sees along the slices of a study: a picture from a run.

Above, the stack from the side: slices from left to right, the middle column of each from top to bottom. Below, the
words whose share changes most along it: by how much the share of a slice is over or under that of the whole study,
which the bars show. Shares are means over the positions of a slice, and sum to one over all words.

Usage: python examples/slice_words.py RUN STUDY_FOLDER --out words.png

On phantoms:
    volrec phantom phantoms --task nodule
    volrec train phantoms --labels phantoms/labels.csv --config actionvlad --epochs 5 --out runs/words
    python examples/slice_words.py runs/words phantoms/nodule-00000 --out words.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt

import volrec
from volrec.data.store import preprocess_volume
from volrec.data.streams import add_streams, read_streams
from volrec.errors import DataError, RunError, VolrecError
from volrec.inference.members import LoadedMember, load_members
from volrec.networks import SlicewiseNetwork
from volrec.runs import RunFolder

AT_ONCE = 16  # slices of a slicewise network: each is encoded by itself


def member_with_words(run: Path) -> LoadedMember:
    """The first member of a run whose network has words: each member has a vocabulary of its own."""
    member = load_members(RunFolder.open(run))[0]
    if not getattr(member.network, "num_words", 0):
        raise RunError(
            f"its network, {member.network.registry_name}, has no words.",
            remedy="Give a run of actionvlad with pooling 'vlad', e.g. `volrec train … --config actionvlad`.",
            where=run,
        )
    return member


def decode(folder: Path, member: LoadedMember):
    """The study, on the grid and with the streams that the network was trained on."""
    contract = member.contract
    volume = volrec.read_volume(
        folder, slice_axis=contract.preprocess.slice_axis, missing_slices=contract.missing_slices
    )
    if contract.modality and volume.meta["modality"] != contract.modality:
        raise DataError(
            f"it is {volume.meta['modality']}, but the run was trained on {contract.modality}.",
            remedy="Give a study of that modality.",
            where=folder,
        )
    stored = preprocess_volume(volume, contract.preprocess)
    return add_streams(stored, contract.streams, contract.intensity, study=folder.name)


def word_shares(volume, member: LoadedMember) -> np.ndarray:
    """Shares (T', K) of every slice in the words; T' is less than the slices where the network merges them."""
    slices = np.arange(volume.shape[0])
    network, make = member.network.eval(), member.predictor.input
    by_slice = isinstance(network, SlicewiseNetwork)
    parts = np.array_split(slices, -(-len(slices) // AT_ONCE)) if by_slice else [slices]
    found = []
    for part in parts:
        read = read_streams(volume, member.contract.streams, part)
        batch = {name: torch.from_numpy(np.asarray(values)[None]) for name, values in read.items()}
        batch["quantiles"] = torch.as_tensor(np.asarray(volume.quantiles, dtype=np.float32))[None]
        clip = make.finish(make(batch), batch).to(member.predictor.device)
        with torch.inference_mode():
            found.append(network.word_shares(clip)[0].float().cpu().numpy())
    return np.concatenate(found)


def telling(shares: np.ndarray, count: int) -> np.ndarray:
    """The words whose share changes most from slice to slice, in the order in which they appear along the stack."""
    chosen = np.argsort(-np.ptp(shares, axis=0), kind="stable")[:count]
    middle = (np.arange(len(shares)) @ shares) / np.maximum(shares.sum(axis=0), 1e-12)
    return chosen[np.argsort(middle[chosen], kind="stable")]


def draw(side: np.ndarray, shares: np.ndarray, *, count: int, title: str, out: Path) -> None:
    """Draw the stack from the side (T, H) and the shares (T', K) along it."""
    words = telling(shares, count)
    chosen = shares[:, words].T  # (words, T')
    usual = chosen.mean(axis=1)
    change = 100 * (chosen / np.maximum(usual[:, None], 1e-12) - 1)
    figure, panels = plt.subplots(
        2, 2, figsize=(10, 6), width_ratios=(5, 1), height_ratios=(1, 1.5), constrained_layout=True
    )
    (above, corner), (below, beside) = panels
    corner.axis("off")
    low, high = np.percentile(side, (1, 99))
    place = {"aspect": "auto", "interpolation": "nearest"}
    above.imshow(
        side.T, cmap="gray", vmin=low, vmax=max(high, low + 1), extent=(0, len(side), side.shape[1], 0), **place
    )
    above.set(title=title, ylabel="row of the slice")
    reach = max(float(np.abs(change).max()), 1e-6)
    colours = below.imshow(
        change, cmap="RdBu_r", vmin=-reach, vmax=reach, extent=(0, len(side), len(words) - 0.5, -0.5), **place
    )
    below.set(xlabel="slice", ylabel="word", yticks=range(len(words)), yticklabels=words)
    bar = corner.inset_axes((0, 0.5, 1, 0.08))
    figure.colorbar(colours, cax=bar, orientation="horizontal", label="share over the\nstudy's own, %")
    beside.barh(range(len(words)), 100 * usual, color="0.5")
    beside.set(ylim=below.get_ylim(), yticks=[], xlabel="share of the\nstudy, %")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of `volrec train … --config actionvlad`")
    parser.add_argument("study", type=Path, help="folder, or file, of one series")
    parser.add_argument("--out", type=Path, default=Path("words.png"))
    parser.add_argument("--words", type=int, default=12, help="words that are drawn")
    given = parser.parse_args()
    try:
        member = member_with_words(given.run)
        volume = decode(given.study, member)
        shares = word_shares(volume, member)
    except VolrecError as error:
        raise SystemExit(f"{error.where or given.study}: {error.problem} {error.remedy}") from None
    side = np.asarray(volume.read())[..., volume.shape[2] // 2]
    draw(side, shares, count=given.words, title=f"{given.study.name}, {member.name}", out=given.out)
    order = telling(shares, given.words)
    print(f"{len(shares)} slices in {shares.shape[1]} words; {len(order)} of them: {', '.join(map(str, order))}")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
