"""The engine: requests by uid, over batches of rows. Submit, cancel, step.

Runs on the main thread of every rank; every rank makes the same calls in the same order. Choices
of one prompt share its prefill; a prompt whose log-probabilities are wanted is prefilled apart.
"""

import copy
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx_lm.generate import StopSequences
from mlx_lm.models.cache import make_prompt_cache

from server.batches import LockstepGenerator
from server.choosers import Chooser, Step
from server.link import Link
from server.mailbox import Header
from server.messages import Submit
from server.tickets import Prefilled, Token


@dataclass
class Scoring:
    """A prompt whose log-probabilities rank 0 wants: prefilled here, chunk by chunk."""

    message: Submit
    cache: list
    done: int = 0  # tokens


@dataclass(frozen=True)
class Turn:
    """What a step did: (uid, event) pairs, how many tokens of prompts were computed, and the
    header that came with the tokens, if tokens came."""

    events: list[tuple[int, Token | Prefilled]]
    computed: int
    header: Header | None


class Engine:
    """Requests by uid: submit, cancel, step. prefill_step: tokens of a full chunk."""

    def __init__(
        self,
        model,
        link: Link,
        chooser: Chooser,
        *,
        max_batch: int,
        prefill_step: int,
        eos: list[int],
    ) -> None:
        self._model = model
        self._chooser = chooser
        self._prefill_step = prefill_step
        self._pace = prefill_step
        self._eos = eos
        self._generator = LockstepGenerator(
            model, Step(link, chooser), max_batch=max_batch, prefill_step=prefill_step
        )
        self._inner: dict[int, int] = {}  # our uid -> mlx-lm's
        self._outer: dict[int, int] = {}
        self._forks: dict[int, Submit] = {}  # by the uid of the first, until it is prefilled
        self._scoring: dict[int, Scoring] = {}

    @property
    def busy(self) -> bool:
        """Whether step() has anything to do. The same on every rank."""
        return self._generator.busy or bool(self._scoring)

    def submit(self, message: Submit) -> None:
        """Puts a prompt in; it is prefilled in the coming steps."""
        if message.score and len(message.prompt) > 1:
            self._scoring[message.uid] = Scoring(message, make_prompt_cache(self._model))
        else:
            self._insert(message, message.uid, list(message.prompt))
        if message.forks:
            self._forks[message.uid] = message
            if len(message.prompt) == 1:
                self._fork_all(message.uid, None)

    def cancel(self, uid: int) -> None:
        """Drops a request wherever it is; unknown uids are ignored."""
        for first, message in list(self._forks.items()):
            if uid in message.forks:
                left = tuple(fork for fork in message.forks if fork != uid)
                self._forks[first] = replace(message, forks=left)
        orphans = self._forks.pop(uid, None)
        self._scoring.pop(uid, None)
        inner = self._inner.pop(uid, None)
        if inner is not None:
            del self._outer[inner]
            self._generator.remove([inner])
        if orphans is not None and orphans.forks:
            # The first of them is gone before its prompt was done: the next takes its place.
            uid, *rest = orphans.forks
            self.submit(replace(orphans, uid=uid, forks=tuple(rest)))

    def pace(self, tokens: int) -> None:
        """How many tokens of prompts to compute between two decode steps from now on."""
        self._pace = min(tokens, self._prefill_step)

    def step(self) -> Turn:
        """One decode step, then one prefill chunk, where there is any: a full one if nothing
        decodes."""
        events: list[tuple[int, Token | Prefilled]] = []
        for response in self._generator.decode():
            uid = self._outer[response.uid]
            events.append((uid, Token(response.token, response.finish_reason)))
            if response.finish_reason is not None:
                del self._outer[response.uid], self._inner[uid]
        chunk = self._pace if self._generator.decoding else self._prefill_step
        if self._scoring:
            chunk = max(1, chunk // 2)  # the two kinds of prompts share it
        prompts, computed = self._generator.prefill(chunk)
        for response in prompts:
            uid = self._outer[response.uid]
            events.append((uid, Prefilled(*response.progress)))
            if response.end_of_prompt and uid in self._forks:
                cache, _ = self._generator.extract_cache([response.uid])[response.uid]
                self._fork_all(uid, cache)
        if self._scoring:
            event, scored = self._score_chunk(next(iter(self._scoring.values())), chunk)
            events.append(event)
            computed += scored
        for response in self._generator.promote():
            events.append((self._outer[response.uid], Prefilled(*response.progress)))
        header = self._generator.read_header()
        return Turn(events, computed, None if header is None else Header(*header))

    def _insert(self, message: Submit, uid: int, prompt: list[int], cache=None) -> None:
        """prompt: what is not in cache yet."""
        done = list(message.prompt[: len(message.prompt) - len(prompt)])
        ends = [(token,) for token in message.stop_ids]
        if not message.ignore_eos:
            ends += [(token,) for token in self._eos]
        (inner,) = self._generator.insert_segments(
            [[prompt]],
            max_tokens=[message.max_tokens],
            caches=None if cache is None else [cache],
            all_tokens=[done],
            samplers=[self._chooser.row(uid)],
            stop_sequences=[StopSequences(ends)],
        )
        self._inner[uid] = inner
        self._outer[inner] = uid

    def _fork_all(self, uid: int, cache: list | None) -> None:
        """Puts the other choices in, each with its own copy of the prompt's cache."""
        message = self._forks.pop(uid)
        for fork in message.forks:
            # A deep copy shares the arrays, which are never changed in place.
            self._insert(message, fork, list(message.prompt[-1:]), copy.deepcopy(cache))

    def _score_chunk(self, job: Scoring, chunk: int) -> tuple[tuple[int, Prefilled], int]:
        """One chunk of a prompt with its logits; the last one hands over to the generator.

        Returns an event and the tokens computed.
        """
        uid, prompt = job.message.uid, job.message.prompt
        start, end = job.done, min(job.done + chunk, len(prompt) - 1)
        logits = self._model(mx.array([prompt[start:end]]), cache=job.cache)[0]
        extras = self._chooser.score(uid, logits, list(prompt[start + 1 : end + 1]))
        mx.eval([layer.state for layer in job.cache], extras)
        job.done = end
        if end == len(prompt) - 1:
            del self._scoring[uid]
            self._insert(job.message, uid, list(prompt[-1:]), copy.deepcopy(job.cache))
            if uid in self._forks:
                self._fork_all(uid, job.cache)
        return (uid, Prefilled(end, len(prompt))), end - start
