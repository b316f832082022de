"""One request's sampling state on rank 0: parameters, random numbers, what it has seen so far."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from server.protocol.events import Score
from server.protocol.failures import is_shared
from server.protocol.requests import Common
from server.sampling.random_state import RandomState
from server.wire.messages import Draw

REPLAY_CPU_S = 5.0  # that a grammar may take for the tokens before a pause; all rows wait


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of R tokens, lazy. tokens, chosen: [R]; top_ids, top: [R, k] or None."""

    tokens: mx.array
    chosen: mx.array
    top_ids: mx.array | None
    top: mx.array | None

    def arrays(self) -> list[mx.array]:
        """What to evaluate."""
        return [a for a in (self.tokens, self.chosen, self.top_ids, self.top) if a is not None]

    def read_all(self, alternatives: int) -> Iterator[Score]:
        """Every entry, each with that many alternatives. The arrays are read at once: to read one
        number of each takes a hundred times as long."""
        tokens, chosen = self.tokens.tolist(), self.chosen.tolist()
        if not alternatives or self.top is None:
            yield from map(Score, tokens, chosen)
            return
        lists = (self.top_ids[:, :alternatives].tolist(), self.top[:, :alternatives].tolist())
        for token, value, ids, values in zip(tokens, chosen, *lists, strict=True):
            yield Score(token, value, tuple(zip(ids, values, strict=True)))

    def read(self, place: int, alternatives: int) -> Score:
        """The entry at place, with that many alternatives, as plain numbers."""
        top: tuple[tuple[int, float], ...] = ()
        if alternatives and self.top is not None:
            ids = self.top_ids[place].tolist()[:alternatives]
            top = tuple(zip(ids, self.top[place].tolist()[:alternatives], strict=True))
        return Score(self.tokens[place].item(), self.chosen[place].item(), top)


class Path:
    """What a row's grammar allows behind each of its drafts. Asked for on rank 0's main thread,
    after what it allows before them."""

    def __init__(self, row: "Row", drafts: Sequence[int]) -> None:
        self.row = row
        self._drafts = drafts
        self._masks: list[np.ndarray | None] | None = None

    def mask(self, place: int) -> np.ndarray | None:
        """None for everything; also behind a draft that is not allowed, where nothing counts."""
        if self._masks is None:
            self._masks = self.row.masks_along(self._drafts)
        return self._masks[place - 1] if place <= len(self._masks) else None


