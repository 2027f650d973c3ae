"""The instructors' page in a browser: offline, on every screen, in both themes, on paper."""

import pytest

from tests.grading.made_up_class import write_page


@pytest.fixture(scope="module")
def class_page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("class") / "course")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline_on_every_screen(new_page, class_page, width, scheme):
    page = new_page(width, color_scheme=scheme)
    page.goto(class_page.as_uri())
    title = page.title()
    page.get_by_role("link", name="eve", exact=True).click()
    opened = page.locator("details[open]")
    assert opened.count() == 1 and "eve" in opened.inner_text()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == title == "Twice the number: results"
    assert page.evaluate(CONTRAST) == []


# Texts whose colour is too near to that of what lies below them (WCAG's 4.5 to 1).
CONTRAST = r"""() => {
  const numbers = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = numbers(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const below = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
  };
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const said = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!said) continue;
    const pair = [light(getComputedStyle(one).color), light(below(one))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push(`${one.className} ${one.textContent.slice(0, 20)} ${ratio}`);
  }
  return found;
}"""


def test_what_is_folded_is_whole_on_paper(new_page, class_page):
    page = new_page(794, color_scheme="dark")
    page.goto(class_page.as_uri())
    results = page.locator(".results")
    assert not any(results.nth(i).is_visible() for i in range(results.count()))
    page.emulate_media(media="print")
    assert all(results.nth(i).is_visible() for i in range(results.count()))
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
