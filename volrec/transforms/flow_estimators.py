"""The estimators of optical flow, each behind one signature, with every constant in one place (`SETTINGS`).

==========  ================================================  ====================================================
method      what it is                                        needs
==========  ================================================  ====================================================
tvl1        dual TV-L1 [1]_: total variation against an L1    OpenCV with its contributed modules; where they are
            difference; the flow of TSN, ActionVLAD and I3D   missing, scikit-image's own implementation
farneback   polynomial expansion [2]_                         OpenCV
dis         dense inverse search [3]_, the fastest            OpenCV; reads 8 bits: values are rounded to 255 steps
demons      symmetric demons [4]_ from coarse to fine, in mm  SimpleITK, which volrec always brings
==========  ================================================  ====================================================

All take float32 in [0, 1]; but for ``dis`` none rounds. Every estimator runs on one thread: what OpenCV's ``dis`` finds
depends on the number of threads, and a field that was computed once must be found again on another machine. OpenCV's
number of threads is put back after each pair.

References
----------
.. [1] C. Zach, T. Pock, H. Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM 2007.
.. [2] G. Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003.
.. [3] T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast Optical Flow Using Dense Inverse Search", ECCV 2016.
.. [4] T. Vercauteren et al., "Diffeomorphic Demons: Efficient Non-Parametric Image Registration", NeuroImage 2009.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy import ndimage

from volrec.errors import ConfigError

__all__ = ["METHODS", "SETTINGS", "Estimator", "find_estimator"]

METHODS = ("tvl1", "farneback", "dis", "demons")

# What TV-L1 has here is OpenCV's default, which the tools that made the flow of TSN and I3D did not change.
SETTINGS: dict[str, dict[str, Any]] = {
    "opencv tvl1": {
        "Tau": 0.25, "Lambda": 0.15, "Theta": 0.3, "ScalesNumber": 5, "WarpingsNumber": 5, "Epsilon": 0.01,
        "InnerIterations": 30, "OuterIterations": 10, "ScaleStep": 0.8, "Gamma": 0.0, "MedianFiltering": 5,
    },
    "scikit-image tvl1": {"attachment": 15, "tightness": 0.3, "num_warp": 5, "num_iter": 10, "tol": 1e-4},
    "opencv farneback": {
        "pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.1, "flags": 0,
    },
    "opencv dis": {"preset": "medium"},
    # Levels: size of a pixel against the smaller spacing of the slice; smoothing of the field in pixels of the level.
    "simpleitk demons": {
        "levels": (8, 4, 2, 1), "iterations": (60, 60, 40, 20), "smoothing": 2.0, "smallest": 12, "blur": 0.5,
    },
}  # fmt: skip

Estimator = Callable[[np.ndarray, np.ndarray, Sequence[float]], np.ndarray]


def find_estimator(method: str) -> tuple[str, str, Estimator]:
    """Find what runs `method` on this machine.

    Parameters
    ----------
    method : {"tvl1", "farneback", "dis", "demons"}

    Returns
    -------
    package : str
        With major and minor version, for example ``"opencv-4.13"``.
    settings : str
        Key of `SETTINGS`.
    estimator : callable
        ``(first, second, spacing) -> (2, H, W)`` float32, of float32 slices ``(H, W)`` in [0, 1], both sides at least
        16 pixels, and the spacing along H and W in mm; components (x, y) in pixels.

    Raises
    ------
    ConfigError
        For an unknown method, or where no package that has it is installed.
    """
    if method not in METHODS:
        raise ConfigError(
            f"method must be one of {', '.join(METHODS)}; got {method!r}.",
            remedy="Choose one of these.",
            where="flow.method",
            code="flow-method",
        )
    if method == "demons":
        sitk = importlib.import_module("SimpleITK")
        version = sitk.Version_VersionString()
        return f"simpleitk-{_minor(version)}", "simpleitk demons", _demons
    cv2 = _import("cv2")
    if method == "tvl1":
        if hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
            return f"opencv-{_minor(cv2.__version__)}", "opencv tvl1", _opencv_tvl1
        if _import("skimage.registration") is not None:
            return f"scikit-image-{_minor(_import('skimage').__version__)}", "scikit-image tvl1", _skimage_tvl1
    elif cv2 is not None:
        return f"opencv-{_minor(cv2.__version__)}", f"opencv {method}", _farneback if method == "farneback" else _dis
    raise ConfigError(
        f"optical flow by {method!r} needs OpenCV{' with its contributed modules' if method == 'tvl1' else ''}, "
        "which is not installed.",
        remedy="Install it with: pip install 'volrec[flow]'; or choose 'demons', which needs nothing more.",
        where="flow.method",
        code="flow-package",
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@contextmanager
def _one_thread() -> Iterator[Any]:
    """Give OpenCV with one thread for the time of the block."""
    cv2 = importlib.import_module("cv2")
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield cv2
    finally:
        cv2.setNumThreads(before)


def _opencv_tvl1(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    with _one_thread() as cv2:
        estimator = cv2.optflow.DualTVL1OpticalFlow_create()
        for name, value in SETTINGS["opencv tvl1"].items():
            getattr(estimator, f"set{name}")(value)
        flow = estimator.calc(first, second, None)
    return np.moveaxis(flow, 2, 0)


def _skimage_tvl1(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    estimate = importlib.import_module("skimage.registration").optical_flow_tvl1
    rows_and_columns = estimate(first, second, dtype=np.float32, **SETTINGS["scikit-image tvl1"])
    return np.asarray(rows_and_columns)[::-1]


def _farneback(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    # It reads floats as well as bytes; its constants are made for 0 to 255.
    with _one_thread() as cv2:
        scaled = first * np.float32(255), second * np.float32(255)
        flow = cv2.calcOpticalFlowFarneback(*scaled, None, **SETTINGS["opencv farneback"])
    return np.moveaxis(flow, 2, 0)


def _dis(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    with _one_thread() as cv2:
        preset = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{SETTINGS['opencv dis']['preset'].upper()}")
        flow = cv2.DISOpticalFlow_create(preset).calc(_bytes(first), _bytes(second), None)
    return np.moveaxis(flow, 2, 0)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _demons(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Register from coarse to fine; a pixel of a level is as square in mm as the slice allows."""
    sitk = importlib.import_module("SimpleITK")
    settings = SETTINGS["simpleitk demons"]
    steps = np.asarray(spacing, dtype=np.float64)  # along H, W
    identity = sitk.Transform(2, sitk.sitkIdentity)
    field = None
    for level, iterations in zip(settings["levels"], settings["iterations"], strict=True):
        wanted = level * steps.min() / steps  # pixels of the slice that a pixel of the level spans
        shrink = np.maximum(1, np.rint(wanted)).astype(int)
        if level > 1 and (np.array(first.shape) // shrink).min() < settings["smallest"]:
            continue
        fixed, moving = (_pyramid(sitk, image, steps, shrink, settings["blur"]) for image in (first, second))
        if field is None:
            field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)
            field.CopyInformation(fixed)
        else:
            finer = sitk.ResampleImageFilter()
            finer.SetNumberOfThreads(1)
            finer.SetReferenceImage(fixed)
            finer.SetTransform(identity)
            finer.SetUseNearestNeighborExtrapolator(True)  # Else the border of the field would start from zero.
            field = finer.Execute(field)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations([float(s) for s in (settings["smoothing"] * wanted / shrink)[::-1]])
        field = demons.Execute(fixed, moving, field)
    millimetres = sitk.GetArrayFromImage(field)  # (H, W, 2), x first
    return np.moveaxis(millimetres / steps[::-1], 2, 0).astype(np.float32)


def _pyramid(sitk: Any, image: np.ndarray, steps: np.ndarray, shrink: np.ndarray, blur: float) -> Any:
    """Blur against aliasing and shrink, keeping the place of each pixel in mm; grey values from 0 to 255."""
    blurred = ndimage.gaussian_filter(image, np.where(shrink > 1, blur * shrink, 0.0), mode="nearest")
    level = sitk.GetImageFromArray(blurred * np.float32(255))
    level.SetSpacing([float(step) for step in steps[::-1]])
    if (shrink > 1).any():
        smaller = sitk.ShrinkImageFilter()
        smaller.SetNumberOfThreads(1)
        smaller.SetShrinkFactors([int(factor) for factor in shrink[::-1]])
        level = smaller.Execute(level)
    return level
