"""Who picks the next tokens of a step: rank 0 for all, and how that reaches every rank.

Runs on the main thread of every rank. If each rank sampled for itself, ranks that round
differently would part ways and hang. Here rank 0 chooses, and one all_sum carries the tokens to
every rank, with the mailbox's header behind them: the only collective that a step costs beyond
the model's own.
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

    def propose(
        self, logits: mx.array, rows: list[Row | None], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """Tokens [B] and header [H], as [B+H] int32, and what else to evaluate with them.

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
        self._header = header
        self._on_failure = on_failure

    def propose(
        self, logits: mx.array, rows: list[Row], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        try:
            tokens, extras = sample(logits, rows, inputs.tolist)
        except Exception:
            tokens, extras = self._sample_apart(logits, rows, inputs)
        return mx.concatenate([tokens, mx.array(self._header(), dtype=mx.int32)]), extras

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

    def propose(
        self, logits: mx.array, rows: list[None], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        zeros = mx.zeros(logits.shape[0] + Header.SIZE, dtype=mx.int32)
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

    def __call__(
        self, logits: mx.array, rows: list[Row | None], inputs: mx.array
    ) -> tuple[mx.array, mx.array, list[mx.array]]:
        """Tokens [B] and header [H], the same on every rank, and this rank's extras; all lazy."""
        mine, extras = self._chooser.propose(logits, rows, inputs)
        payload = self._link.sum(mine)
        return payload[: -Header.SIZE], payload[-Header.SIZE :], extras
