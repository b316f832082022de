"""The choice of the next tokens: one call for the whole batch, whatever mix of parameters.

Called on rank 0's main thread, for the rows that fall to it; what other ranks draw needs no more
than filters.py. Penalties follow vLLM: repetition over prompt and
output, presence and frequency over output alone. What a request does not ask for is not computed.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from server.sampling.filters import draw
from server.sampling.row_state import Row, Scores
from server.sampling.token_masks import apply_mask


def sample(
    logits: mx.array, rows: list[Row], previous: Callable[[], list[int]]
) -> tuple[mx.array, list[mx.array]]:
    """Next tokens, lazy. logits: [B, V], one row a request.

    previous: the last token of each row, evaluated; asked for only when a grammar must see it.
    The caller advances the rows' positions. Returns tokens [B] int32, and the other arrays to
    evaluate with them (log-probabilities).
    """
    logits = logits.astype(mx.float32)
    raw = logits
    logits = _adjust(logits, rows)
    constrained = [i for i, row in enumerate(rows) if row.constrained]
    if constrained:
        # The forward pass goes on while the grammars look at its input: only the choice waits.
        mx.async_eval(logits)
        logits = _constrain(logits, rows, constrained, previous())
    drawing = [i for i, row in enumerate(rows) if not row.greedy]
    if len(drawing) == len(rows):
        tokens = draw(logits, rows)
    else:
        tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
        if drawing:
            places = mx.array(drawing)
            tokens[places] = draw(logits[places], [rows[i] for i in drawing])
    extras = _score(raw, tokens, rows)
    for i, row in enumerate(rows):
        row.note(tokens, i)
    return tokens, extras


def _adjust(logits: mx.array, rows: list[Row]) -> mx.array:
    """Bias, penalties, and end tokens that would come too early."""
    penalised = [i for i, row in enumerate(rows) if row.penalised]
    if penalised:
        places = mx.array(penalised)
        worse = penalise(logits[places], [rows[i] for i in penalised])
        logits = mx.array(logits)  # assignment would change the caller's too
        logits[places] = worse
    places, ids, values = [], [], []
    for i, row in enumerate(rows):
        for token, value in row.biases():
            places.append(i)
            ids.append(token)
            values.append(value)
    if ids:
        logits = logits.at[mx.array(places), mx.array(ids)].add(mx.array(values))
    return logits


def penalise(logits: mx.array, rows: list[Row]) -> mx.array:
    """Repetition, presence and frequency penalties. logits: [R, V], one row a request."""
    seen, counts = (mx.stack(part) for part in zip(*(row.history() for row in rows), strict=True))
    repetition, presence, frequency = _columns(
        [
            (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
            for s in (row.sampling for row in rows)
        ]
    )
    generated = counts > 0
    shrunk = mx.where(logits > 0, logits / repetition, logits * repetition)
    logits = mx.where(generated | seen, shrunk, logits)
    return logits - frequency * counts - presence * generated


def _columns(values: list[tuple[float, ...]]) -> list[mx.array]:
    """One [R, 1] array for each of the numbers that R rows have."""
    return [mx.array(column)[:, None] for column in zip(*values, strict=True)]


def _constrain(
    logits: mx.array, rows: list[Row], constrained: list[int], previous: list[int]
) -> mx.array:
    """Excludes what the rows' grammars do not allow after their last tokens."""
    masked, masks = [], []
    for i in constrained:
        mask = rows[i].mask_after(previous[i])
        if mask is not None:
            masked.append(i)
            masks.append(mask)
    return apply_mask(logits, masked, np.stack(masks)) if masked else logits


def _score(raw: mx.array, tokens: mx.array, rows: list[Row]) -> list[mx.array]:
    """Log-probabilities of the chosen tokens and their rivals, for the rows that asked."""
    asked = [i for i, row in enumerate(rows) if row.logprobs is not None]
    if not asked:
        return []
    places = mx.array(asked)
    scores = score_tokens(raw[places], tokens[places], max(rows[i].logprobs for i in asked))
    for place, i in enumerate(asked):
        rows[i].scores.append((scores, place))
    return scores.arrays()


def score_tokens(logits: mx.array, tokens: mx.array, alternatives: int) -> Scores:
    """Natural log-probabilities, lazy. logits: [R, V] as the model gave them; tokens: [R].

    alternatives: how many of the likeliest tokens to tell, too.
    """
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None].astype(mx.int32), axis=-1)[:, 0]
    if not alternatives:
        return Scores(tokens, chosen, None, None)
    top = mx.argpartition(-logprobs, kth=alternatives - 1, axis=-1)[:, :alternatives]
    values = mx.take_along_axis(logprobs, top, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return Scores(
        tokens,
        chosen,
        mx.take_along_axis(top, order, axis=-1),
        mx.take_along_axis(values, order, axis=-1),
    )
