"""What something was made with: Python, packages, platform, and the commit of the source."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["collect_versions"]

PACKAGES = (
    "volrec",
    "torch",
    "monai",
    "pytorch-lightning",
    "numpy",
    "pydicom",
    "nibabel",
    "SimpleITK",
    "scikit-learn",
)


def collect_versions() -> dict[str, Any]:
    """Return the versions of Python, of the packages and of the source (git commit), and the platform."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **{package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
    }
    torch = sys.modules.get("torch")  # not worth importing for this alone
    if torch is not None:
        facts["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
        facts["threads"] = torch.get_num_threads()
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    source = Path(__file__).resolve().parents[1]
    try:
        git = ["git", "-C", str(source), "rev-parse", "--show-toplevel", "HEAD"]
        top, commit = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.split("\n")[:2]
        if Path(top).resolve() != source:  # an installed copy inside somebody's own repository
            return None
        state = subprocess.run(
            ["git", "-C", str(source), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return f"{commit} (changed)" if state.strip() else commit