class Row(RandomState):
    """vocab: size of the logits' last axis; eos: ids that end a text; choice: of n, from one seed.

    resume() makes the state of a request that continues from the tokens it has generated.
    """

    def __init__(
        self,
        common: Common,
        prompt: list[int],
        vocab: int,
        eos: tuple[int, ...] = (),
        *,
        choice: int = 0,
        grammar: Any = None,
    ) -> None:
        seed = common.sampling.seed
        chosen = secrets.randbits(64) if seed is None else seed + choice * 0x5851F42D4C957F2D
        super().__init__(common.sampling, chosen)
        self.common = common
        self.logprobs = common.logprobs
        self.scores: deque[tuple[Scores, int]] = deque()  # of tokens not yet delivered
        self.prompt_scores: list[Scores] = []  # of its chunks, until they are read
        self._prompt_read: list[Score] = []
        self._prompt = prompt
        self._vocab = vocab
        self._eos = tuple(token for token in eos if token < vocab)  # tokenizers may have more
        self._grammar = grammar
        self._matcher = None if grammar is None else _ask(grammar.matcher)
        self._shown = 0  # how many generated tokens the grammar has seen
        self._owed: deque[int] = deque()  # that it has not, but for the last one
        self._before: list[int] = []  # generated before a pause
        self._path: tuple[Path, int] | None = None  # of a place behind drafts
        self.guess: Any = None  # what the scheduler keeps to make drafts for it
        self._seen: mx.array | None = None  # [V] bool: token is in the prompt
        self._counts: mx.array | None = None  # [V] float32: how often it was generated

    def resume(self, generated: list[int]) -> "Row":
        """A fresh state, as if these tokens had just been drawn."""
        row = Row(self.common, self._prompt, self._vocab, self._eos, grammar=self._grammar)
        row.seed = self.seed
        row._before = list(generated)
        row.guess = self.guess
        row._owed = deque(generated[:-1])
        row.drawn = len(generated)
        return row

    def draw(self, uid: int) -> Draw | None:
        """What any rank needs to draw for this row, which has that uid.

        None where it takes what rank 0 alone knows; also for a greedy row, which costs little.
        """
        common = self.common
        alone = (
            self.greedy
            or self.penalised
            or self._grammar is not None
            or common.logit_bias
            or common.min_tokens
            or self.logprobs is not None
        )
        return None if alone else self.tell(uid)

    @property
    def penalised(self) -> bool:
        s = self.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0

    @property
    def constrained(self) -> bool:
        return self._matcher is not None

    def biases(self) -> Iterator[tuple[int, float]]:
        """(token id, value to add) for the token about to be drawn."""
        yield from self.common.logit_bias
        # A grammar that is complete allows an end token alone; then it wins.
        ends = self.constrained and getattr(self._grammar, "holds_the_answer", True)
        if self.drawn < self.common.min_tokens and not ends:
            for token in (*self._eos, *self.common.stop_token_ids):
                yield token, -np.inf

    def history(self) -> tuple[mx.array, mx.array]:
        """[V] bool: is it in the prompt? [V] float32: how often was it generated?"""
        if self._counts is None:
            counts = np.bincount(self._before, minlength=self._vocab)
            self._counts = mx.array(counts.astype(np.float32))
            self._seen = mx.zeros(self._vocab, dtype=mx.bool_)
            self._seen[mx.array(self._prompt)] = True
        return self._seen, self._counts

    def mask_after(self, token: int) -> np.ndarray | None:
        """What the grammar allows after token: a bitmask, or None for everything.

        token is the row's last one: of the prompt, while nothing has been drawn. May be asked
        again, where another row of the batch made the first try fail.
        """
        if self._path is not None:
            path, place = self._path
            return path.mask(place)
        if self.drawn > self._shown:
            self._show(token, self.drawn)
        return None if self._matcher is None else _ask(self._matcher.mask)

    def _show(self, token: int, drawn: int) -> None:
        """The grammar sees all tokens up to this one, the last of so many."""
        if token in self._eos:
            # The answer is over; this step was launched before anyone could know.
            self._matcher = None
            return
        # After a pause all tokens again; here, where a failure is this row's alone.
        began = time.thread_time()
        while self._owed:
            _ask(self._matcher.accept, self._owed[0])
            self._owed.popleft()
            if time.thread_time() - began > REPLAY_CPU_S:
                raise ValueError("its grammar takes too long to take its tokens again")
        _ask(self._matcher.accept, token)
        self._shown = drawn

    @property
    def origin(self) -> "Row":
        return self if self._path is None else self._path[0].row

    def places(self, drafts: Sequence[int]) -> list["Row"]:
        path = Path(self, drafts)
        every = super().places(drafts)
        for place, ahead in enumerate(every[1:], 1):
            ahead._path = path, place
        return every

    def _behind(self, drafts: Sequence[int], count: int) -> "Row":
        ahead = super()._behind(drafts, count)  # whose log-probabilities are the row's own
        if self.penalised:
            seen, counts = self.history()
            ahead._seen, ahead._counts = seen, counts.at[mx.array(drafts[:count])].add(1.0)
        return ahead

    def settle(self, drafts: Sequence[int], tokens: Sequence[int]) -> None:
        super().settle(drafts, tokens)
        # A row whose sampling has failed got tokens without them.
        wrong = 1 + len(drafts) - len(tokens)
        for _ in range(min(wrong, len(self.scores))):
            self.scores.pop()
        if self._counts is not None and len(tokens) > 1:  # the first was noted
            self._counts = self._counts.at[mx.array(tokens[1:])].add(1.0)
        if self.constrained and self.drawn > self._shown:
            self._owed.extend(tokens[:-1])

    def masks_along(self, drafts: Sequence[int]) -> list[np.ndarray | None]:
        """What the grammar allows behind each of the drafts that it allows."""
        return [] if self._matcher is None else _ask(self._matcher.look_ahead, drafts)

    def foresee(self, tokens: Sequence[int], drawn: int) -> list[int]:
        """The tokens that the grammar forces behind the row's newest ones, which are the last of so
        many and which it sees now."""
        if self._matcher is None:
            return []
        self._owed.extend(tokens[:-1])
        self._show(tokens[-1], drawn)
        return [] if self._matcher is None else _ask(self._matcher.forced)

    def forced_after(self, count: int) -> list[int]:
        """The same where the grammar has seen so many tokens and no more; else nothing."""
        if self._matcher is None or self._owed or self._shown != count:
            return []
        return _ask(self._matcher.forced)

    def allowed(self, drafts: Sequence[int]) -> int:
        """How many of these the grammar allows next, of a row of which it has seen all."""
        return len(drafts) if self._matcher is None else _ask(self._matcher.allows, drafts)

    @property
    def looks_ahead(self) -> bool:
        """Whether there can be drafts for it."""
        return self._matcher is None or hasattr(self._matcher, "look_ahead")

    def note(self, tokens: mx.array, place: int) -> None:
        """Counts the token at place, lazily: it may still be in flight. tokens: [B] int32."""
        if self._counts is not None:
            self._counts = self._counts.at[tokens[place]].add(1.0)

    def read_prompt_scores(self) -> None:
        """Reads what there is of the prompt's log-probabilities: a chunk's, in each turn. All of a
        long prompt's in one turn would hold up every rank."""
        chunks, self.prompt_scores = self.prompt_scores, []
        for scores in chunks:
            self._prompt_read += scores.read_all(self.logprobs or 0)

    def take_prompt_scores(self) -> tuple[Score, ...]:
        """The log-probabilities of the prompt, from its second token on."""
        self.read_prompt_scores()
        scores, self._prompt_read = self._prompt_read, []
        return tuple(scores)

    def take_score(self) -> Score | None:
        """The log-probability of the oldest token that was not taken yet, if asked for."""
        if self.logprobs is None:
            return None
        scores, place = self.scores.popleft()
        return scores.read(place, self.logprobs)


def _ask(grammar: Callable, *arguments: Any) -> Any:
    """What a grammar answers. Whatever it raises is its own request's failure, and not this rank's
    (failures.py): no array and no link is behind it."""
    try:
        return grammar(*arguments)
    except Exception as error:
        if is_shared(error) or isinstance(error, MemoryError):
            raise
        raise ValueError(str(error) or repr(error)) from error
