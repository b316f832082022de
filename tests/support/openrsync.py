"""An rsync that treats --rsync-path as Apple's openrsync does, and else is the real one.

From fargs.c of Apple's rsync-182: the text is cut at blanks, and every quote is taken out, whatever
stands before it; ssh joins what is left.
"""

import inspect
import shutil
import sys
from pathlib import Path

PROGRAM = """#!{python}
import os, sys
{function}
name = "--rsync-path="
words = [name + carried(w[len(name):]) if w.startswith(name) else w for w in sys.argv[1:]]
os.execv({real!r}, ["rsync", *words])
"""


def carried(words: str) -> str:
    """What the far shell gets of it."""
    out, quote = [""], ""
    for character in words:
        if quote:
            if character == quote:
                quote = ""
            else:
                out[-1] += character
        elif character in "'\"":
            quote = character
        elif character.isspace():
            out.append("")
        else:
            out[-1] += character
    if quote:
        raise SystemExit("rsync: Missing terminating quote in specified remote-shell command")
    return " ".join(filter(None, out))


def put_openrsync(folder: Path) -> str:
    """Writes it there; the PATH on which it is first, without the rest."""
    folder.mkdir(exist_ok=True)
    program = folder / "rsync"
    function = inspect.getsource(carried)
    real = shutil.which("rsync")
    program.write_text(PROGRAM.format(python=sys.executable, function=function, real=real))
    program.chmod(0o755)
    return str(folder)
