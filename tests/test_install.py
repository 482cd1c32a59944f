"""What can be wrong before anything is installed gets one clear line."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


IS_ITSELF = 'case "$2" in *_base_executable*) echo "$0"; exit ;; esac'


@pytest.fixture
def install(tmp_path):
    """Run the installation in a copy of the project with a stand-in for Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)

    def install(body):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{IS_ITSELF}\n{body}\n")
        python.chmod(0o755)
        result = subprocess.run(
            ["scripts/install.sh"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
            capture_output=True,
            text=True,
        )
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
