"""A request in the engine: what is left of its prompt, what it has, and its own caches.

Used by prompts.py and decoding.py, on the main thread of every rank. A row is in one of their
lists; everything about it is here, and nothing is kept beside.
"""

from dataclasses import dataclass, field

from server.sampling.random_state import RandomState


@dataclass(eq=False)
class Row:
    """segments: what is left of the prompt; prefill stops after each of them. tokens: what is in
    the caches, but for the last ones, which it may owe. caches: mlx-lm's, of one row, one a layer;
    None while they are a decoding batch's. limit: tokens to generate. store: its caches are wanted
    when it finishes. embed: it ends with its prompt, whose last hidden state is all that is wanted.
    owing, before, ran: of a row that has drafts in caches of its own, as rewind.py has them."""

    uid: int
    segments: list[list[int]]
    tokens: list[int]
    caches: list | None
    state: RandomState
    limit: int
    stops: frozenset[int]
    store: bool = False
    embed: bool = False
    done: int = 0  # tokens of the prompt, since it was put in
    total: int = field(init=False)
    generated: int = 0  # tokens that were handed out
    ahead: bool = False  # its next token was handed out before the step that all others get it by
    owing: int = 0  # tokens that are not in its caches
    before: list | None = None  # what takes them back, if a draft of the step that runs is wrong
    ran: int = 0  # tokens of that step
    gone: bool = False  # it has left, but for its place in the decoding batch

    def __post_init__(self) -> None:
        self.total = self.left

    @property
    def left(self) -> int:
        """Tokens of its prompt that are not computed."""
        return sum(map(len, self.segments))

    @property
    def ready(self) -> bool:
        """Whether only its prompt's last token is left."""
        return len(self.segments) == 1 and len(self.segments[0]) == 1

    def cut(self, size: int) -> list[int]:
        """The next tokens of its prompt, `size` of them and no more than its segment has."""
        part = self.segments[0][:size]
        self.segments[0] = self.segments[0][size:]
        if not self.segments[0]:
            self.segments.pop(0)
        self.done += len(part)
        return part

    def hand_over(self, uid: int, state: RandomState) -> None:
        """It is computed for somebody else from now on."""
        self.uid, self.state = uid, state

    def take(self, token: int) -> str | None:
        """One more token is handed out. Returns why it is the last one, or None."""
        self.generated += 1
        if token in self.stops:
            return "stop"
        return "length" if self.generated >= self.limit else None
