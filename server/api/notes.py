"""What a request holds and its prompt does not: one warning in the log for each such request.

Readers of fields, on rank 0's HTTP threads, note what they leave out, wherever it stands; whoever
reads the whole request has it told. The words are ours and few, so that a note is never long.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

# Types of content parts, of all APIs, that hold no text; and what their place in the prompt says.
MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "computer_screenshot": "image",
    "input_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
    "file": "file",
    "input_file": "file",
    "container_upload": "file",
}

log = logging.getLogger(__name__)
_noted: ContextVar[Counter[str] | None] = ContextVar("noted", default=None)


def note(what: str) -> None:
    """Something of this kind is left out. Outside of a request nobody hears of it."""
    if (noted := _noted.get()) is not None:
        noted[what] += 1


def omitted(what: str) -> str:
    """What the prompt has in the place of an image or the like. A refusal would come again with
    every later turn, as the conversation still holds it: no agent could go on."""
    note(what)
    return f"[{what} omitted: this model reads text only]"


@contextlib.contextmanager
def noting(request: str) -> Iterator[None]:
    """Logs what is noted inside. request: how the log knows it."""
    token = _noted.set(noted := Counter())
    try:
        yield
    finally:
        _noted.reset(token)
        if noted:
            told = ", ".join(f"{count} x {what}" for what, count in sorted(noted.items()))
            log.warning("%s: left out of the prompt: %s", request, told)
