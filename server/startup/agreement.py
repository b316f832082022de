"""Something that every rank tries for itself, and of which all have to know how it went for all.

Called on the main thread of every rank. One that failed alone would leave the others waiting.
"""

import json
import threading
from collections.abc import Callable, Generator

from server.protocol.failures import is_shared
from server.wire.link import Link

LOOK_S = 0.005  # for a thread, where nobody else has work

Local = type[Exception] | tuple[()]


class Found(ValueError):
    """What was found to be wrong, in words that need no name of an exception before them."""


def agree(link: Link, act: Callable[[], object], local: Local = ()) -> str:
    """What any rank says is wrong; "" if none does. All ranks hear the same. local: of what a rank
    may have alone, what is told, too, and does not end it."""
    said = ""
    try:
        act()
    except Exception as error:
        said = _words(error, local)
    return _hear(link, said)


def agree_by_pieces(
    link: Link, pieces: Generator[None, None, object]
) -> Generator[None, None, str]:
    """The same for what gives way. It must come to its end, or fail, in the same piece on every
    rank: so it is told what all ranks have alike, and nothing else."""
    said = ""
    try:
        yield from pieces
    except Exception as error:
        said = _words(error, ())
    return _hear(link, said)


def agree_aside(
    link: Link, act: Callable[[], object], busy: Callable[[], bool]
) -> Generator[None, None, str]:
    """The same, with local=Exception, for what takes long and does not touch MLX: a thread of each
    rank does it, while the main thread gives way. busy: others have work."""
    said: list[str] = []

    def do() -> None:
        try:
            act()
            said.append("")
        except Exception as error:
            said.append(_words(error, Exception))
        except BaseException as error:  # or all ranks would wait for this one
            said.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=do, name="aside", daemon=True)
    thread.start()
    done = 0
    while done < link.size:
        thread.join(0.0 if busy() else LOOK_S)
        (done,) = link.seal("aside", [len(said)]).read()
        yield
    return _hear(link, said[0])


def _words(error: Exception, local: Local) -> str:
    """Raises it again where it is this rank's own."""
    if not (is_shared(error) or isinstance(error, local)):
        raise error
    return str(error) if isinstance(error, Found) else f"{type(error).__name__}: {error}"


def _hear(link: Link, said: str) -> str:
    """What the first rank says that says anything; which, if not all say it."""
    everywhere = [json.loads(data) for data in link.gather_bytes(json.dumps(said).encode())]
    rank = next((rank for rank, theirs in enumerate(everywhere) if theirs), None)
    if rank is None:
        return ""
    theirs = everywhere[rank]
    return theirs if all(one == theirs for one in everywhere) else f"rank {rank}: {theirs}"
