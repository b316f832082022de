"""The page at `/`: one answer, a few large files that it asks for when they are needed, and the
headers that keep it harmless.

Its parts are files in page/ (those in page/vendor are others' work, see the manifest there), joined
when the App is built, then sent as they are by rank 0's HTTP threads. Holds no data of the cluster:
the page asks GET /cluster for that, with the key that its user gives it. Imports no mlx.
"""

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path

PARTS = Path(__file__).resolve().parent / "page"
CLIENTS = Path(__file__).resolve().parents[2] / "docs" / "clients.md"  # what the page says of them
CLIENTS_PLACE = '<template id="clients"></template>'
PARTS_PLACE = '<template id="parts"></template>'
# Each kind's files, in the order in which the page has them. What a script does at once uses only
# what is above it.
STYLES = ("base.css", "operator.css", "chat.css")
SCRIPTS = (
    "util.js", "api.js", "vendor/marked.js", "vendor/highlight.js",
    "operator_state.js", "operator_ranks.js", "operator_links.js", "operator_models.js",
    "operator_requests.js",
    "operator_charts.js", "operator_history.js",
    "chat_parts.js", "chat_formulas.js", "chat_math.js", "chat_markdown.js", "chat_store.js",
    "chat_pdf.js", "chat_files.js", "chat_view.js", "chat_stream.js",
    "chat.js", "chat_place.js", "chat_windows.js", "chat_kept.js", "connect.js",
    "start.js",
)  # fmt: skip
# What few need and is larger than the page: sent at /page/NAME when the page asks for it.
LATER = ("katex.js", "pdf.js")
WORKERS = ("pdf.worker.js",)
SCRIPT_TYPE = "text/javascript; charset=utf-8"
NOTHING = "default-src 'none'"


@dataclass(frozen=True)
class Part:
    """A file that the page asks for when it needs it."""

    body: bytes
    headers: dict[str, str]

    def known(self, tags: str) -> bool:
        """Whether a client has it already. tags: its If-None-Match."""
        # A proxy that compresses makes a weak one of ours.
        given = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return bool(given & {self.headers["ETag"], "*"})


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
        later = {name: (parts / "vendor" / name).read_bytes() for name in (*LATER, *WORKERS)}
        hashes = {name: _hash(body) for name, body in later.items()}
        index = index.replace(PARTS_PLACE, PARTS_PLACE.replace("><", f">{json.dumps(hashes)}<"))
        self.body = _fill(_fill(index, "style", style), "script", script).encode()
        scripts = [_hash(script.encode()), *(hashes[name] for name in LATER)]
        policy = _policy(scripts, _hash(style.encode()))
        self.headers = _headers(policy) | {"X-Frame-Options": "DENY"}  # as frame-ancestors
        self.parts = {name: _part(body, hashes[name]) for name, body in later.items()}


def _join(parts: Path, names: tuple[str, ...]) -> str:
    return "\n".join((parts / name).read_text("utf-8") for name in names)


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        # Asked for anew each time: it changes with the server's version.
        "Cache-Control": "no-cache",
    }


def _part(body: bytes, digest: str) -> Part:
    # A worker has the policy that it comes with: this one may fetch, load and evaluate nothing.
    return Part(body, _headers(NOTHING) | {"ETag": f'"{digest}"'})


def _policy(scripts: list[str], style: str) -> str:
    """Allows these scripts, this style and requests to this server; nothing else."""
    return "; ".join(
        [
            NOTHING,
            f"script-src {' '.join(map(_quoted, scripts))}",
            f"style-src {_quoted(style)}",
            "connect-src 'self'",
            "worker-src 'self'",  # no browser compares a worker with a hash
            "img-src data:",  # the icon, which is written into the page
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # Text can never be taken for markup, even by a mistake in the script, nor an address
            # for a script's, but by the one way in chat_parts.js that knows our own.
            "require-trusted-types-for 'script'",
            "trusted-types parts",
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


def _hash(content: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


def _quoted(digest: str) -> str:
    return f"'{digest}'"
