"""Sphinx extension: pages that load little and stand still.

Formulas are set when the site is built, by the MathJax that npm brought: a page then loads no MathJax,
nothing moves when a formula is set, and formulas need no JavaScript. Where npm could not bring it, the
reader's browser loads MathJax from its CDN.

A page knows from its first line whether it is light or dark. Of what the theme writes, three things are
left out: a script that draws each icon a second time (the icons' font does so already), the parts of
sphinx-design on pages that have none, and the marks around code that has no colour of its own.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parent.parent
MATHJAX = ROOT / "node_modules" / "mathjax" / "es5"
MATHJAX_CDN = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"
# Beside the fonts, below _static.
FORMULAS = Path("vendor/mathjax/formulas.css")

MATH = re.compile(
    r'(?P<open><(?P<tag>span|div) class="(?:amsmath )?math notranslate nohighlight"[^>]*>)'
    r'(?P<number>\s*<span class="eqno">.*?</span>)?(?P<tex>[^<]*)(?=</(?P=tag)>)',
    re.DOTALL,
)
# MathJax as a page would load it, and its settings.
MATHJAX_SCRIPTS = re.compile(
    r"\s*<script>window\.MathJax = [^\n]*</script>|\s*<script [^>]*mathjax@[^>]*></script>"
)
ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*/scripts/fontawesome\.js[^"]*"></script>')
DESIGN = re.compile(r"\s*<(?:link|script) [^>]*(?:sphinx-design|design-tabs)[^>]*>(?:</script>)?")
STORED_THEME = 'document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";'
# Before anything is drawn: the theme's own script comes later, and until then a page has no colours.
RESOLVED_THEME = (
    "const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';\n"
    "    const { dataset } = document.documentElement;\n"
    "    dataset.theme = dataset.mode === 'auto' ? system : dataset.mode;"
)
# The classes that Pygments gives to names, punctuation and spaces.
UNCOLOURED = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')


def choose_mathjax(app: Sphinx, config) -> None:
    # Taken out again by `lighten` where MathJax is here.
    config.mathjax_path = MATHJAX_CDN


def formula(match: re.Match) -> tuple[str, bool]:
    r"""The TeX of a formula as Sphinx writes it, in \(…\) or \[…\], and whether it is displayed."""
    tex = unescape(match["tex"]).strip()
    if tex.startswith(r"\(") or tex.startswith(r"\["):
        return tex[2:-2].strip(), tex.startswith(r"\[")
    return tex, match["tag"] == "div"


def typeset(formulas: list[tuple[str, bool]]) -> dict:
    """The formulas as HTML and the style sheet they share."""
    node = shutil.which("node")
    if node is None:
        raise ExtensionError("node is not installed: it comes with npm and sets the formulas.")
    asked = json.dumps({"fonts": Path(FONTS).name, "formulas": formulas})
    answer = subprocess.run(
        [node, ROOT / "scripts" / "typeset.mjs"],
        input=asked,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if answer.returncode != 0:
        raise ExtensionError(f"The formulas could not be set: {answer.stderr.strip()}")
    return json.loads(answer.stdout)


def lighten(page: str) -> str:
    page = page.replace(STORED_THEME, f"{{ {RESOLVED_THEME} }}")
    page = UNCOLOURED.sub(r"\1", ICON_SCRIPT.sub("", page))
    return page if 'class="sd-' in page else DESIGN.sub("", page)


def set_formulas(pages: dict[Path, str], static: Path) -> dict[Path, str]:
    """The pages with their formulas set; fonts and style sheet are written to ``static``."""
    found = sorted({formula(match) for text in pages.values() for match in MATH.finditer(text)})
    done = typeset(found)
    html = dict(zip(found, done["html"], strict=True))
    style = static / FORMULAS
    shutil.copytree(MATHJAX / FONTS, style.parent / Path(FONTS).name, dirs_exist_ok=True)
    style.write_text(done["css"], "utf-8")
    link = f'<link rel="stylesheet" href="_static/{FORMULAS.as_posix()}" />\n'

    def put(match: re.Match) -> str:
        return f"{match['open']}{match['number'] or ''}{html[formula(match)]}"

    changed = {}
    for path, text in pages.items():
        text, count = MATH.subn(put, MATHJAX_SCRIPTS.sub("", text))
        changed[path] = text.replace("</head>", f"{link}</head>", 1) if count else text
    return changed


def rewrite(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    pages = {path: lighten(path.read_text("utf-8")) for path in sorted(out.glob("*.html"))}
    if MATHJAX.is_dir():
        pages = set_formulas(pages, out / "_static")
    for path, text in pages.items():
        path.write_text(text, "utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", choose_mathjax)
    app.connect("build-finished", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
