"""A test that starts itself again with a process for each card."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "dist.sh"


def parallel_command(arguments: Sequence[str], config: str, processes: int) -> list[str]:
    """The command that runs ``tools/test.py`` in several processes.

    Args:
        arguments: of tools/test.py, as they were given.
        config: the config file among them.
        processes: their number.
    """
    rest = list(arguments)
    rest.remove(config)
    # Of an option that is given twice the last one counts: what was `auto` is decided now.
    again = [*rest, "--placement", "data-parallel"]
    return ["bash", str(_SCRIPT), "test", config, str(processes), *again]


def restart_in_parallel(arguments: Sequence[str], config: str, processes: int) -> None:
    """Replaces this process, with what it holds of the cards, by the launcher's; no return."""
    sys.stdout.flush()
    sys.stderr.flush()
    environment: Mapping[str, str] = {"PYTHON": sys.executable, **os.environ}
    os.execvpe("bash", parallel_command(arguments, config, processes), environment)
