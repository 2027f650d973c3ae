"""How a figure gets onto a page: live in a notebook, or mounted by the page itself.

Each figure is one JavaScript module (`NAME.mjs`) that exports `default {render({model, el})}` and
asks nothing of Python but its state. In a running notebook anywidget gives the module its model.
On the built site there is no kernel: the figure's output also holds a `<div>` with the same state,
and `mount.js` gives the module a small model of its own.

What all figures share is in `_shared.mjs`. A notebook gets its text before the figure's own; a page
loads it once, as a script of its own, and each figure's script takes the shared names from there.
"""

from __future__ import annotations

import html
import importlib
import json
import re
from pathlib import Path

import anywidget
import traitlets
from anywidget._util import in_colab

HERE = Path(__file__).parent

# The tags of a trait that belongs to a figure's state: traitlets.Int().tag(**STATE)
STATE = {"sync": True, "figure": True}


def module_source(name: str) -> str:
    """The figure's ES module, shared helpers included: what anywidget runs."""
    shared = (HERE / "_shared.mjs").read_text("utf-8")
    return shared + "\n" + (HERE / f"{name}.mjs").read_text("utf-8")


def shared_script() -> str:
    """`_shared.mjs` as a classic script, which also runs from file://: sets `bookShared`."""
    source = (HERE / "_shared.mjs").read_text("utf-8")
    return as_function(f"{source}\nglobalThis.bookShared = {{ {', '.join(shared_names())} }};")


def shared_names() -> list[str]:
    source = (HERE / "_shared.mjs").read_text("utf-8")
    return re.findall(r"^export (?:function|const) (\w+)", source, re.M)


def classic_script(name: str) -> str:
    """The figure's own module as a classic script, to run after `shared_script`: sets
    `bookFigures[name]`."""
    source = (HERE / f"{name}.mjs").read_text("utf-8")
    if len(re.findall(r"^export default ", source, re.M)) != 1:
        raise ValueError(
            f"{name}.mjs must have exactly one `export default` at the start of a line."
        )
    if re.search(r"^import\b", source, re.M):
        raise ValueError(f"{name}.mjs must not import: the names of _shared.mjs are there already.")
    target = f"(globalThis.bookFigures ??= {{}})[{json.dumps(name)}] = "
    source = re.sub(r"^export default ", target, source, flags=re.M)
    figure = figure_class(name)
    link = {"name": figure.__name__, "traits": link_traits(figure)}
    source += f"\nbookFigures[{json.dumps(name)}].link = {json.dumps(link)};"
    return as_function(f"const {{ {', '.join(shared_names())} }} = bookShared;\n{source}")


def figure_class(name: str) -> type[Figure]:
    """The class beside `NAME.mjs`."""
    values = vars(importlib.import_module(f"figures.{name}")).values()
    return next(v for v in values if isinstance(v, type) and vars(v).get("_module") == name)


def link_traits(figure: type[Figure]) -> dict[str, dict]:
    """What a link may say about each trait, as `mount.js` checks it. Other traits are not for links:
    they hold what a figure shows, like recorded runs."""
    found = {}
    for name, trait in figure.class_traits(figure=True).items():
        if "link" in trait.metadata:
            found[name] = trait.metadata["link"]
        elif isinstance(trait, traitlets.Enum):
            found[name] = {"values": list(trait.values)}
        elif isinstance(trait, traitlets.Bool):
            found[name] = {"values": [False, True]}
        elif isinstance(trait, traitlets.Int):
            # The figure itself stops a step at its last one, which depends on the other traits.
            found[name] = {"low": trait.min or 0, "high": trait.max}
        elif isinstance(trait, traitlets.Unicode):
            found[name] = {"namesOf": f"{name}s"}  # a gpu is one of the gpus, a run of the runs
    return found


def as_function(source: str) -> str:
    """A module's text as a script that leaves no names behind."""
    source = re.sub(r"^export (?=function|const|class)", "", source, flags=re.M)
    return f"(() => {{\n{source}\n}})();\n"


def static_html(module: str, alternative: str, state: dict) -> str:
    """The mount point of a page without a kernel; without JavaScript it reads as `alternative`."""
    attribute = html.escape(json.dumps(state, sort_keys=True), quote=True)
    return (
        f'<div class="book-figure" data-figure="{html.escape(module)}" data-state="{attribute}">'
        f'<p class="book-figure-alternative"><em>{html.escape(alternative)} It needs JavaScript: '
        "open it on the book's website, or run this notebook.</em></p></div>"
    )


class Figure(anywidget.AnyWidget):
    """A figure of the book. Subclasses set `_module` and `_alternative` and tag their traits
    with `STATE`; those traits are the figure's whole state."""

    _module: str
    _alternative: str

    def __init_subclass__(cls, **kwargs):
        # Not again for the subclass that traitlets makes of every widget: there `_esm` is a trait.
        if "_module" in vars(cls):
            cls._esm = module_source(cls._module)
        super().__init_subclass__(**kwargs)

    def __init__(self, **state):
        names = self.class_trait_names(figure=True)
        if unknown := sorted(set(state) - set(names)):
            raise TypeError(
                f"{type(self).__name__} has no option {unknown[0]!r}; it takes {', '.join(names)}."
            )
        super().__init__(**state)

    def state(self) -> dict:
        return {name: getattr(self, name) for name in self.trait_names(figure=True)}

    def static_html(self) -> str:
        return static_html(self._module, self._alternative, self.state())

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        # Colab shows text/html in preference to a widget, and there is no mount.js there.
        if bundle is None or in_colab():
            return bundle
        data, metadata = bundle
        return {**data, "text/html": self.static_html()}, metadata
