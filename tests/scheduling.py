"""Which tests stay together on one of pytest-xdist's workers, and which are handed out first.

By their files, because a group that a test is marked with is told from the test's name alone, and
pytest-xdist 3.8 no longer gets it into the names of pytest 9.2: its groups come apart without a word.
"""

from xdist.scheduler import LoadScopeScheduling

# Each is run by one worker from beginning to end, as its tests share something that takes long to make.
# They come before all others, in this order: the longest last to the end of a run if they start late.
TOGETHER = (
    "tests/serving/test_server.py",
    "tests/site/",
    "tests/kernels/test_flash3_compile.py",
    "tests/kernels/test_fp8_compile.py",
    "tests/kernels/test_paged_compile.py",
    "tests/grading/test_slurm.py",
    "tests/grading/test_course.py",
    "tests/grading/test_exercises.py",
    "tests/grading/test_gradescope.py",
    "tests/benchmarks/test_softmax_cost.py",
    "tests/exercises/test_gluon_exercises.py",
)
# Many seconds each, so that none of them should be the last.
EARLY = ("tests/test_chapters.py", "tests/instruments/test_compile_report.py")


def work_unit(name: str) -> str:
    """What is handed to a worker as a whole: a test, or the files it stays together with."""
    return next((files for files in TOGETHER if name.startswith(files)), name)


def turn(name: str) -> int:
    """Tests with smaller numbers are handed out earlier."""
    order = TOGETHER + EARLY
    return next((n for n, files in enumerate(order) if name.startswith(files)), len(order))


class Scheduling(LoadScopeScheduling):
    """Hands out work units in the order in which the workers have put the tests."""

    def __init__(self, config, log=None):
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return work_unit(nodeid)
