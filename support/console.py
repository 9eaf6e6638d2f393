"""The console: a character that it lacks never ends a run."""

import io
import sys


def replace_unprintable():
    """Print ? for what the console's encoding lacks; files keep every character (UTF-8)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
