"""Sphinx extension: of the icons' fonts, a page loads the icons that the site shows.

The theme brings three fonts of Font Awesome, some two thousand icons, and a rule for each in its style
sheet; the site shows about twenty. Which ones is read from what was built: a name such as `fa-sun`
anywhere in a page or a script, or a character of the icons in another rule of a style sheet. The fonts
are written as WOFF, which the standard library's zlib can compress.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

STYLE = "_static/styles/pydata-sphinx-theme.css"
# Names every icon there is; no page loads it (scripts/sphinx_light.py).
ICON_SCRIPT = "fontawesome.js"
NAME = re.compile(r"\bfa-[a-z0-9-]+")
# .fa-house:before,.fa-home:before{content:"\f015"}
RULE = re.compile(
    r"(?P<names>\.fa-[a-z0-9-]+:before(?:,\.fa-[a-z0-9-]+:before)*)"
    r'\{content:"(?P<content>[^"]*)"\}'
)
SOURCE = re.compile(
    r'src:url\((?P<stem>[^)"]+/fa-[a-z]+-\d+)\.woff2\) format\("woff2"\),'
    r'url\((?P=stem)\.ttf\) format\("truetype"\)'
)
ESCAPE = re.compile(r"\\([0-9a-fA-F]{1,6}) ?")


def unescaped(css: str) -> str:
    r"""CSS with its escapes, as \f185, written out."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), css)


def used_names(texts: Iterable[str]) -> set[str]:
    """The names of icons, and whatever else begins with fa-, in pages and scripts."""
    return {name for text in texts for name in NAME.findall(text)}


def only_used(style: str, names: set[str]) -> str:
    """The style sheet without the rules of icons that have none of these names."""

    def keep(rule: re.Match) -> str:
        return rule[0] if names & set(NAME.findall(rule["names"])) else ""

    return RULE.sub(keep, style)


def characters(styles: Iterable[str]) -> set[str]:
    """What the rules of icons show, and every character of private use: such are the icons."""
    found = set()
    for style in styles:
        shown = "".join(unescaped(rule["content"]) for rule in RULE.finditer(style))
        private = (each for each in unescaped(style) if unicodedata.category(each) == "Co")
        found |= {*shown, *private}
    return found


def write_subset(source: Path, target: Path, wanted: set[str]) -> None:
    """The font at ``source`` with these characters only, as WOFF."""
    # The names hold the licence.
    options = Options(flavor="woff", name_IDs=["*"], hinting=False)
    with TTFont(source) as font:
        subsetter = Subsetter(options)
        subsetter.populate(text="".join(wanted))
        subsetter.subset(font)
        font.flavor = "woff"
        font.save(target)


def cut_icons(out: Path) -> None:
    """Rewrites the fonts and the theme's style sheet in a built site."""
    path = out / STYLE
    style = path.read_text("utf-8")
    sources = list(SOURCE.finditer(style))
    if not sources:
        raise ExtensionError(
            f"{STYLE} names no icon fonts as WOFF2 and TrueType: has the theme changed?"
        )
    scripts = [each for each in out.rglob("*.js") if each.name != ICON_SCRIPT]
    names = used_names(each.read_text("utf-8") for each in [*out.glob("*.html"), *scripts])
    style = only_used(style, names)
    others = [each.read_text("utf-8") for each in out.rglob("*.css") if each != path]
    wanted = characters([style, *others])
    for source in sources:
        font = path.parent / source["stem"]
        write_subset(font.with_suffix(".ttf"), font.with_suffix(".woff"), wanted)
        for whole in (".ttf", ".woff2"):
            font.with_suffix(whole).unlink()
    style = SOURCE.sub(r'src:url(\g<stem>.woff) format("woff")', style)
    path.write_text(style, "utf-8")


def rewrite(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        cut_icons(Path(app.outdir))


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
