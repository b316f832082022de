"""The last answers of /v1/responses, for clients that go on from one by its id.

Called on rank 0's HTTP threads. In memory alone: a restart forgets them, and a client is then told
that there is no such response. Each API key has a shelf of its own; nobody finds another's. What is
kept is bounded by number and by bytes, over all keys: the oldest goes of whoever has most, so that
one busy client takes nothing from the others.
"""

import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.api.dialects.responses_items import ITEM
from server.api.kinds import Refused
from server.protocol.errors import ApiError, show

MAX_BYTES = 256 * 2**20
ID_CHARS = 100  # of an id in an error

Item = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A response: its JSON; the conversation with its own output at the end, as items that have
    been read; and which of them are its output, by their ids. Nothing of it is ever changed."""

    body: bytes
    conversation: tuple[Item, ...]
    output: dict[str, Item]


class Shelf:
    """What is kept of one key. Its lock is that of all shelves."""

    def __init__(self, store: "KeptResponses") -> None:
        self._store = store
        self._lock = store.lock
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the one used last at the end
        self._output: dict[str, Item] = {}
        # A conversation's responses share its items: by identity, how many have one, and its size.
        self._shared: dict[int, list[int]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept here at all."""
        return self._store.most > 0

    def conversation(self, id: str) -> tuple[Item, ...]:
        """All that was said up to the end of a response. Raises ApiError 404."""
        with self._lock:
            if id in self._kept:
                self._kept.move_to_end(id)
                return self._kept[id].conversation
        raise ApiError(
            404,
            f"Previous response with id {show(id, ID_CHARS)} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )

    def item(self, id: str) -> Item:
        """An item of a response's output. Raises ApiError 404."""
        with self._lock:
            if id in self._output:
                return self._output[id]
        raise ApiError(
            404,
            f"Item with id {show(id, ID_CHARS)} not found. Items are not persisted when `store` is "
            "set to false. Try again with `store` set to true, or remove this item from your "
            "input.",
            param="input",
        )

    def response(self, id: str) -> dict[str, Any]:
        """The response as it was answered. Raises ApiError 404."""
        with self._lock:
            kept = self._kept.get(id)
        if kept is None:
            raise _not_found(id)
        return json.loads(kept.body)

    def delete(self, id: str) -> None:
        """Forgets a response. Raises ApiError 404."""
        with self._lock:
            if id not in self._kept:
                raise _not_found(id)
            self._drop(id)

    def keep(self, response: dict[str, Any], said: Iterable[Item]) -> None:
        """Keeps a response that is complete, and what was said before it; not if it holds what no
        request may (half a character that a model has written in a call)."""
        try:
            output = {one["id"]: ITEM.read(one) for one in response["output"]}
        except Refused:
            return
        body = json.dumps(response).encode()
        with self._lock:
            self._add(response["id"], Kept(body, (*said, *output.values()), output))
            self._store.shrink()

    def drop_oldest(self) -> None:
        """Forgets the response that was not used for the longest time. Holds the lock."""
        self._drop(next(iter(self._kept)))

    def _add(self, name: str, kept: Kept) -> None:
        if name in self._kept:
            self._drop(name)
        self._kept[name] = kept
        self._output |= kept.output
        self.bytes += len(kept.body)
        for item in kept.conversation:
            shared = self._shared.setdefault(id(item), [0, 0])
            if not shared[0]:
                shared[1] = _size(item)
                self.bytes += shared[1]
            shared[0] += 1

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name)
        self.bytes -= len(kept.body)
        for key in kept.output:
            del self._output[key]
        for item in kept.conversation:
            shared = self._shared[id(item)]
            shared[0] -= 1
            if not shared[0]:
                self.bytes -= shared[1]
                del self._shared[id(item)]


class KeptResponses:
    """All shelves. most: responses on all of them together; 0: none are kept."""

    def __init__(self, most: int, most_bytes: int = MAX_BYTES) -> None:
        self.lock = threading.Lock()
        self.most = most
        self._most_bytes = most_bytes
        self._shelves: dict[str | None, Shelf] = {}

    def of(self, key: str | None) -> Shelf:
        """The shelf of a key, by its label; None: that of all, where there are no keys."""
        with self.lock:
            return self._shelves.setdefault(key, Shelf(self))

    def shrink(self) -> None:
        """Forgets until what is kept is within the bounds. Its caller holds the lock."""
        shelves = self._shelves.values()
        while sum(map(len, shelves)) > self.most:
            max(shelves, key=len).drop_oldest()
        while sum(shelf.bytes for shelf in shelves) > self._most_bytes:
            max(shelves, key=lambda shelf: shelf.bytes).drop_oldest()


def _not_found(id: str) -> ApiError:
    return ApiError(404, f"Response with id {show(id, ID_CHARS)} not found.")


def _size(value: Any) -> int:
    """Bytes of memory that a JSON value takes."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        size += sum(map(_size, value.values()))
    elif isinstance(value, list):
        size += sum(map(_size, value))
    return size
