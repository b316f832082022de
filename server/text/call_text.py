"""Calls that were read, as the pieces of an answer. Rank 0's HTTP threads, one for each choice."""

import secrets
import string
import uuid

from server.protocol.pieces import CallPiece
from server.text.calls.reader import Call

PIECE_CHARS = 128  # of arguments


class CallText:
    """parallel: else only the first call counts. short_ids: see Markup."""

    def __init__(self, parallel: bool, short_ids: bool) -> None:
        self.count = 0  # calls told so far
        self._limit = None if parallel else 1
        self._short_ids = short_ids
        self._ids: set[str] = set()

    def tell(self, calls: tuple[Call, ...]) -> tuple[CallPiece, ...]:
        """The pieces of these calls, as far as they count."""
        pieces: list[CallPiece] = []
        for call in calls:
            if self._limit is not None and self.count >= self._limit:
                break
            index, text = self.count, call.arguments
            self.count += 1
            pieces.append(CallPiece(index, self._id(call.id), call.name))
            pieces += [
                CallPiece(index, arguments=text[at : at + PIECE_CHARS])
                for at in range(0, len(text), PIECE_CHARS)
            ]
        return tuple(pieces)

    def _id(self, given: str | None) -> str:
        # Kimi's templates want its own ids back, so a model's id is kept.
        number = given if given and given not in self._ids else self._new_id()
        self._ids.add(number)
        return number

    def _new_id(self) -> str:
        if self._short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return new_call_id()


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return "call_" + uuid.uuid4().hex
