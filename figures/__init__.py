"""The book's interactive figures, a module each: ``from figures.life_of_scores import LifeOfScores``.

Each also works on a page without a kernel; see ``_mount.py``. Nothing is imported here, so that a chapter
depends on its own figure alone.
"""
