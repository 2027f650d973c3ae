"""The pages there are to test, known before anything is built."""

from pathlib import Path

import yaml

from scripts.build_book import ROOT


def pages_of(toc_file: Path) -> list[str]:
    toc = yaml.safe_load(toc_file.read_text("utf-8"))
    files = [toc["root"]] + [chapter["file"] for chapter in toc["chapters"]]
    return [file.removesuffix(".ipynb") + ".html" for file in files] + ["search.html"]


PAGES = [("book", page) for page in pages_of(ROOT / "_toc.yml")]
PAGES += [("specimen", page) for page in pages_of(Path(__file__).parent / "specimen" / "_toc.yml")]
