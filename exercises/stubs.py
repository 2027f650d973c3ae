"""The stub a learner starts from, made from the solution.

In ``solution.py`` what a learner is to write stands between two marks. Lines that begin with ``###`` right
after the first say what to write there; they are all that the stub keeps::

    ### BEGIN SOLUTION
    ### add the two numbers.
    return left + right
    ### END SOLUTION

becomes, in a function and in a kernel::

    # Your turn: add the two numbers.         # Your turn: add the two numbers.
    raise NotImplementedError("...")          pass
"""

import ast
import re

from exercises.catalogue import Exercise, ExerciseError

_REGION = re.compile(
    r"^(?P<indent> *)### BEGIN SOLUTION\n"
    r"(?P<task>(?: *### (?!BEGIN|END).*\n)+)"
    r"(?:(?! *###).*\n)+"
    r" *### END SOLUTION\n",
    re.MULTILINE,
)


def stub(exercise: Exercise) -> str:
    """The text of ``stub.py``."""
    text = exercise.read("solution.py")
    tree = ast.parse(text)

    def unwritten(region: re.Match) -> str:
        function = _enclosing_function(tree, text.count("\n", 0, region.start()) + 1)
        task = re.sub(r"^ *### ", "", region["task"], flags=re.MULTILINE).splitlines()
        lines = [f"# Your turn: {task[0]}", *(f"# {line}" for line in task[1:])]
        if _is_kernel(function):
            # A kernel that raises would not compile, and hide what is wrong with the launcher.
            lines.append("pass")
        else:
            lines.append(f'raise NotImplementedError("{function.name} is not written yet")')
        return "".join(f"{region['indent']}{line}\n" for line in lines)

    result, regions = _REGION.subn(unwritten, text)
    if regions == 0 or "###" in result:
        raise ExerciseError(
            f"{exercise.folder / 'solution.py'} must have ### BEGIN SOLUTION, ### lines that say what "
            "to write, the code, and ### END SOLUTION, once or more."
        )
    title = f'"""{exercise.title}: the file to write your solution in."""'
    return result.replace(_docstring(tree, text), title, 1)


def without_marks(text: str) -> str:
    """A solution as a reader sees it."""
    return re.sub(r"^ *###.*\n", "", text, flags=re.MULTILINE)


def _enclosing_function(tree: ast.Module, line: int) -> ast.FunctionDef:
    return next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    )


def _is_kernel(function: ast.FunctionDef) -> bool:
    decorators = map(ast.unparse, function.decorator_list)
    return any("triton.jit" in one or "gluon.jit" in one for one in decorators)


def _docstring(tree: ast.Module, text: str) -> str:
    return ast.get_source_segment(text, tree.body[0])
