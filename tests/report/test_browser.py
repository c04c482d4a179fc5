"""The page in a real browser: no complaint on the console, something to see in light, in dark and on paper."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxrobust import report
from tests.report import fake

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture
def browse(tmp_path):
    """Open a page in headless Chromium with the given flags; its standard error."""
    browser = next((path for path in map(shutil.which, NAMES) if path), None)
    if browser is None:
        pytest.fail(f"this test opens the page in a browser; install one of {', '.join(NAMES)}")

    def run(page, *flags):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                   f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr

    return run


@pytest.mark.slow
@pytest.mark.parametrize("content", [fake.results, fake.large], ids=["small", "hostile"])
def test_page_in_a_browser(browse, tmp_path, content):
    page = report.render(fake.write(tmp_path / "run", content(), kept=2))
    pixels = {}
    for mode, scheme in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{mode}.png"
        errors = browse(
            page, f"--screenshot={shot}", "--window-size=1280,3000", f"--blink-settings=preferredColorScheme={scheme}"
        )
        assert "CONSOLE" not in errors
        pixels[mode] = np.asarray(Image.open(shot).convert("RGB"), float)
        assert pixels[mode].std() > 15
        # Something is drawn in every tenth of the page's upper part, not only in its header.
        assert all(part.std() > 3 for part in np.array_split(pixels[mode][:1500], 10))
    assert pixels["light"].mean() > 200
    assert pixels["dark"].mean() < 80
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_console_is_heard(browse, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('deliberate')</script>")
    assert "CONSOLE" in browse(page, f"--screenshot={tmp_path / 'bad.png'}")
