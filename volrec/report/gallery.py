"""The studies that a report shows slice by slice, with a map of where the network looked.

They are kept in ``gallery/`` of the run folder, so that a report can be written again where the studies are gone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import ConfigError, RunError
from volrec.files import write_atomically
from volrec.progress import track
from volrec.report.findings import gather
from volrec.report.telling import Telling, telling_studies
from volrec.report.viewer import ViewerStudy

if TYPE_CHECKING:
    from volrec.inference import LoadedMember
    from volrec.inference.studies import Studies
    from volrec.io import Volume
    from volrec.runs import RunFolder

__all__ = ["make_gallery", "read_gallery"]

log = logging.getLogger(__name__)

FOLDER = "gallery"
LIST = "gallery.json"
MOST_PIXELS = 192
"""Rows or columns of a picture; larger ones are reduced."""


def make_gallery(
    run: RunFolder,
    studies: Studies,
    *,
    each: int,
    method: str,
    device: str | None = None,
    refresh: bool = False,
) -> list[Telling]:
    """Choose the studies that tell most, explain them and keep pictures and maps in the run folder.

    Parameters
    ----------
    run : RunFolder
        A finished run.
    studies : Studies
        Its studies, from `volrec.inference.studies.open_run`.
    each : int
        Studies of each kind.
    method : str
        Of `volrec.explain`.
    device : str, optional
        Where to compute; None takes the best there is.
    refresh : bool
        Explain again what was explained before with the same weights.

    Returns
    -------
    list of Telling
        What was chosen; a study that cannot be read is left out, and logged.

    Raises
    ------
    ConfigError
        The network has no map of this kind.
    """
    from volrec.inference import load_members

    found = gather(run)
    chosen = telling_studies(found, each)
    members = {member.name: member for member in load_members(run, device=device)}
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    entries: list[dict[str, Any]] = []
    shown: list[Telling] = []
    for one in track(chosen, f"maps by {method}", len(chosen)):
        member = members.get(one.member) or next(iter(members.values()))
        decoded = studies.entries.get(one.study)
        if decoded is None:  # it could not be decoded this time
            log.warning("%s is not in the gallery: it cannot be read any more", one.study)
            continue
        options = _blocks(member, decoded.shape) if method == "occlusion-3d" else None
        name = _name(one, member, [method, options, decoded.key])
        facts_path, arrays_path = folder / f"{name}.json", folder / f"{name}.npz"
        if refresh or not (facts_path.is_file() and arrays_path.is_file()):
            try:
                _draw(one, studies, member, method=method, options=options, facts=facts_path, arrays=arrays_path)
            except ConfigError:
                raise  # no study's fault, and the next one would meet it too
            except Exception as error:  # noqa: BLE001 - one bad study never stops a report
                log.warning("%s is not in the gallery: %s", one.study, error)
                continue
        entries.append({"file": name, **asdict(one), "method": method})
        shown.append(one)
    write_atomically(folder / LIST, json.dumps({"studies": entries}, indent=2) + "\n")
    kept = {entry["file"] for entry in entries}
    for path in folder.iterdir():
        if path.name != LIST and path.stem not in kept:
            path.unlink()
    return shown


def read_gallery(run: RunFolder) -> list[ViewerStudy]:
    """Return what was kept, in the order of the report; nothing where there is none.

    Raises
    ------
    RunError
        A file of it is damaged.
    """
    listed = run.path / FOLDER / LIST
    if not listed.is_file():
        return []
    try:
        entries = json.loads(listed.read_text(encoding="utf-8"))["studies"]
        return [_read(run.path / FOLDER, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"its pictures cannot be read ({error}).",
            remedy="Make them again with `volrec report RUN --refresh`.",
            where=run.path / FOLDER,
            code="run-damaged",
        ) from error


def _draw(
    one: Telling,
    studies: Studies,
    member: LoadedMember,
    *,
    method: str,
    options: dict[str, Any] | None,
    facts: Path,
    arrays: Path,
) -> None:
    """Explain a study and keep it, small enough for a page, in its own geometry."""
    from volrec.explain import explain_study, to_study_geometry
    from volrec.report.viewer_data import reduce_volume, viewer_windows

    case = studies.cases[one.study]
    # Of the two classes of a binary task the network has one output, the second.
    output = 1 if studies.cohort.task == "binary" else one.index
    stored = studies.store.open(studies.entries[one.study])
    evidence = explain_study([member], stored, method=method, output=output, options=options)
    volume = _original(studies, one.study)
    overlay = to_study_geometry(evidence, volume)
    image = np.asarray(volume.array[0])
    # A page holds a dozen studies: finer pixels than a screen shows of one would only make it slow to open.
    scale = min(1.0, MOST_PIXELS / max(image.shape[1:]))
    size = tuple(max(1, round(edge * scale)) for edge in image.shape[1:])
    shape = (size[0], size[1])
    spacing = [volume.spacing[0], *(old * before / after for old, before, after in _edges(volume, shape))]
    small = reduce_volume(image, shape, 1)
    if image.dtype == np.int16:
        small = np.rint(small).astype(np.int16)
    strongest = float(np.abs(overlay).max()) or 1.0
    weights = np.rint(reduce_volume(overlay, shape, 1) / strongest * 127).astype(np.int8)
    buffer = io.BytesIO()
    per_slice = (np.abs(overlay).max((1, 2)) / strongest).astype(np.float32)
    np.savez_compressed(buffer, image=small, weights=weights, per_slice=per_slice)
    write_atomically(arrays, buffer.getvalue())
    own = _own_windows(member, case.series.modality)
    others = viewer_windows(small, modality=case.series.modality)
    windows = [*own, *(one for one in others if one[0] not in {name for name, *_ in own})]
    kept = {
        "spacing": [float(value) for value in spacing],
        "windows": [[name, float(level), float(width)] for name, level, width in windows],
        "signed": bool(evidence.signed),
        "plane": volume.slice_axis,
        "unit": "HU" if case.series.modality == "CT" else "",
        "origin": slice_origin(volume),
    }
    write_atomically(facts, json.dumps(kept) + "\n")


def _blocks(member: LoadedMember, shape: tuple[int, int, int]) -> dict[str, list[int]]:
    """Return blocks of a quarter of a clip along each axis that overlap by half: a map without steps, in 343 passes."""
    clip = (member.predictor.sampling.clip_length, *shape[1:])
    block = [max(1, round(size / 4)) for size in clip]
    return {"block": block, "stride": [max(1, size // 2) for size in block]}


def _edges(volume: Volume, shape: tuple[int, int]) -> list[tuple[float, int, int]]:
    return list(zip(volume.spacing[1:], volume.shape[2:], shape, strict=True))


def _original(studies: Studies, study: str) -> Volume:
    """Return the study as it was acquired: what a radiologist knows, rather than the grid of the network."""
    from volrec.io import read_series

    config = studies.config
    return read_series(
        studies.cases[study].series,
        slice_axis=config.preprocess.slice_axis,
        missing_slices=config.data.missing_slices,
    )


def slice_origin(volume: Volume) -> float:
    """Return where the first slice is along the slice axis, mm in LPS."""
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[volume.slice_axis]
    return float(volume.affine[axis, 3])


def _own_windows(member: LoadedMember, modality: str) -> list[tuple[str, float, float]]:
    """Return the windows that the network itself reads, by their names, where it reads any."""
    from volrec.transforms.windows import resolve_windows

    intensity = member.contract.intensity
    if intensity.kind != "window" or modality != "CT":
        return []
    names = [one.replace("-", " ") if isinstance(one, str) else "as read" for one in intensity.windows]
    return [(name, *one) for name, one in zip(names, resolve_windows(intensity.windows), strict=True)]


def _read(folder: Path, entry: dict[str, Any]) -> ViewerStudy:
    kept = json.loads((folder / f"{entry['file']}.json").read_text(encoding="utf-8"))
    with np.load(folder / f"{entry['file']}.npz", allow_pickle=False) as arrays:
        image, weights, per_slice = arrays["image"], arrays["weights"], arrays["per_slice"]
    return ViewerStudy(
        title=entry["study"],
        group=entry["kind"],
        facts=(*((name, value) for name, value in entry["facts"]), *_empty(entry, weights)),
        image=image,
        spacing=tuple(kept["spacing"]),
        windows=tuple((name, level, width) for name, level, width in kept["windows"]),
        overlay=weights.astype(np.float32) / 127,
        signed=kept["signed"],
        slice_scores=per_slice,
        slice_score_name="strongest evidence",
        plane=kept["plane"],
        unit=kept["unit"],
        overlay_name=f"{entry['method']} for {entry['output']}",
        origin=kept["origin"],
    )


def _empty(entry: dict[str, Any], weights: np.ndarray) -> list[tuple[str, str]]:
    """Say that a map holds nothing, where it does: an overlay that cannot be seen looks like a fault of the page."""
    return [] if weights.any() else [("map", f"empty: nothing was found that speaks for {entry['output']}")]


def _name(one: Telling, member: LoadedMember, how: list[Any]) -> str:
    """Return a name that study, output, weights, voxels and method determine, and that gives no study away."""
    facts = [one.study, one.index, member.card["tensors"]["sha256"], *how]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
