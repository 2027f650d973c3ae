"""The icons' fonts: what a site shows stays, the rest goes."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import TTFont
from fontTools.ttLib.tables._g_l_y_f import Glyph
from sphinx.errors import ExtensionError

from scripts import sphinx_icons

SUN, HOUSE, NOTE, BELL = "\uf185", "\uf015", "\uf303", "\uf0f3"
FACE = (
    '@font-face{font-family:"Icons";src:url(../fonts/fa-solid-900.woff2) format("woff2"),'
    'url(../fonts/fa-solid-900.ttf) format("truetype")}'
)
STYLE = (
    FACE + r'.fa-sun:before{content:"\f185"}.fa-home:before,.fa-house:before{content:"\f015"}'
    r'.fa-bell:before{content:"\f0f3"}.fa-plus:before{content:"\2b "}'
    r':root{--note:"\f303"}.other:before{content:"abc"}'
)


def test_a_rule_stays_if_one_of_its_names_is_used():
    left = sphinx_icons.only_used(STYLE, {"fa-house", "fa-sun-bright"})
    assert ".fa-home:before,.fa-house:before{" in left and "--note" in left
    assert ".fa-sun:" not in left and ".fa-plus:" not in left


def test_icons_are_characters_of_used_rules_and_those_of_private_use():
    left = sphinx_icons.only_used(STYLE, {"fa-plus", "fa-sun"})
    assert sphinx_icons.characters([left, f".raw{{content:'{BELL}'}}"]) == {SUN, "+", NOTE, BELL}


def test_names_are_found_in_pages_and_in_scripts():
    page, script = '<i class="fas fa-sun fa-lg"></i>', 'button.classList.add("fa-house")'
    assert sphinx_icons.used_names([page, script]) == {"fa-sun", "fa-lg", "fa-house"}


def write_font(path):
    characters = {"sun": SUN, "house": HOUSE, "note": NOTE, "bell": BELL}
    names = [".notdef", *characters]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(each): name for name, each in characters.items()})
    builder.setupGlyf({name: Glyph() for name in names})
    builder.setupHorizontalMetrics({name: (500, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Icons", "licenseDescription": "A licence"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_a_site_keeps_the_icons_it_shows_and_the_fonts_licence(tmp_path):
    style, fonts = tmp_path / sphinx_icons.STYLE, tmp_path / "_static/fonts"
    style.parent.mkdir(parents=True)
    fonts.mkdir()
    style.write_text(STYLE)
    (tmp_path / "index.html").write_text('<i class="fa-solid fa-sun"></i>')
    (tmp_path / "_static" / "ours.js").write_text('show("fa-house")')
    (tmp_path / "_static" / "fontawesome.js").write_text('"fa-bell"')
    write_font(fonts / "fa-solid-900.ttf")
    (fonts / "fa-solid-900.woff2").touch()
    sphinx_icons.cut_icons(tmp_path)
    assert [path.name for path in fonts.iterdir()] == ["fa-solid-900.woff"]
    assert 'src:url(../fonts/fa-solid-900.woff) format("woff")' in style.read_text()
    with TTFont(fonts / "fa-solid-900.woff") as font:
        assert set(font.getBestCmap()) == {ord(SUN), ord(HOUSE), ord(NOTE)}
        assert font["name"].getDebugName(13) == "A licence"


def test_another_theme_is_an_error_and_not_a_page_without_icons(tmp_path):
    style = tmp_path / sphinx_icons.STYLE
    style.parent.mkdir(parents=True)
    style.write_text("body{color:red}")
    with pytest.raises(ExtensionError, match="names no icon fonts as WOFF2 and TrueType"):
        sphinx_icons.cut_icons(tmp_path)
