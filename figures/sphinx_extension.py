"""Sphinx extension: ships the figures' scripts with the site: no CDN."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from figures._mount import HERE, Figure, classic_script, shared_script


def figure_classes() -> dict[str, type[Figure]]:
    """Every figure's class by its name: that of the module beside each script."""
    classes = {}
    for script in sorted(HERE.glob("[!_]*.mjs")):
        module = importlib.import_module(f"figures.{script.stem}")
        for name, value in vars(module).items():
            if isinstance(value, type) and vars(value).get("_module") == script.stem:
                classes[name] = value
    return classes


class BookFigure(SphinxDirective):
    """```{book-figure} LifeOfScores``` with a JSON body: a figure on a page without code cells."""

    required_arguments = 1
    has_content = True

    def run(self):
        name, classes = self.arguments[0], figure_classes()
        if name not in classes:
            raise self.error(f"There is no figure {name!r}; there are {', '.join(classes)}.")
        try:
            figure = classes[name](**json.loads("\n".join(self.content) or "{}"))
        except Exception as problem:
            raise self.error(f"{name}: {problem}") from problem
        return [nodes.raw("", figure.static_html(), format="html")]


def write_assets(app: Sphinx, exception: Exception | None) -> None:
    # After the build and not through html_static_path: Jupyter Book puts every *.js below a static
    # path on every page as a script.
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    target = static / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for script in ("mount.js", "save_drawing.js"):
        shutil.copyfile(HERE / script, target / script)
    (target / "_shared.js").write_text(shared_script(), "utf-8")
    for module in HERE.glob("[!_]*.mjs"):
        (target / f"{module.stem}.js").write_text(classic_script(module.stem), "utf-8")


def has_figure(doctree: nodes.document | None) -> bool:
    if doctree is None:
        return False
    return any('class="book-figure"' in node.astext() for node in doctree.findall(nodes.raw))


def tidy_page(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Leaves out the scripts this page has no use for."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        body = attributes.get("body")
        if body is not None and body in seen:
            continue  # sphinx-thebe adds its `const` twice, which stops the page's scripts
        seen.add(body)
        if attributes.get("type") == "application/vnd.jupyter.widget-state+json":
            continue  # the figures carry their own state; nothing reads this
        if str(getattr(script, "filename", "")).endswith("figures/mount.js"):
            if not has_figure(doctree):
                continue
        kept.append(script)
    context["script_files"][:] = kept
    if "body" in context:
        # docutils' bibliography has a role="list" whose children are no list items, and the
        # entries' role is deprecated: screen readers lose both.
        body = context["body"].replace('<div role="list" class="citation-list">', "<div>")
        context["body"] = body.replace(' role="doc-biblioentry"', "")


def setup(app: Sphinx) -> dict:
    app.add_directive("book-figure", BookFigure)
    app.connect("build-finished", write_assets)
    # Late: after the extensions that add the scripts.
    app.connect("html-page-context", tidy_page, priority=900)
    app.add_js_file("figures/mount.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
