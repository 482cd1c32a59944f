"""Functions as a notebook's kernel has them: in `__main__`, with their text where it keeps it."""

import hashlib
import linecache


def define(source, name="run"):
    file = f"<cell {hashlib.sha256(source.encode()).hexdigest()}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    namespace = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), namespace)
    return namespace[name]
