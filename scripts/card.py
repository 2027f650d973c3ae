"""Draws book/_static/card.png, the picture that a link to the book brings along.

    python -m scripts.card

It is the first page's own figure beside the book's title, so it needs a built site (`make book`) and
chromium. Run it again when the figure or the title changes.
"""

import shutil
import sys

from playwright.sync_api import sync_playwright

from scripts.environment import ROOT
from scripts.sphinx_head import CARD, CARD_HEIGHT, CARD_WIDTH

PAGE = ROOT / "_build" / "html" / "index.html"
# The card is an overlay on the page, which has the figure's styles.
COMPOSE = """([logo]) => {
  const figure = document.querySelector('.book-figure');
  const card = document.createElement('div');
  card.id = 'card';
  const words = document.createElement('div');
  words.className = 'words';
  const sign = new Image();
  sign.src = logo;
  const heading = document.createElement('h1');
  heading.textContent = document.querySelector('h1').firstChild.textContent;
  const line = document.createElement('p');
  line.textContent = document.querySelector('article section > p > strong').textContent;
  words.append(sign, heading, line);
  card.append(words, figure);
  document.body.replaceChildren(card);
}"""
STYLE = f"""
html, body {{ margin: 0; overflow: hidden; }}
#card {{ display: flex; gap: 44px; width: {CARD_WIDTH}px; height: {CARD_HEIGHT}px; padding: 44px;
  box-sizing: border-box; background: #f4f6f8; color: #14202b; }}
#card .words {{ flex: 0 0 420px; align-self: center; }}
#card img {{ width: 84px; }}
#card h1 {{ margin: 26px 0 22px; font-size: 62px; line-height: 1.08; }}
#card p {{ font-size: 27px; line-height: 1.4; }}
#card .book-figure {{ flex: 1; align-self: center; }}
#card :is(.bf-controls, .los-table, .bf-notes) {{ display: none; }}
"""


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium is not installed: it draws the card.")
    if not PAGE.is_file():
        sys.exit(f"There is no {PAGE.relative_to(ROOT)}: run `make book` first.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        size = {"width": CARD_WIDTH, "height": CARD_HEIGHT}
        page = browser.new_page(viewport=size, color_scheme="light")
        page.goto(PAGE.as_uri())
        page.wait_for_function("() => document.querySelector('.book-figure').dataset.mounted")
        page.evaluate(COMPOSE, [(ROOT / "book/_static/logo.svg").as_uri()])
        page.add_style_tag(content=STYLE)
        page.wait_for_timeout(500)
        page.screenshot(path=ROOT / "book" / CARD)
        browser.close()


if __name__ == "__main__":
    main()
