"""A progress bar for work that somebody waits for."""

from collections.abc import Iterable

from tqdm.auto import tqdm

PATIENCE_SECONDS = 2.0


def progress(items: Iterable, what: str) -> tqdm:
    """The items, with a bar once they have taken :data:`PATIENCE_SECONDS`, which goes when they end.

    In a notebook it is a widget, which ``scripts.notebooks`` does not record; elsewhere a line of stderr.
    """
    return tqdm(items, desc=what, delay=PATIENCE_SECONDS, leave=False)
