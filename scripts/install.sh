#!/bin/sh
# Make .venv hold exactly the pinned packages and this project's utils. Does nothing if it already
# does. PYTHON names the interpreter; without it, the first supported one is taken.
set -eu
cd "$(dirname "$0")/.."
log=.venv/install.log

fail() {
    echo "gradient-loss: $1" >&2
    exit 1
}
supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
interpreter() {
    "$1" -c 'import sys; print(sys.base_prefix, sys.version.split()[0])'
}

# pwd, as the programs in .venv hold its path; of pyproject.toml, what concerns the installation.
wanted=$({
    pwd
    sed '/^\[tool.ruff\]/,$d' pyproject.toml
    cat requirements.txt constraints.txt scripts/install.sh scripts/ipython_kernel_config.py
} | cksum)
if [ -f .venv/installed ] && [ "$(cat .venv/installed)" = "$wanted" ] && supported .venv/bin/python
then
    [ -z "${PYTHON:-}" ] && exit 0
    [ "$(interpreter "$PYTHON" 2>/dev/null)" = "$(interpreter .venv/bin/python)" ] && exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON isn't a program; name a Python 3.11, 3.12 or 3.13, for example: make PYTHON=python3.12"
    supported "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1); use 3.11, 3.12 or 3.13, for example: make PYTHON=python3.12"
    python=$PYTHON
else
    for python in python3 python3.13 python3.12 python3.11 ''; do
        supported "$python" && break
    done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 was found; install one, or name it: make PYTHON=/path/to/python3.12"
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python lacks the venv module; install it (Debian and Ubuntu: apt install python3-venv), or name another Python: make PYTHON=/path/to/python3.12"

# Not a Python in the very .venv that is about to go.
python=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
echo "Installing into .venv, once: first an environment of $("$python" --version)"
rm -rf .venv
"$python" -m venv .venv || fail "$python can't create .venv; the lines above say why"
pip() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" >>$log 2>&1
}
# uv takes half of pip's time. It knows nothing of pip's settings, so it is told of pip's indexes.
# If it fails, for example as only pip has the login for an index, pip does the work.
pip_setting() {
    for level in :env: user site global; do
        .venv/bin/python -m pip config get "$level.$1" 2>/dev/null && return
    done
    echo "${2:-}"
}
uv() {
    UV_DEFAULT_INDEX=$(pip_setting index-url https://pypi.org/simple)
    UV_INDEX=$(pip_setting extra-index-url)
    UV_FIND_LINKS=$(pip_setting find-links | tr ' ' ',')
    UV_INDEX_STRATEGY=unsafe-best-match # As pip does, whichever index has it.
    export UV_DEFAULT_INDEX UV_INDEX UV_FIND_LINKS UV_INDEX_STRATEGY
    { .venv/bin/uv pip install --no-config --python .venv/bin/python --requirement requirements.txt \
        --constraint constraints.txt 2>&1 && echo "All done"; } | tee -a $log |
        grep -E '^(Resolved|Downloaded|Prepared|Installed|All done)' | sed 's/^/  /' | tee .venv/uv.log
    grep -q 'All done' .venv/uv.log
}
# Two steps, as pip would otherwise download an unpinned setuptools to build this project with.
echo "then the packages of requirements.txt, about 1 GB"
pip --constraint constraints.txt uv &&
    { uv || pip --requirement requirements.txt --constraint constraints.txt; } &&
    echo "then this project" &&
    pip --no-build-isolation --no-deps --editable . || {
    if grep -qE 'NewConnectionError|ConnectTimeout|NameResolutionError|ProxyError|Max retries' $log; then
        fail "the package index can't be reached; check the network (or pip's proxy settings) and run make again; details: $log"
    fi
    fail "pip failed: $(grep ERROR $log | tail -n 1); details: $log"
}
mkdir -p .venv/etc/ipython
cp scripts/ipython_kernel_config.py .venv/etc/ipython/
echo "$wanted" >.venv/installed
