"""Scales of a frame, and points every few pixels where there is structure and no track.

H. Wang et al., "Action Recognition by Dense Trajectories", CVPR 2011, section 2.1.
"""

from __future__ import annotations

import numpy as np

from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.trajectories.settings import TrajectorySettings

__all__ = ["build_pyramid", "pyramid_scales", "sample_points", "smooth_pyramid"]


def pyramid_scales(height: int, width: int, settings: TrajectorySettings) -> list[tuple[float, tuple[int, int]]]:
    """List scale factors and the frame's size ``(h, w)`` at each, the full frame first.

    A frame of 240 x 320 has six: at the seventh its shorter side would be 30 pixels, below the 32 of the tube.
    """
    scales: list[tuple[float, tuple[int, int]]] = []
    for number in range(settings.scales):
        factor = settings.scale_factor**number
        # The small allowance keeps a side of exactly `patch` pixels in spite of rounding.
        if min(height, width) / factor < settings.patch - 1e-6:
            break
        scales.append((factor, (round(height / factor), round(width / factor))))
    return scales


def build_pyramid(grey: np.ndarray, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Shrink a frame ``(H, W)`` uint8 scale by scale, each from the last (as the released program does)."""
    cv2 = load_opencv()
    pyramid = [grey]
    for height, width in sizes[1:]:
        pyramid.append(cv2.resize(pyramid[-1], (width, height), interpolation=cv2.INTER_LINEAR))
    return pyramid


def smooth_pyramid(grey: np.ndarray, scales: list[tuple[float, tuple[int, int]]]) -> list[np.ndarray]:
    """Blur and shrink a frame ``(H, W)`` to float32 for the flow: each scale from the full frame.

    The blur has a standard deviation of half the factor less one, as in Farnebäck's flow of OpenCV.
    """
    cv2 = load_opencv()
    full = grey.astype(np.float32)
    pyramid = [full]
    for factor, (height, width) in scales[1:]:
        sigma = (factor - 1) / 2
        size = max(round(sigma * 5) | 1, 3)
        blurred = cv2.GaussianBlur(full, (size, size), sigma)
        pyramid.append(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR))
    return pyramid


def sample_points(grey: np.ndarray, occupied: np.ndarray, settings: TrajectorySettings) -> np.ndarray:
    """Choose the middle of every empty cell that has structure.

    Parameters
    ----------
    grey : numpy.ndarray
        ``(h, w)`` uint8, the frame at one scale.
    occupied : numpy.ndarray
        ``(N, 2)`` x, y of the tracks at this scale.
    settings : TrajectorySettings

    Returns
    -------
    numpy.ndarray
        ``(M, 2)`` float32 x, y, row by row; none in a frame without structure.
    """
    step = settings.step
    rows, columns = grey.shape[0] // step, grey.shape[1] // step
    eigenvalues = load_opencv().cornerMinEigenVal(grey, 3, ksize=3)
    middle = eigenvalues[step // 2 :: step, step // 2 :: step][:rows, :columns]
    # Strictly above: in a flat frame the largest eigenvalue is 0, and nothing is above a share of it.
    free = middle > eigenvalues.max() * settings.quality
    cells = np.floor(occupied).astype(np.intp) // step
    cells = cells[(cells[:, 0] < columns) & (cells[:, 1] < rows)]
    free[cells[:, 1], cells[:, 0]] = False
    y, x = np.nonzero(free)
    return np.stack([x * step + step // 2, y * step + step // 2], axis=1).astype(np.float32)
