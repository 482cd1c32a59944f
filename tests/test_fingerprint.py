"""The fingerprint of code changes with what a run computes, and with nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cells import define

from lab import fingerprint as module
from lab.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = """
import functools
import numpy as np
from utils import gradient_loss_objective
FACTOR = 2.0
SIZES = {"hidden": [128, None], "names": ("a", b"b")}
def helper(value):
    return value + 1
class Shift:
    factor = 1
    @property
    def scale(self):
        return 1
    @staticmethod
    def check(value):
        return value
    def apply(self, value):
        return self.check(value * self.factor * self.scale)
def subtract(left, right):
    return left - right - 1
@functools.cache
def table(n):
    return n
def make(offset):
    def inner(value):
        return value + offset
    return inner
add = make(0)
double = make(2)
def ping(n):
    return pong(n - 1) if n else 0
def pong(n):
    return ping(n - 1) if n else 1
def run(value=1):
    '''A docstring.'''
    # A comment.
    squared = np.square(double(add(Shift().apply(helper(value)))))
    inside = [FACTOR * each for each in range(table(3))]
    return sum(inside) + (lambda: 0)() + subtract(left=1, right=0) + SIZES["hidden"][0] + ping(2)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("[128, None]", "[128, 0]"),
        ("return value + 1", "return value + 2"),
        ("factor = 1", "factor = 2"),
        ("        return 1\n", "        return 2\n"),
        ("        return value\n", "        return 2 * value\n"),
        ("(left, right):\n    return left - right", "(right, left):\n    return right - left"),
        ("return n\n", "return -n\n"),
        ("add = make(0)", "add = make(1)"),
        ("double = make(2)", "double = make(3)"),
        ("value=1", "value=2"),
        ("lambda: 0", "lambda: 1"),
        ("np.square", "np.sqrt"),
        ("if n else 0", "if n else 2"),
        ("if n else 1", "if n else 2"),
        ("@functools.cache\n", ""),
        ("import numpy as np", "import math as np"),
    ],
)
def test_changes_with_the_code(old, new):
    assert old in NOTEBOOK
    assert fingerprint(define(NOTEBOOK)) != fingerprint(define(NOTEBOOK.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.", "# Another.\n"),
        ("A docstring", "Other words"),
        ("    '''A docstring.'''\n", ""),
        ("FACTOR = 2.0", "\n\nUNUSED = 7\nFACTOR = 2.0"),
        ("value * self.factor", "(value  *  self.factor)"),
    ],
)
def test_stays_the_same_where_code_only_looks_different(old, new):
    assert old in NOTEBOOK
    assert fingerprint(define(NOTEBOOK)) == fingerprint(define(NOTEBOOK.replace(old, new)))


def test_an_import_inside_of_a_function_counts():
    source = "def run():\n    from lab.data import load_mnist\n    return load_mnist()\n"
    modules = {}
    module._describe(define(source), "run", {}, modules)
    assert set(modules) == {"lab.data"}


def test_of_two_functions_that_call_each_other_each_sees_the_other():
    changed = NOTEBOOK.replace("if n else 1", "if n else 2")
    for order in (("ping", "pong"), ("pong", "ping")):
        first, second = (
            [fingerprint(define(s, name)) for name in order] for s in (NOTEBOOK, changed)
        )
        assert len({*first, *second}) == 4
    assert fingerprint(define(NOTEBOOK, "pong")) == fingerprint(define(NOTEBOOK, "pong"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("FACTOR = np.ones(3)", "FACTOR is a ndarray"),
        ("FACTOR = {1, 2}", "FACTOR is a set"),
        ("FACTOR = [np.float64(1)]", "FACTOR is a list"),
        ("FACTOR = {'square': np.square}", "FACTOR is a dict"),
        ("FACTOR = functools.partial(helper, 1)", "FACTOR is a partial"),
        ("FACTOR = Shift().apply", "FACTOR is a method"),
        ("FACTOR = make(np.ones(3))", "offset is a ndarray"),
    ],
)
def test_a_value_whose_changes_would_go_unnoticed_is_named(line, named):
    with pytest.raises(TypeError, match=f"{named}, whose .*make it a literal"):
        fingerprint(
            define(
                NOTEBOOK.replace("import numpy as np\n", "import numpy as np\nS = 1\n").replace(
                    "def run", f"{line}\ndef run"
                )
            )
        )


def definition(*lines):
    return define("\n".join([*lines, "def run(value=1):", "    return use(value)"]))


DEFAULT = ["def use(x, s=S):", "    return s"]
ATTRIBUTE = ["class use:", "    s = S", "    def f(self):", "        return self.s"]
FACTORY = ["def make(k):", "    def f(x, k=k):", "        return k", "    return f"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["S = 2", *DEFAULT], ["S = 1", *DEFAULT, "S = 2"]),
        (["S = 2", *ATTRIBUTE], ["S = 1", *ATTRIBUTE, "S = 2"]),
        ([*FACTORY, "use = make(1)"], [*FACTORY, "use = make(2)"]),
    ],
)
def test_a_value_that_a_definition_took_counts_and_not_what_its_name_means_now(one, other):
    assert fingerprint(definition(*one)) != fingerprint(definition(*other))


