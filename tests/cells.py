"""Functions as a notebook's kernel has them: in `__main__`, with their text where it keeps it."""

import ast
import contextlib
import hashlib
import json
import linecache


def define(source, name="run"):
    namespace = {"__name__": "__main__"}
    exec(compile(source, _remember(source), "exec"), namespace)
    return namespace[name]


def _remember(source):
    file = f"<cell {hashlib.sha256(source.encode()).hexdigest()}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    return file


def definitions(path):
    """The namespace of a notebook's imports, definitions and literals, without running the rest."""
    namespace = {"__name__": "__main__"}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            tree = ast.parse(source)
            tree.body = [node for node in tree.body if _defines(node)]
            exec(compile(tree, _remember(source), "exec"), namespace)
    return namespace


def _defines(node):
    if isinstance(node, ast.Assign):
        with contextlib.suppress(ValueError):
            ast.literal_eval(node.value)
            return True
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return isinstance(node, kinds)


def experiments_of(path):
    """The calls of `lab.experiment` in a notebook: from each name to that of the function."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    calls = [
        n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "lab.experiment"
    ]
    return {call.args[0].value: call.args[1].id for call in calls}
