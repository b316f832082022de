"""Something that every rank tries for itself, and of which all have to know how it went for all.

Called on the main thread of every rank. One that failed alone would leave the others waiting.
"""

import json
from collections.abc import Callable

from server.protocol.failures import is_shared
from server.wire.link import Link


class Found(ValueError):
    """What was found to be wrong, in words that need no name of an exception before them."""


def agree(link: Link, act: Callable[[], None], local: type[Exception] | tuple[()] = ()) -> str:
    """What any rank says is wrong; "" if none does. All ranks hear the same. local: of what a rank
    may have alone, what is told, too, and does not end it."""
    said = ""
    try:
        act()
    except Exception as error:
        if not (is_shared(error) or isinstance(error, local)):
            raise
        said = str(error) if isinstance(error, Found) else f"{type(error).__name__}: {error}"
    everywhere = [json.loads(data) for data in link.gather_bytes(json.dumps(said).encode())]
    return next(filter(None, everywhere), "")
