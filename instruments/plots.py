"""Plots that follow the page: matplotlib figures as SVG whose colours are the theme's own.

    with figure("Time against sequence length", alt="...") as axes:
        axes.plot(...)

The SVG is put into the page as it is, with every colour of the palette replaced by a CSS variable,
so that one recording serves light and dark pages, JupyterLab and Colab. Text stays text.
"""

import contextlib
import html
import io
import itertools
import re
from collections.abc import Iterator

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

# Each colour: what matplotlib draws with, what a page may override, and how it looks where nothing
# does.
_INK = "#1f2933"
_FAINT = "#c5ccd3"
PALETTE = {
    "orange": "#b4500f",  # HBM, and what waits for it
    "blue": "#1f6fb2",  # on chip
    "green": "#2e7d4f",
    "purple": "#7d4fb0",
    "grey": "#6b7680",
}
_DARK = {
    _INK: "#dde3ea",
    _FAINT: "#46515e",
    "#b4500f": "#f09a5b",
    "#1f6fb2": "#6db3f2",
    "#2e7d4f": "#6cc794",
    "#7d4fb0": "#c09bea",
    "#6b7680": "#9aa5b1",
}
_numbers = itertools.count()


class Plot:
    """A finished plot; displays itself as HTML with a text alternative."""

    def __init__(self, svg: str, alt: str) -> None:
        self.svg, self.alt = svg, alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": self.alt}

    def _html(self) -> str:
        rules = "".join(f"--plot-{color[1:]}:{dark};" for color, dark in _DARK.items())
        # The site and JupyterLab say which theme is on; elsewhere the system's setting decides.
        dark = (
            "html[data-theme=dark] .plot,[data-jp-theme-light=false] .plot,html[theme=dark] .plot"
        )
        unknown = "html:not([data-theme]):not([theme]) body:not([data-jp-theme-light]) .plot"
        style = (
            # On a phone a plot keeps a readable size and scrolls within its frame.
            "<style>.plot-frame{overflow-x:auto}.plot{min-width:32rem;max-width:100%;height:auto}"
            ".plot *{stroke-linejoin:round;stroke-linecap:butt}"
            f"{dark}{{{rules}}}@media (prefers-color-scheme:dark){{{unknown}{{{rules}}}}}</style>"
        )
        alt = html.escape(self.alt, quote=True)
        svg = self.svg.replace("<svg ", f'<svg class="plot" role="img" aria-label="{alt}" ', 1)
        return f'<div class="plot-frame" tabindex="0">{style}{svg}</div>'


@contextlib.contextmanager
def figure(
    title: str, *, alt: str, width: float = 7.2, height: float = 3.8, panels: int = 1
) -> Iterator:
    """Draw one plot and display it at the end of the block.

    Args:
        title: what the plot shows, above it.
        alt: the text alternative: the conclusion and the numbers it rests on.
        panels: axes side by side; with more than one, a list of axes is given.
    """
    style = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.prop_cycle": plt.cycler(color=list(PALETTE.values())),
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "axes.titlecolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _FAINT,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.fonttype": "none",
    }
    with plt.rc_context(style):
        drawn, axes = plt.subplots(1, panels, figsize=(width, height), layout="constrained")
        try:
            drawn.suptitle(title, x=0.01, ha="left", fontsize=12, color=_INK)
            yield list(axes) if panels > 1 else axes
            plot = Plot(_themed_svg(drawn), alt)
        finally:
            plt.close(drawn)
    from IPython.display import display

    display(plot)


def _themed_svg(drawn) -> str:
    buffer = io.StringIO()
    # Identifiers differ between the plots of a page, and stay the same from run to run.
    with plt.rc_context({"svg.hashsalt": f"plot-{next(_numbers)}"}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside a page this rule would reach every element; the plot's own stylesheet repeats it.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = _without_ballast(svg)
    for color in _DARK:
        svg = svg.replace(color, f"var(--plot-{color[1:]},{color})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", svg)).strip()


def _without_ballast(svg: str) -> str:
    """The drawing without what no reader of a page has a use for.

    Names that nothing refers to are the same in every plot, and a page must not have one twice. A
    hundredth of a point is less than a screen shows.
    """
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)

    def shorter(tag: re.Match) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])

    return re.sub(r"<(?:path|use|rect|text|tspan|g)\b[^>]*>", shorter, svg)
