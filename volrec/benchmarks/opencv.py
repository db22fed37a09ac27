"""OpenCV, which the extra ``video`` brings; on one thread, for results must not depend on the machine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from volrec.errors import ConfigError

__all__ = ["load_opencv", "one_thread"]


def load_opencv() -> Any:
    """Import OpenCV.

    Raises
    ------
    ConfigError
        Where it is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            "videos are resized and tracked with OpenCV, which is not installed.",
            remedy="Install it with: pip install 'volrec[video]'.",
            code="opencv-package",
        ) from error


@contextmanager
def one_thread() -> Iterator[Any]:
    """Give OpenCV with one thread for the time of the block; the number of before is put back."""
    cv2 = load_opencv()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield cv2
    finally:
        cv2.setNumThreads(before)
