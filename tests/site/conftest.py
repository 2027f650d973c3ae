"""The built sites, and a browser that can reach nothing but them.

Two sites are looked at: the book itself, and a specimen, whose small pages hold everything a page
can hold, so that what the site can show is tested whatever the chapters show today.
"""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import nbformat
import pytest

from figures.life_of_scores import LifeOfScores
from scripts.build_book import ROOT, bring_mathjax, build

HERE = Path(__file__).parent
BOOK = ROOT / "_build" / "html"
SOURCES = ("book", "figures", "instruments", "scripts", "benchmarks/results", "CITATION.cff")
SOURCES += ("_config.yml", "_toc.yml", "package-lock.json")
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


def newest_change(paths):
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return max(file.stat().st_mtime for file in files if "__pycache__" not in file.parts)


@pytest.fixture(scope="session")
def book_site():
    """The book's site, built if there is none or if its sources are newer."""
    bring_mathjax(ROOT)
    index = BOOK / "index.html"
    if not index.is_file() or index.stat().st_mtime < newest_change([ROOT / s for s in SOURCES]):
        build(ROOT)
    return BOOK


def specimen_notebook():
    """A chapter as it is recorded: a figure, an inline plot, and two outputs that are too wide."""
    data, metadata = LifeOfScores()._repr_mimebundle_()
    plot = (
        '<svg class="plot" viewBox="0 0 300 90" role="img" aria-label="A line">'
        '<path d="M0 80 L300 10" fill="none" stroke="currentColor"/></svg>'
    )
    table = "<table><tr>" + "<td>1_000_000_000_bytes</td>" * 12 + "</tr></table>"
    new_output, code = nbformat.v4.new_output, nbformat.v4.new_code_cell
    outputs = [
        new_output("execute_result", data, metadata=metadata, execution_count=1),
        new_output("execute_result", {"text/html": plot, "text/plain": "plot"}, execution_count=2),
        new_output("stream", text="wide " * 80),
        new_output(
            "execute_result", {"text/html": table, "text/plain": "table"}, execution_count=4
        ),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# A recorded notebook\n\nText."),
        code("LifeOfScores()"),
    ]
    cells += [code("plot()"), nbformat.v4.new_markdown_cell("(wide-output)=\n## Wide output")]
    cells += [code("print('wide ' * 80)"), code("table()")]
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    for count, (cell, output) in enumerate(zip(code_cells, outputs, strict=True), 1):
        cell.outputs, cell.execution_count = [output], count
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture(scope="session")
def specimen_site(tmp_path_factory):
    bring_mathjax(ROOT)
    root = tmp_path_factory.mktemp("specimen")
    shutil.copytree(HERE / "specimen", root, dirs_exist_ok=True)
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    shutil.copyfile(ROOT / "book" / "references.bib", root / "book" / "references.bib")
    shutil.copyfile(ROOT / "_config.yml", root / "_config.yml")
    nbformat.write(specimen_notebook(), root / "book" / "notebook.ipynb")
    return build(root)


@pytest.fixture(scope="session")
def site(request):
    """site("book"), site("specimen"): the folder of a built site."""
    return lambda name: request.getfixturevalue(f"{name}_site")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def address(site):
    """address("book"): where that site is served on this machine."""
    servers = {}

    def serve(name):
        if name not in servers:
            handler = functools.partial(QuietHandler, directory=str(site(name)))
            servers[name] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=servers[name].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[name].server_port}"

    yield serve
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="package")
def browser():
    """Closed after the last of these tests: as long as it lives, its event loop runs."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    blocked = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", blocked])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """new_page(width=..., color_scheme=..., ...): a page; the test fails if anything on it did."""
    contexts, problems = [], []

    def make(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: note_outside(request.url))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("response", lambda response: note_status(response))
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.on("console", lambda message: note_console(message))
        return page

    def note_outside(url):
        if not url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            problems.append(f"outside: {url}")

    def note_status(response):
        if response.status >= 400:
            problems.append(f"{response.status}: {response.url}")

    def note_console(message):
        if message.type == "error":
            problems.append(f"console: {message.text}")

    yield make
    for context in contexts:
        context.close()
    assert problems == []
