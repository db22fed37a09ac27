"""A real headless Chromium for the tests of the reports, and what must not happen in it.

Debian's Chromium, Chromium or Chrome is taken from the path and driven by playwright; nothing is downloaded. Where
either is missing the tests are skipped with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Tab", "chromium", "opened"]

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Tab:
    """An open page with what it told the console and what it asked for.

    `errors` are messages of level error or warning, exceptions that nobody caught, and requests that failed;
    `requests` are addresses, the page's own first.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check_quiet(self) -> None:
        """Fail where the console has a complaint, or anything but the file and what it carries was asked for."""
        assert self.errors == []
        own = self.requests[0]
        assert own.startswith("file:")
        assert [url for url in self.requests if url != own and not url.startswith(("data:", "blob:"))] == []


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser for the tests of a module; give it to `opened`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser on the path ({', '.join(NAMES)}); Debian: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        # Without a sandbox: tests run as root in containers, and the page is our own.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any,
    path: Path,
    *,
    scheme: str = "light",
    media: str = "screen",
    size: tuple[int, int] = (1280, 1000),
    **options: Any,
) -> Iterator[Tab]:
    """Open a file as a person would, from the disk, and watch it.

    Parameters
    ----------
    browser
        From `chromium`.
    path : Path
        HTML file.
    scheme : str
        ``"light"`` or ``"dark"``: what the reader's system prefers.
    media : str
        ``"screen"`` or ``"print"``.
    size : tuple
        Width and height of the window.
    options
        Of playwright's `new_context` (`java_script_enabled`, `has_touch`).
    """
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, offline=True, **options
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    tab = Tab(page)
    page.on(
        "console",
        lambda message: tab.errors.append(message.text) if message.type in {"error", "warning"} else None,
    )
    page.on("pageerror", lambda fault: tab.errors.append(str(fault)))
    page.on("requestfailed", lambda request: tab.errors.append(f"failed: {request.url[:200]}"))
    page.on("request", lambda request: tab.requests.append(request.url))
    page.emulate_media(media=media)
    try:
        page.goto(path.resolve().as_uri())
        yield tab
    finally:
        context.close()
