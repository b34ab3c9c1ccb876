"""Python code in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def python(code: str, **environment: str | Path) -> list[str]:
    """Run Python code in a process of its own, in this environment but for some variables; return what it prints."""
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def start(environment: Mapping[str, str], *arguments: object) -> "subprocess.Popen[str]":
    """Start Python with these arguments, in this environment but for some variables."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | environment, text=True, **pipes)
