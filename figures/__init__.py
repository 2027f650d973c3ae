"""The book's interactive figures. Each also works on a page without a kernel; see `_mount.py`."""

from figures.io_explorer import IOExplorer
from figures.life_of_scores import LifeOfScores
from figures.online_softmax import OnlineSoftmax
from figures.program_scheduler import ProgramScheduler
from figures.tile_stepper import TileStepper

__all__ = ["IOExplorer", "LifeOfScores", "OnlineSoftmax", "ProgramScheduler", "TileStepper"]
