"""What a reader of a submission would look at twice: flags for a person, which cost no points."""

import ast
import warnings
from collections.abc import Iterator

from grading.assignment import Assignment

_LARGEST = 1 << 18
# Computing with PyTorch what the kernels should: products, softmax, and everything that calls them.
_LIBRARY = {
    "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "tensordot", "dot", "inner", "softmax",
    "log_softmax", "logsumexp", "exp", "exp2", "scaled_dot_product_attention", "cumsum", "logaddexp",
    "compile",
}  # fmt: skip
_REFLECTION = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "globals",
    "vars",
    "getattr",
    "setattr",
    "delattr",
    "open",
}
_INSPECTION = {
    "__globals__",
    "__subclasses__",
    "__builtins__",
    "__code__",
    "__dict__",
    "__setattr__",
    "__wrapped__",
    "f_back",
    "f_globals",
    "gi_frame",
    "modules",
    # How a kernel learns whether it is interpreted.
    "knobs",
    "InterpretedFunction",
    "JITFunction",
}
_ALLOWED_IN_KERNELS = {
    "tl", "gl", "gluon", "hopper", "triton", "range", "min", "max", "float", "int", "bool", "len", "abs",
    "tuple", "isinstance", "print",
}  # fmt: skip


def suspicions(assignment: Assignment, text: str) -> list[str]:
    """One sentence for each thing that a person should look at."""
    if len(text) > _LARGEST:
        return ["the file is very large"]
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of what the text says, which nobody runs here
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [*_imports(tree, assignment), *_reflection(tree), *_patches(tree)]
    if assignment.kernels:
        kernels = [node for node in ast.walk(tree) if _is_kernel(node)]
        names = {kernel.name for kernel in kernels}
        missing = [name for name in assignment.kernels if name not in names]
        if missing:
            found.append(f"there is no kernel {', '.join(missing)}")
        found += _library_calls(tree, kernels)
        found += [sentence for kernel in kernels for sentence in _foreign(tree, kernel)]
    return sorted(set(found))[:20]


def _is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        "jit" in _text(decorator) or "constexpr" in _text(decorator)
        for decorator in node.decorator_list
    )


def _text(node: ast.AST) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return ""


def _imports(tree: ast.Module, assignment: Assignment) -> Iterator[str]:
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        for name in names:
            if name not in assignment.allowed_imports:
                yield f"it imports {name[:60]}, which the exercise does not list (line {node.lineno})"


def _reflection(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in _REFLECTION:
                yield f"it calls {node.func.id} (line {node.lineno})"
        if isinstance(node, ast.Attribute) and node.attr in _INSPECTION:
            yield f"it looks at {node.attr} (line {node.lineno})"


def _patches(tree: ast.Module) -> Iterator[str]:
    """Assignments to what belongs to a library."""
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            foreign |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif (
            isinstance(node, ast.Assign) and _root(node.value) in foreign
        ):  # it goes by another name
            foreign |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if _root(node) in foreign:
                yield f"it changes {_text(node)[:60]} (line {node.lineno})"


def _root(node: ast.AST) -> str | None:
    """The name that an expression like ``name.of.something`` begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _library_calls(tree: ast.Module, kernels: list[ast.FunctionDef]) -> Iterator[str]:
    inside = {id(node) for kernel in kernels for node in ast.walk(kernel)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Attribute) and node.attr in _LIBRARY and _text(node.value) != "tl":
            yield f"it uses {node.attr} outside a kernel (line {node.lineno})"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield f"it multiplies matrices with @ outside a kernel (line {node.lineno})"


def _foreign(tree: ast.Module, kernel: ast.FunctionDef) -> Iterator[str]:
    """Names that a kernel uses and that are neither its own, nor Triton's, nor another kernel's."""
    arguments = kernel.args
    own = {a.arg for a in (*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs)}
    own |= {
        n.id for n in ast.walk(kernel) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    defined = {n.name for n in tree.body if _is_kernel(n) or isinstance(n, ast.ClassDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            defined |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    for statement in kernel.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                if node.id not in own | defined | _ALLOWED_IN_KERNELS:
                    yield f"the kernel {kernel.name} uses {node.id[:60]} (line {node.lineno})"
