"""The draft model beside the first model: whether this rank has it, and what memory.

On the main thread of every rank; only rank 0 has the model, and all know what it takes.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from server.engine.draft_model import DraftModel
from server.engine.kv_memory import row_bytes
from server.protocol.settings import Settings
from server.residents import FIRST
from server.startup.draft_model import load_draft, memories_beside, room_for
from server.startup.kinds_of_drafts import DRAFTS, agree_on_drafts
from server.startup.loading import Shard
from server.startup.piece_pace import Pace
from server.wire.link import Link

log = logging.getLogger(__name__)


class DraftBeside:
    """memories: bytes that each rank may use, as far as they are known. note: tells an operator."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        memories: Sequence[int | None],
        note: Callable[[str], None],
    ) -> None:
        self._settings, self._link, self._note = settings, link, note
        self._memories = memories
        self._room: int | None = None  # bytes of caches, when it was first loaded

    def memories(self, number: int) -> Sequence[int | None]:
        """What each rank may use for a model: all it has, or what the draft model leaves."""
        settings = self._settings
        if number != FIRST or not settings.draft_model_dir or settings.speculate == "off":
            return self._memories
        return memories_beside(Path(settings.draft_model_dir), self._link, self._memories)

    def load(
        self, number: int, shard: Shard, pace: Pace, tell: Callable[[str], None]
    ) -> Generator[None, None, DraftModel | None]:
        """The draft model, which is the first model's: rank 0's, and what all wait for. Raises
        Unloadable, on every rank alike."""
        settings, link = self._settings, self._link
        if number != FIRST or not settings.draft_model_dir:
            return None
        drafts = agree_on_drafts(settings.speculate, shard.model, shard.last.ways, link)
        if drafts not in DRAFTS:
            self._note(f"DRAFT_MODEL_DIR is not used: drafts: {drafts}")
            log.warning("DRAFT_MODEL_DIR is not used: drafts: %s", drafts)
            return None
        loading = load_draft(
            Path(settings.draft_model_dir),
            link,
            shard.tokenizer,
            shard.vocab,
            settings.trust_remote_code,
            tell,
            pace,
        )
        return (yield from loading)

    def leaves(self, caches: int, shard: Shard, draft: DraftModel | None) -> int:
        """Of so many bytes for caches on this rank. Its own caches' room is none for other models,
        from the start on."""
        if draft is not None:
            if self._room is None:
                token = row_bytes(shard.model, shard.last.ways.quantised).token
                self._room = room_for(caches, token, draft.token_bytes)
            draft.room = self._room
        return caches - (self._room or 0)
