"""What the commands say on standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["say"]


def say(what: Any) -> None:
    """Print, and go on in silence where nobody reads any more, as in `jaxrobust evaluate ... | head -1`.

    Args:
        what: is printed.
    """
    try:
        print(what, flush=True)
    except BrokenPipeError:
        # of the descriptor, since what is still in the buffer is written as the process ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
