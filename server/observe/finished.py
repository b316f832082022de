"""Histograms of requests whose answers are whole: tokens, times and limits, by choice as vLLM has.

Fed by HTTP threads as requests end, under the Recorder's lock. Imports no mlx.
"""

from server.observe.account import Answering
from server.observe.histogram import Histogram, Snapshot

WHOLE = (0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 960, 1920, 7680)  # seconds
# Seconds a token.
GAPS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 40)
TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5)) + (10**6,)
CHOICES = (1, 2, 5, 10, 20, 50, 100)

# Each with what it says in /metrics.
HISTOGRAMS = {
    "request_prompt_tokens": (TOKENS, "Tokens of the prompt of a finished choice. As vLLM's."),
    "request_generation_tokens": (TOKENS, "Tokens that a finished choice got. As vLLM's."),
    "request_max_num_generation_tokens": (
        TOKENS, "Tokens of the longest choice of a finished request. As vLLM's.",
    ),
    "request_params_max_tokens": (
        TOKENS,
        "The most that a finished choice could have got: what its request asked for, or what the "
        "context had room for. As vLLM's.",
    ),
    "request_params_n": (CHOICES, "Choices of a finished request. As vLLM's."),
    "request_prefill_time_seconds": (
        WHOLE, "From the ranks' beginning on a finished choice to its first token. As vLLM's.",
    ),
    "request_decode_time_seconds": (
        WHOLE, "From the first token of a finished choice to its last. As vLLM's.",
    ),
    "request_inference_time_seconds": (
        WHOLE, "Both: from the ranks' beginning on a finished choice to its last token. As vLLM's.",
    ),
    "request_time_per_output_token_seconds": (
        GAPS, "Decode time of a finished choice over its tokens after the first. As vLLM's.",
    ),
}  # fmt: skip


class Finished:
    """One histogram a name of HISTOGRAMS."""

    def __init__(self) -> None:
        self._histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}

    def add(self, generation: Answering) -> None:
        """Counts a request that has its whole answer."""
        tickets, tokens = generation.tickets(), generation.tokens()
        if not tokens:
            return  # it has no choices: these are embeddings
        self._observe("request_params_n", len(tickets))
        self._observe("request_max_num_generation_tokens", max(tokens))
        for ticket, count in zip(tickets, tokens, strict=True):
            self._observe("request_prompt_tokens", len(ticket.prompt))
            self._observe("request_generation_tokens", count)
            self._observe("request_params_max_tokens", ticket.max_tokens)
            if not (ticket.started and ticket.first_token):
                continue
            decode = ticket.last_token - ticket.first_token
            self._observe("request_prefill_time_seconds", ticket.first_token - ticket.started)
            self._observe("request_decode_time_seconds", decode)
            self._observe("request_inference_time_seconds", ticket.last_token - ticket.started)
            if count > 1:
                self._observe("request_time_per_output_token_seconds", decode / (count - 1))

    def snapshots(self) -> dict[str, Snapshot]:
        """By name."""
        return {name: histogram.snapshot() for name, histogram in self._histograms.items()}

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)
