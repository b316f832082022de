"""The page at `/`: one file, and the headers that keep it harmless.

Read when the App is built, then sent as it is by rank 0's HTTP threads. Holds no data of the
cluster: the page asks GET /cluster for that, with the key that its user gives it. Imports no mlx.
"""

import base64
import hashlib
import re
from pathlib import Path

INDEX = Path(__file__).resolve().parent / "page" / "index.html"


class Page:
    """The page's bytes and headers. Raises OSError or ValueError for a file that is no page."""

    content_type = "text/html; charset=utf-8"

    def __init__(self, path: Path = INDEX) -> None:
        text = path.read_text("utf-8")  # with newlines as the browser will see, and hash, them
        self.body = text.encode()
        self.headers = {
            "Content-Security-Policy": _policy(_only(text, "script"), _only(text, "style")),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            # Asked for anew each time: it changes with the server's version, and is small.
            "Cache-Control": "no-cache",
        }


def _policy(script: str, style: str) -> str:
    """Allows this script, this style and requests to this server; nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "connect-src 'self'",
            "img-src data:",  # the icon, which is written into the page
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # Text can never be taken for markup, even by a mistake in the script.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _only(text: str, tag: str) -> str:
    """What the only element of this name holds."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"the page has {len(found)} <{tag}> elements: must be 1")
    return found[0]


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
