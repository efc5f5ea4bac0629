"""Take the screenshots of docs/serve.md in headless Chromium from a running server of the bundled model.

hawk serve --port 8000 &
python scripts/page_shots.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
PROMPT = "a happy green star with a crown on a pink background"
SEED = "7"
COLOURS = 256
HALF = 130
"""Tokens of a picture that is shown half drawn."""
MOST_BYTES = 120_000
PATIENCE = 300_000
"""Milliseconds to wait for a picture."""


def main() -> None:
    """Take all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHOTS)}")
    asked = parser.parse_args()
    with urlopen(f"{asked.url}/readyz"):  # raises while the model is being prepared
        pass
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in asked.names or SHOTS:
            SHOTS[name](browser, asked.url)
        browser.close()


def race(browser: Browser, url: str) -> None:
    """A race that is finished, then the same with the source of each cell."""
    with opened(browser, url, width=980, height=900) as page:
        ask(page, PROMPT)
        page.click("#race")
        page.wait_for_selector("#verdict:not([hidden])")
        keep(page, "race")
        page.check("#overlay")
        page.evaluate("const r = document.getElementById('replay'); r.value = Math.round(r.max * 0.7);")
        page.dispatch_event("#replay", "input")
        keep(page, "overlay")


def desktop(browser: Browser, url: str) -> None:
    """A finished picture."""
    with opened(browser, url, width=980, height=900) as page:
        ask(page, PROMPT)
        page.press("#prompt", "Enter")
        page.wait_for_selector("#look:not([hidden])")
        keep(page, "desktop")


def phone(browser: Browser, url: str) -> None:
    """A finished picture on a phone."""
    with opened(browser, url, width=390, height=800, is_mobile=True, device_scale_factor=1.5) as page:
        ask(page, PROMPT)
        page.press("#prompt", "Enter")
        page.wait_for_selector("#look:not([hidden])")
        keep(page, "phone")


def dark(browser: Browser, url: str) -> None:
    """A picture that is half drawn, in dark colours."""
    with opened(browser, url, width=980, height=700, color_scheme="dark") as page:
        ask(page, PROMPT)
        page.press("#prompt", "Enter")
        while int(page.inner_text("[data-of=committed]")) < HALF:
            page.wait_for_timeout(20)  # the page's own rules allow no script that waits in the page
        keep(page, "dark")


def error(browser: Browser, url: str) -> None:
    """A setting that is refused."""
    with opened(browser, url, width=980, height=700) as page:
        page.click("#settings summary")
        page.fill("#guidance_scale", "0.5")
        ask(page, PROMPT, seed="")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#error:not([hidden])")
        keep(page, "error")


SHOTS = {"race": race, "desktop": desktop, "phone": phone, "dark": dark, "error": error}


@contextmanager
def opened(browser: Browser, url: str, width: int, height: int, **options: Any) -> Iterator[Page]:
    """The page in a window of its own, with the first prompts as chips."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.add_init_script("Math.random = () => 0.5")  # the chips keep their order
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_selector("#chips button")
    yield page
    context.close()


def ask(page: Page, prompt: str, seed: str = SEED) -> None:
    """Fill in what to draw."""
    page.fill("#prompt", prompt)
    page.evaluate("seed => { document.getElementById('seed').value = seed; }", seed)


def keep(page: Page, name: str) -> None:
    """Write docs/page-NAME.png with few colours."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    path = DOCS / f"page-{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {MOST_BYTES}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
