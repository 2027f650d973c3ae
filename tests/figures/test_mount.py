"""Both ways a figure gets onto a page carry the same module and the same state."""

import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import traitlets

from figures import _mount
from figures._mount import (
    HERE,
    STATE,
    Figure,
    classic_script,
    link_traits,
    module_source,
    shared_script,
    static_html,
)
from figures.life_of_scores import LifeOfScores
from figures.sphinx_extension import figure_classes, write_assets

CLASSES = figure_classes()
MODULES = sorted(path.stem for path in HERE.glob("[!_]*.mjs"))
# What a figure cannot do without: all others show something by themselves.
NEEDED = {
    "KernelTrace": {"runs": [{"name": "none", "tensors": [], "launches": [], "accesses": []}]}
}


def state_in(text):
    return json.loads(html.unescape(re.search(r'data-state="([^"]*)"', text)[1]))


def test_every_class_has_its_module_and_every_module_its_class():
    assert sorted(figure._module for figure in CLASSES.values()) == MODULES


@pytest.mark.parametrize("name", CLASSES)
def test_a_notebook_output_holds_the_static_mount_too(name):
    figure = CLASSES[name](**NEEDED.get(name, {}))
    data, _ = figure._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert state_in(data["text/html"]) == json.loads(json.dumps(figure.state()))
    assert figure._esm == module_source(figure._module)


def test_a_changed_state_is_what_the_next_output_holds():
    figure = LifeOfScores(sequence_length=1024)
    figure.head_dim = 128
    state = state_in(figure.static_html())
    assert (state["sequence_length"], state["head_dim"]) == (1024, 128)


def test_colab_gets_the_widget_alone(monkeypatch):
    monkeypatch.setattr(_mount, "in_colab", lambda: True)
    data, _ = LifeOfScores()._repr_mimebundle_()
    assert "text/html" not in data


def test_static_html_escapes_what_it_carries():
    text = static_html("module", "<b>&", {"name": "\"><script>alert('x')</script>"})
    assert "<script>" not in text and "<b>" not in text and text.count('">') == 2
    assert state_in(text) == {"name": "\"><script>alert('x')</script>"}


def test_without_javascript_it_says_what_it_shows():
    text = LifeOfScores().static_html()
    assert "bytes that standard attention's" in html.unescape(text)
    assert "needs JavaScript" in text


@pytest.mark.parametrize("module", MODULES)
def test_on_a_page_the_shared_script_comes_before_the_figures(module, tmp_path):
    scripts = {"_shared.js": shared_script(), "figure.js": classic_script(module)}
    for (name, script), limit in zip(scripts.items(), (30_000, 60_000), strict=True):
        assert not re.search(r"^(import|export)\b", script, re.M)
        assert len(script.encode()) <= limit
        (tmp_path / name).write_text(script, "utf-8")
    if node := shutil.which("node"):
        run = 'require("./_shared.js"); require("./figure.js");'
        tell = f"process.stdout.write(typeof bookFigures[{json.dumps(module)}].render)"
        answer = subprocess.run(
            [node, "-e", run + tell], cwd=tmp_path, capture_output=True, text=True
        )
        assert answer.stdout == "function", answer.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_figure_holds_nothing_of_what_is_shared(module):
    first_words = "What every figure of the book shares"
    assert first_words in shared_script() and first_words in module_source(module)
    assert first_words not in classic_script(module)


@pytest.mark.parametrize("source", ["const a = 1;", 'import a from "./a.mjs";\nexport default {};'])
def test_a_module_that_cannot_be_mounted_is_refused(source, tmp_path, monkeypatch):
    (tmp_path / "_shared.mjs").write_text("", "utf-8")
    (tmp_path / "broken.mjs").write_text(source, "utf-8")
    monkeypatch.setattr(_mount, "HERE", tmp_path)
    with pytest.raises(ValueError, match="broken.mjs must"):
        classic_script("broken")


@pytest.mark.parametrize("name", CLASSES)
def test_a_link_may_set_every_trait_but_what_the_figure_shows(name):
    traits = set(CLASSES[name].class_trait_names(figure=True))
    assert traits - set(link_traits(CLASSES[name])) <= {"gpus", "runs"}


def test_a_link_may_say_what_the_traits_accept():
    class Example(Figure):
        size = traitlets.Enum(range(1, 4), 1).tag(**STATE)
        causal = traitlets.Bool().tag(**STATE)
        step = traitlets.Int(0, max=7).tag(**STATE)
        run = traitlets.Unicode().tag(**STATE)
        runs = traitlets.List().tag(**STATE)
        private = traitlets.Int(0)

    assert link_traits(Example) == {
        "size": {"values": [1, 2, 3]},
        "causal": {"values": [False, True]},
        "step": {"low": 0, "high": 7},
        "run": {"namesOf": "runs"},
    }


def test_the_site_gets_every_script_that_its_figures_load(tmp_path):
    site = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    write_assets(site, None)
    found = {path.stem for path in (tmp_path / "_static" / "figures").glob("*.js")}
    assert found == {"mount", "save_drawing", "_shared", *MODULES}
