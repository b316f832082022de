"""Keeps web pages of others out: a page in the owner's browser can send requests to 127.0.0.1.

Called on rank 0's HTTP threads for every request, before its key is asked for and before its body
is read. Programs other than browsers send neither Origin nor Sec-Fetch-Site, and are not affected,
but for the Host of a server without a key.
"""

from urllib.parse import urlsplit

from server.protocol.errors import ApiError, bad_request
from server.transport.exchange import Exchange
from server.transport.host_names import HostNames, is_origin_of, split_authority

SHOWN_CHARS = 200  # of what the client wrote
JSON_TYPES = ("application/json", "+json")
OURS = ("same-origin", "none")  # Sec-Fetch-Site: our own page, or the browser's user


class CrossSite:
    """origins, hosts: as listed by the operator. needs_key: whether requests must have one."""

    def __init__(self, origins: tuple[str, ...], hosts: tuple[str, ...], needs_key: bool) -> None:
        self._any = "*" in origins
        self._origins = {_plain(origin) for origin in origins}
        self._hosts = HostNames(hosts)
        self._needs_key = needs_key

    def check(self, exchange: Exchange, path: str) -> None:
        """Raises ApiError 400 or 403 for a request that is made by a page of another site, or
        through a name that is not this server's."""
        authorities = self._check_host(exchange)
        if not self._any:
            self._check_origin(exchange, path, authorities)

    def check_type(self, exchange: Exchange) -> None:
        """Raises ApiError 415 for a browser's body that does not say it is JSON: for any other
        type the browser would not have asked whether the page may."""
        given = _all(exchange, "Content-Type")
        media = given[0].partition(";")[0].strip().lower() if len(given) == 1 else ""
        if self._any or not _is_browser(exchange) or media.endswith(JSON_TYPES):
            return
        raise ApiError(
            415,
            f"Content-Type is {', '.join(given)[:SHOWN_CHARS]!r}: from a browser it must be "
            "'application/json'.",
            code="unsupported_media_type",
        )

    def _check_host(self, exchange: Exchange) -> list[tuple[str, str]]:
        """The server's name and port, as the request has it; more than one if it names two."""
        given = _all(exchange, "Host")
        if len(given) > 1:
            raise bad_request("Host must be given once.")
        target = urlsplit(exchange.path)
        if target.scheme in ("http", "https"):
            given.append(target.netloc)
        authorities = []
        for text in given:
            if not text and exchange.request_version == "HTTP/1.0":
                continue
            authority = split_authority(text)
            if authority is None:
                shown = text[:SHOWN_CHARS]
                raise bad_request(f"Host is {shown!r}: must be a name or address, and a port.")
            # With a page's own name in place of an address its requests are of the same origin
            # (DNS rebinding): what tells them apart is the name.
            if not self._needs_key and authority[0] not in self._hosts:
                raise ApiError(
                    403,
                    f"Host is {text[:SHOWN_CHARS]!r}: without an API key this server answers to "
                    "IP addresses, localhost, its own names and those listed in ALLOWED_HOSTS.",
                    code="host_not_allowed",
                )
            authorities.append(authority)
        return authorities

    def _check_origin(
        self, exchange: Exchange, path: str, authorities: list[tuple[str, str]]
    ) -> None:
        origins = _all(exchange, "Origin")
        sites = [site.lower() for site in _all(exchange, "Sec-Fetch-Site")]
        if origins and all(_plain(origin) in self._origins for origin in origins):
            return
        # A page cannot set Sec-Fetch-Site. It knows more than we do: which name the browser used
        # for a proxy that does not tell us.
        if sites and all(site == "same-origin" for site in sites):
            return
        if not origins and path == "/" and exchange.command in ("GET", "HEAD"):
            return  # a link to our page, which holds nothing but itself
        own = bool(authorities) and all(
            is_origin_of(origin, authority) for origin in origins for authority in authorities
        )
        if (own or not origins) and all(site in OURS for site in sites):
            return
        shown = repr(", ".join(origins)[:SHOWN_CHARS]) if origins else "not told"
        raise ApiError(
            403,
            f"A web page of another site may not use this server. Its origin is {shown}; "
            "ALLOWED_ORIGINS lists those that may.",
            code="origin_not_allowed",
        )


def _is_browser(exchange: Exchange) -> bool:
    """Sec-Fetch-Mode alone is no sign: Node.js sends it, too."""
    return bool(_all(exchange, "Origin") or _all(exchange, "Sec-Fetch-Site"))


def _all(exchange: Exchange, name: str) -> list[str]:
    return [str(value).strip() for value in exchange.headers.get_all(name, [])]


def _plain(origin: str) -> str:
    return origin.strip().lower().rstrip("/")
