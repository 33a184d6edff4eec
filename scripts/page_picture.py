"""The picture of the page in the README, from the page itself in a browser: ``docs/images/serve.png``.

Needs the extra ``web``, playwright and Chromium. The picture is written in true colour: in a palette of 256 the
maps would have steps that the page does not show.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tokentm.web import serve

_PICTURE = Path(__file__).parent.parent / "docs" / "images" / "serve.png"
_SIZE = {"width": 1180, "height": 860}


def main() -> None:
    """Serve the page, look at it, and write what is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=_PICTURE)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    page = serve(port=0, block=False)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
            seen = browser.new_page(viewport=_SIZE, color_scheme="light")
            seen.set_default_timeout(300_000)
            seen.goto(page.local_url)
            seen.wait_for_selector("#classes button")
            seen.wait_for_function("() => !document.querySelector('#status').classList.contains('busy')")
            shot = seen.locator("#ttm").screenshot()
            browser.close()
    finally:
        page.close()
    with Image.open(io.BytesIO(shot)) as picture:
        picture.convert("RGB").save(options.out, optimize=True)


if __name__ == "__main__":
    main()
