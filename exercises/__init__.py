"""The book's exercises, one folder each, and the checker for those who learn by themselves.

    import exercises

    exercises.show("row_softmax")                   the statement
    exercises.check("row_softmax", ragged_softmax)  run the public tests on your function
    exercises.solution("row_softmax")               a solution, folded away

In a terminal, ``python -m exercises`` checks a file.
"""

import kernels  # noqa: F401 - first: it decides where Triton kernels run
from exercises.catalogue import ExerciseError
from exercises.display import show, solution
from exercises.practice import check

__all__ = ["ExerciseError", "check", "show", "solution"]
