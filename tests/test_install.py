"""What can be wrong with an installation gets one clear line, and uv takes pip's indexes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


IS_ITSELF = 'case "$2" in *_base_executable*) echo "$0"; exit ;; esac'


@pytest.fixture
def run(tmp_path):
    """Run the installation in a copy of the project with a stand-in for Python."""
    for name in ("scripts", "lab"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)

    def run(body, **environment):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{IS_ITSELF}\n{body}\n")
        python.chmod(0o755)
        return subprocess.run(
            ["scripts/install.sh"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), **environment},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def install(run, tmp_path):
    """Run an installation that must fail; return its complaint."""

    def install(body):
        result = run(body)
        assert result.returncode != 0
        assert not (tmp_path / ".venv" / "installed").exists()
        (line,) = result.stderr.splitlines()
        return line

    return install


def test_python_out_of_range(install):
    body = 'case "$1" in --version) echo Python 3.10.13 ;; *) exit 1 ;; esac'
    assert "is Python 3.10.13; use 3.11, 3.12 or 3.13" in install(body)


def test_python_without_venv(install):
    body = 'case "$2" in *ensurepip*) exit 1 ;; esac'
    assert "lacks the venv module; install it" in install(body)


NETWORK = "WARNING: Retrying after connection broken by NewConnectionError"
MISSING = "ERROR: No matching distribution found for tensorflow==2.21.0"


@pytest.mark.parametrize(
    ("pip_says", "message"),
    [(NETWORK, "package index can't be reached; check the network"), (MISSING, MISSING)],
)
def test_pip_fails(install, pip_says, message):
    body = f"""if [ "$2" = venv ]; then
    mkdir -p .venv/bin
    printf '#!/bin/sh\\necho "{pip_says}"; exit 1\\n' >.venv/bin/python
    chmod +x .venv/bin/python
fi"""
    assert message in install(body)


@pytest.mark.parametrize("uv_fails", [False, True])
def test_uv_takes_the_indexes_that_pip_is_set_to_and_pip_stands_in_for_it(run, tmp_path, uv_fails):
    scripts = {
        "python": f"""case "$3" in config) exec {sys.executable} "$@" ;; esac
echo "$@" >>.venv/pip""",
        "uv": f"""echo "$UV_DEFAULT_INDEX $UV_INDEX $UV_FIND_LINKS" >.venv/indexes
exit {int(uv_fails)}""",
    }
    for name, script in scripts.items():
        (tmp_path / f"stand-in-{name}").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / f"stand-in-{name}").chmod(0o755)
    body = """if [ "$2" = venv ]; then
    mkdir -p .venv/bin
    for name in python uv; do cp stand-in-$name .venv/bin/$name; done
fi"""
    result = run(
        body,
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL="https://index.example/simple",
        PIP_EXTRA_INDEX_URL="https://one.example https://two.example",
        PIP_FIND_LINKS="/wheels",
    )
    assert result.returncode == 0, result.stderr
    indexes = (tmp_path / ".venv" / "indexes").read_text().split()
    assert indexes[0] == "https://index.example/simple"
    assert indexes[1:] == ["https://one.example", "https://two.example", "/wheels"]
    pip = (tmp_path / ".venv" / "pip").read_text()
    assert ("--requirement" in pip) == uv_fails
    assert (tmp_path / ".venv" / "installed").exists()
