"""The page at `/`: one answer that fetches nothing, and the headers that keep it harmless.

Its parts are files in page/ (those in page/vendor are others' work, see the manifest there), joined
when the App is built, then sent as they are by rank 0's HTTP threads. Holds no data of the cluster:
the page asks GET /cluster for that, with the key that its user gives it. Imports no mlx.
"""

import base64
import hashlib
import html
from pathlib import Path

PARTS = Path(__file__).resolve().parent / "page"
CLIENTS = Path(__file__).resolve().parents[2] / "docs" / "clients.md"  # what the page says of them
CLIENTS_PLACE = '<template id="clients"></template>'
# Each kind's files, in the order in which the page has them. What a script does at once uses only
# what is above it.
STYLES = ("base.css", "operator.css", "chat.css")
SCRIPTS = (
    "util.js", "api.js", "vendor/marked.js", "vendor/highlight.js",
    "operator_state.js", "operator_ranks.js", "operator_links.js", "operator_models.js",
    "operator_requests.js",
    "operator_charts.js", "operator_history.js",
    "chat_markdown.js", "chat_store.js", "chat_files.js", "chat_view.js", "chat_stream.js",
    "chat.js", "chat_kept.js", "connect.js",
    "start.js",
)  # fmt: skip


class Page:
    """The page's bytes and headers. Raises OSError or ValueError for files that are no page."""

    content_type = "text/html; charset=utf-8"

    def __init__(self, parts: Path = PARTS, clients: Path = CLIENTS) -> None:
        # With newlines as the browser will see, and hash, them.
        index = (parts / "index.html").read_text("utf-8")
        style, script = (_join(parts, names) for names in (STYLES, SCRIPTS))
        # A checkout may come without its docs: the page then has no snippets.
        told = html.escape(clients.read_text("utf-8")) if clients.exists() else ""
        index = index.replace(CLIENTS_PLACE, CLIENTS_PLACE.replace("><", f">{told}<"))
        self.body = _fill(_fill(index, "style", style), "script", script).encode()
        self.headers = {
            "Content-Security-Policy": _policy(script, style),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            # Asked for anew each time: it changes with the server's version, and is small.
            "Cache-Control": "no-cache",
        }


def _join(parts: Path, names: tuple[str, ...]) -> str:
    return "\n".join((parts / name).read_text("utf-8") for name in names)


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


def _fill(index: str, tag: str, content: str) -> str:
    """The page with what belongs into its only element of this name, which is empty."""
    place, end = f"<{tag}></{tag}>", f"</{tag}"
    if index.count(f"<{tag}") != 1 or place not in index:
        raise ValueError(f"index.html must have one <{tag}>, and nothing in it")
    if end in content.lower():
        raise ValueError(f"the page's {tag} must not hold {end!r}, which would end it")
    return index.replace(place, f"<{tag}>{content}</{tag}>")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
