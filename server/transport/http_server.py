"""The HTTP transport of rank 0: listens, accepts, and gives each connection a place and a thread.

What happens on a connection is exchange.py's; who gets a place, and who gives way, places.py's.
Imports no mlx.

Trust: a client may be slow, wrong or hostile. Every read has a deadline, every size a limit.
"""

import contextlib
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable
from socketserver import TCPServer
from typing import Any

from server.observe.account import Account
from server.protocol.errors import ApiError, unavailable
from server.transport.exchange import Exchange
from server.transport.places import MAX_CONNECTIONS, Place, Places

ACCEPT_PAUSE_S = 0.05  # after a failed accept, usually for want of file descriptors
BACKLOG = 1024  # connections the kernel holds while we are busy; the default of 5 resets bursts
SPARE_FILES = 512  # descriptors beside the connections: model files, other ranks, logs

log = logging.getLogger(__name__)


class Server(TCPServer):
    """Listens as soon as it is built, so that /health can say "loading".

    app(exchange) answers one request. What it may have: closed(account) hears of a request's end,
    connection_refused() of one for which there was no place, and error_body(path, error) is what
    an error of that path says.
    Raises OSError when the address is taken.
    """

    # Not http.server's HTTPServer, which asks DNS for the host's name before it listens.
    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(
        self,
        host: str,
        port: int,
        app: Callable[[Exchange], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.app = app
        self.on_closed: Callable[[Account], None] = getattr(app, "closed", lambda account: None)
        self.on_refused: Callable[[], None] = getattr(app, "connection_refused", lambda: None)
        self.error_body: Callable[[str, ApiError], Any] = getattr(
            app, "error_body", lambda path, error: error.body()
        )
        self.places = Places(max_connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        _allow_files(max_connections + SPARE_FILES)
        super().__init__((host, port), Exchange)

    @property
    def port(self) -> int:
        """The port it listens on; of interest when it was asked for port 0."""
        return self.server_address[1]

    def start(self) -> None:
        """Serves in a thread until the process ends."""
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()

    def get_request(self):
        try:
            return super().get_request()
        except OSError as error:
            # The connection stays in the backlog, so without a pause we would spin.
            log.warning("cannot accept a connection: %s", error)
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request, client_address) -> None:
        place = self.places.take(request, client_address[0])
        if place is None:
            self._refuse(request)
            return
        thread = threading.Thread(
            target=self._serve, args=(request, client_address, place), daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self.places.leave(place)  # no thread could be started
            raise

    def _serve(self, request: socket.socket, client_address, place: Place) -> None:
        try:
            Exchange(request, client_address, self, place)
        except OSError:
            pass  # it was gone before it had asked
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.places.leave(place)
            self.shutdown_request(request)

    def _refuse(self, request: socket.socket) -> None:
        """503 from the accepting thread, which must not wait for anybody."""
        self.on_refused()
        error = unavailable("Too many connections.", "too_many_connections")
        body = json.dumps(error.body()).encode() + b"\n"
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
        )
        request.setblocking(False)
        # It may not wait for the answer, or have sent nothing yet.
        with contextlib.suppress(OSError):
            request.sendall(head.encode() + body)
            request.shutdown(socket.SHUT_WR)
            request.recv(65536)  # closing on unread bytes would reset the connection
        self.shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        log.exception("connection from %s failed", client_address[0])


def _allow_files(count: int) -> None:
    """Raises the soft limit on open files: macOS starts programs with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.warning("at most %d files can be open at once: %s", soft, error)
