"""Who picks the next tokens of a step: rank 0 for all, and how that reaches every rank.

Runs on the main thread of every rank. If each rank sampled for itself, ranks that round
differently would part ways and hang. Here rank 0 chooses, and one all_sum carries the tokens to
every rank, with the mailbox's header behind them: the only collective that a step costs beyond
the model's own. It opens the step that the tokens go into, rather than close the one that they
come from, because rank 0 has newer news by then.
"""

from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from server.link import Link
from server.mailbox import Header
from server.rows import Row
from server.sampling import sample, score_tokens


class Chooser(Protocol):
    """This rank's part of a step, and of the look at a prompt."""

    def row(self, uid: int) -> Row | None: ...

    def header(self) -> list[int]:
        """Rank 0's news for the other ranks; zeros from a worker."""
        ...

    def propose(
        self, logits: mx.array, rows: list[Row | None], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """This rank's part of the next tokens, [B] int32, and what else to evaluate with it.

        logits: [B, V]; inputs: [B], the tokens that they follow.
        """
        ...

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        """Notes the log-probabilities of a prompt's tokens; returns arrays to evaluate.

        logits: [T, V], those from which the tokens, T of them, would have been chosen.
        """
        ...


class ChoosesForAll:
    """Rank 0: samples. A row whose sampling fails is reported through on_failure and gets a
    token all the same, so that every rank's shapes stay equal until the request is dropped."""

    def __init__(
        self,
        make_row: Callable[[int], Row],
        header: Callable[[], list[int]],
        on_failure: Callable[[Row, Exception], None],
    ) -> None:
        self.row = make_row
        self.header = header
        self._on_failure = on_failure

    def propose(
        self, logits: mx.array, rows: list[Row], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        try:
            return sample(logits, rows, inputs.tolist)
        except Exception:
            return self._sample_apart(logits, rows, inputs)

    def _sample_apart(self, logits: mx.array, rows: list[Row], inputs: mx.array):
        tokens, extras = [], []
        for i, row in enumerate(rows):
            one = slice(i, i + 1)
            try:
                token, more = sample(logits[one], [row], inputs[one].tolist)
                extras += more
            except Exception as error:
                self._on_failure(row, error)
                token = mx.argmax(logits[one], axis=-1).astype(mx.int32)
            tokens.append(token)
        return mx.concatenate(tokens), extras

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        row = self.row(uid)
        scores = score_tokens(logits, mx.array(tokens), row.logprobs or 0)
        row.prompt_scores.append(scores)
        return scores.arrays()


class Follows:
    """A worker: adds zeros to rank 0's choice."""

    def row(self, uid: int) -> None:
        return None

    def header(self) -> list[int]:
        return [0] * Header.SIZE

    def propose(
        self, logits: mx.array, rows: list[None], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        zeros = mx.zeros(logits.shape[0], dtype=mx.int32)
        # Without this, laziness would skip the forward pass and its collectives on this rank,
        # and rank 0 would wait for them for ever.
        return mx.depends([zeros], [logits])[0], []

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        # Rank 0 looks at the logits, so its last layer's collectives run; so must they here.
        return [logits]


class Step:
    """The sampler slot of mlx-lm's batches, which all of them carry along unchanged."""

    def __init__(self, link: Link, chooser: Chooser) -> None:
        self._link = link
        self._chooser = chooser
        self.propose = chooser.propose

    def share(self, mine: mx.array) -> mx.array:
        """All ranks' parts of the tokens [B], and the header behind them: [B+H] int32, lazy."""
        header = mx.array(self._chooser.header(), dtype=mx.int32)
        return self._link.sum(mx.concatenate([mine, header]))