def test_what_a_call_wrapped_is_refused():
    lines = ["import functools", "def base(x):", "    return x", "def twice(f):"]
    lines += ["    @functools.wraps(f)", "    def g(x):", "        return 2 * f(x)", "    return g"]
    with pytest.raises(TypeError, match="use is base, wrapped by a call; decorate it with @"):
        fingerprint(definition(*lines, "use = twice(base)"))


def test_a_module_that_is_reached_through_its_package_counts():
    modules = {}
    source = "import lab, lab.data\ndef run():\n    return lab.data.load_mnist()\n"
    module._describe(define(source), "run", {}, modules)
    assert set(modules) == {"lab.data"}


def test_an_objective_is_told_by_the_values_that_it_holds():
    source = NOTEBOOK.replace(
        "double = make(2)", "double = gradient_loss_objective(helper, (1, 2))"
    )
    other = source.replace("(1, 2)", "(1, 3)")
    assert fingerprint(define(source)) != fingerprint(define(other))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules of a project, in a folder whose name looks like that of the libraries."""
    folder = tmp_path / "my-packages" / "project"
    folder.mkdir(parents=True)
    (folder / "its_module.py").write_text(
        "from its_helper import two\ndef factor():\n    return 1\n"
    )
    (folder / "its_helper.py").write_text("def two():\n    return 2\n")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("its_module", "its_helper"):
        sys.modules.pop(name, None)
    module._is_library.cache_clear()
    module._texts.clear()


@pytest.mark.parametrize("file", ["its_module.py", "its_helper.py"])
def test_changes_with_a_module_outside_of_the_libraries_and_with_those_it_imports(package, file):
    source = "import its_module\ndef run():\n    return its_module.factor()\n"
    before = fingerprint(define(source))
    text = (package / file).read_text()
    (package / file).write_text(f"# A comment.\n{text}")
    with pytest.raises(RuntimeError, match=f"{file} was edited since .* Restart the kernel"):
        fingerprint(define(source))
    module._texts.clear()
    assert fingerprint(define(source)) == before
    (package / file).write_text(text.replace("return", "return 5 *"))
    module._texts.clear()
    assert fingerprint(define(source)) != before


def test_changes_with_the_modules_of_lab_but_not_with_those_that_report(tmp_path):
    """In a clone of its own whose path contains the name of the folder of the libraries."""
    clone = tmp_path / "site-packages-of-mine"
    shutil.copytree(ROOT / "lab", clone / "lab")
    shutil.copy(ROOT / "utils.py", clone)
    (clone / "cell.py").write_text(
        "import lab\nfrom lab.fingerprint import fingerprint\n\n\ndef run():\n"
        "    from lab.reporting import plus_minus\n    from lab.training import train\n"
        "    return plus_minus(train(lab.sweep))\n\n\nprint(fingerprint(run))\n"
    )

    def print_fingerprint():
        command = [sys.executable, "cell.py"]
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        run = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    before = print_fingerprint()
    for name, counts in (("sweeps", False), ("reporting", False), ("training", True)):
        with (clone / "lab" / f"{name}.py").open("a") as file:
            file.write("\n\nADDED = 1\n")
        assert (print_fingerprint() != before) == counts, name
        before = print_fingerprint()
    with (clone / "utils.py").open("a") as file:
        file.write("\n\nADDED = 1\n")
    assert print_fingerprint() != before


def pythons():
    yield sys.executable
    for name in ("3.11", "3.12", "3.13"):
        path = shutil.which(f"python{name}")
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            yield path


def test_a_syntax_tree_is_the_same_text_in_all_pythons(tmp_path):
    """Each has only its standard library, so lab.fingerprint is loaded by its path."""
    source = ROOT / "lab" / "training.py"
    program = (
        "import ast, importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('fingerprint', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        'extra = \'f"{x!r:>{width}} {y=}"; x = u"a"\'\n'
        "print(module._dump(ast.parse(pathlib.Path(sys.argv[2]).read_text() + extra)))\n"
    )
    arguments = ["-c", program, module.__file__, str(source)]
    dumps = {
        subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
        for path in set(pythons())
    }
    assert len(dumps) == 1
    assert "train" in dumps.pop()


def test_what_has_no_source_is_named():
    namespace = {"__name__": "__main__"}
    exec("def run():\n    return 1", namespace)
    with pytest.raises(TypeError, match="source of run can't be found; write it with `def`"):
        fingerprint(namespace["run"])
    with pytest.raises(TypeError, match="is a ndarray"):
        fingerprint(np.ones(2))
