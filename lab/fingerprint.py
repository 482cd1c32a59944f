"""Fingerprints of code: what a result was computed with, whatever its comments and layout.

A fingerprint is the same in all supported Pythons, and whether the functions of a notebook live in
its kernel or were defined from its cells.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import linecache
import site
import symtable
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# These arrange runs and report them; what a run computes doesn't depend on them.
WITHOUT_RESULTS = {"lab", "lab.experiments", "lab.fingerprint", "lab.reporting", "lab.sweeps"}
LIBRARIES = [
    Path(folder).resolve()
    for folder in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
]


# What each module was when its fingerprint was first taken in this process.
_texts = {}


def fingerprint(function: Callable) -> str:
    """Hash the code that a call of `function` reaches, as 64 hexadecimal digits.

    That is its own syntax tree, that of each function and class of the notebook that it refers to,
    directly or through others, the literals that these refer to, and all of each module outside of
    the libraries that they reach. Docstrings, comments and formatting don't count, nor does the
    code of libraries: keep their versions beside the fingerprint.

    Args:
        function: defined by `def`, in a notebook or in a module.

    Raises:
        TypeError: if the code refers to anything else than modules, functions, classes and
            literals: its value can change the result, and isn't part of the code.
        RuntimeError: if a module was edited since its fingerprint was first taken.
    """
    modules = {}
    description = _describe(function, getattr(function, "__name__", ""), {}, modules)
    return hashlib.sha256(repr([description, sorted(modules.items())]).encode()).hexdigest()


def _describe(value, name, seen, modules):
    """Describe what `name` refers to, and add the modules that this reaches."""
    wrapper, value = value, inspect.unwrap(value) if callable(value) else value
    if isinstance(value, ModuleType):
        _add_module(value.__name__, modules)
        return value.__name__
    if is_literal(value):
        return repr(value)
    if not hasattr(value, "__qualname__") or inspect.ismethod(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}, whose changes would go unnoticed where results "
            "are remembered. Build it in the function that needs it, or make it a literal."
        )
    members = list(vars(value).values()) if inspect.isclass(value) else [value]
    functions = [f for f in map(_function_of, members) if inspect.isfunction(f)]
    # What a function made may hold on to other values than the next that it makes.
    if value.__module__ != "__main__" and "<locals>" not in value.__qualname__:
        _add_module(value.__module__, modules)
        return f"{value.__module__}.{value.__qualname__}"
    if not functions:
        raise TypeError(f"The source of the class {name} can't be found; give it a method.")
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    tree = _tree_of(value, functions[0].__code__.co_filename)
    _add_imports(tree, None, modules)
    if wrapper is not value and not tree.decorator_list:
        raise TypeError(f"{name} is {value.__qualname__}, wrapped by a call; decorate it with @.")
    if inspect.isclass(value) and any(
        not f.__qualname__.startswith(f"{value.__qualname__}.") for f in functions
    ):
        raise TypeError(f"A method of {name} was replaced; define it in the class.")
    # What a definition took from names that may mean something else by now.
    held = [v for f in functions for v in f.__defaults__ or ()]
    held += [v for f in functions for v in (f.__kwdefaults__ or {}).values()]
    held += [v for k, v in vars(value).items() if is_literal(v) and not k.startswith("__")]
    cells = getattr(wrapper, "__closure__", None) or () if wrapper is not value else ()
    held += [c.cell_contents for c in cells if is_literal(c.cell_contents)]
    namespace = dict(functions[0].__globals__)
    for each in functions:
        cells = zip(each.__code__.co_freevars, each.__closure__ or (), strict=True)
        namespace |= {free: cell.cell_contents for free, cell in cells if free != "__class__"}
    for node in ast.walk(tree):
        # In pkg.sub.f, pkg.sub may be a module that no import in this definition names.
        root, _, rest = ast.unparse(node).partition(".") if hasattr(node, "attr") else ("", "", "")
        if isinstance(namespace.get(root), ModuleType):
            _add_module(f"{namespace[root].__name__}.{rest}", modules)
    names = sorted(_global_names(tree) & namespace.keys())
    held = [_describe(v, f"a value that {name} holds", seen, modules) for v in held]
    return _dump(tree), held, [(n, _describe(namespace[n], n, seen, modules)) for n in names]


def _function_of(member):
    if isinstance(member, property):
        return member.fget
    return inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else member


def is_literal(value):
    if isinstance(value, (tuple, list)):
        return all(map(is_literal, value))
    if isinstance(value, dict):
        return all(map(is_literal, [*value, *value.values()]))
    return value is None or isinstance(value, (str, bytes)) or type(value) in (bool, int, float)


def _add_module(name, modules):
    if name in modules or name in WITHOUT_RESULTS or _is_library(name):
        return
    spec = _find_spec(name)
    if spec and spec.has_location:
        text = Path(spec.origin).read_text(encoding="utf-8")
        if _texts.setdefault(spec.origin, text) != text:
            raise RuntimeError(
                f"{spec.origin} was edited since it was first used. Restart the kernel, as worker "
                "processes still have what it was."
            )
        tree = ast.parse(text)
        modules[name] = _dump(tree)
        _add_imports(tree, spec.parent, modules)
        if spec.parent:
            _add_module(spec.parent, modules)


def _add_imports(tree, package, modules):
    for node in ast.walk(tree):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            imported = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        for each in imported:
            _add_module(each, modules)


def _find_spec(name):
    """Of a module; None for what is no module, such as a name in one. Imports packages only."""
    package = name.rpartition(".")[0]
    if package:
        spec = _find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            return None
    return importlib.util.find_spec(name)


@functools.cache
def _is_library(name):
    """Whether the version of a package stands for the code of this module."""
    package = name.partition(".")[0]
    if package in ("lab", "utils"):
        return False
    spec = _find_spec(package)
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return True
    if not spec.has_location:
        return False
    return any(Path(spec.origin).resolve().is_relative_to(folder) for folder in LIBRARIES)


def _tree_of(value, file):
    """The syntax tree of a function or class, from the text of the file or cell that defines it."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse("".join(linecache.getlines(file)))
    nodes = [n for n in ast.walk(tree) if isinstance(n, kinds) and n.name == value.__name__]
    if inspect.isfunction(value):
        line = value.__code__.co_firstlineno
        nodes = [n for n in nodes if line in (n.lineno, *(d.lineno for d in n.decorator_list))]
    if len(nodes) != 1:
        raise TypeError(
            f"The source of {value.__qualname__} can't be found; write it with `def`, once in a "
            "cell, and run the cell again."
        )
    return nodes[0]


def _global_names(tree):
    """The names that a definition looks up outside of itself."""
    tables, names = [symtable.symtable(ast.unparse(tree), "definition", "exec")], set()
    for table in tables:
        tables += table.get_children()
        outermost = table.get_type() == "module"
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_global() or (outermost and symbol.is_referenced())
        }
    return names


def _dump(node):
    """A syntax tree as text, without docstrings and without what differs between Pythons."""
    if isinstance(node, list):
        return [_dump(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    if documented and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # Some Pythons put empty texts between its parts.
        fields["values"] = [v for v in node.values if getattr(v, "value", None) != ""]
    fields.pop("kind", None)  # Of a text, whether it has a u before it.
    return [
        type(node).__name__,
        [(field, _dump(value)) for field, value in fields.items() if value not in (None, [])],
    ]
