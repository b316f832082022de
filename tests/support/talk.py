"""Conversations with one rank in this process, through a chat template that drops old thinking; and
how much of each prompt mlx_lm.server would reuse.

The answers are what a test says: a grammar allows nothing else. So a client can send back what the
model has said, as real ones do.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import LRUPromptCache
from mlx_lm.server import ResponseGenerator
from mlx_lm.utils import load_tokenizer

from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.protocol.client import SERVER
from server.protocol.requests import ChatRequest, Common, Sampling
from server.scheduler.queue import Ticket
from server.text.prompts import TokenizerPrompts
from tests.models.architectures import build
from tests.support.desk import Desk
from tests.support.tiny_models import VOCAB, write_byte_tokenizer

# As Qwen 3.5 writes: of an answer's thought nothing is left once the user has spoken again, unless
# preserve_thinking says so.
DROPS_THINKING = """\
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- if ns.last < 0 %}{{ raise_exception('No user query found in messages.') }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|im_start|>user
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% if preserve_thinking or loop.index0 > ns.last %}<think>
{{ (m.reasoning_content or '').strip() }}
</think>

{% endif %}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif not loop.first %}{{ raise_exception('System message must be at the beginning.') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
PLAIN = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
END = "<|im_end|>"


def write_tokenizer(folder: Path, template: str = DROPS_THINKING, context: int = 2**17) -> Path:
    """A byte-level tokenizer that knows marks of thinking."""
    folder.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(folder, VOCAB, context)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        text = text.replace("<|spare_0|>", "<think>").replace("<|spare_1|>", "</think>")
        (folder / name).write_text(text)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text("{}")
    return folder


class Says:
    """A grammar that allows one sequence of tokens."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def matcher(self) -> "Says":
        return Says(list(self.ids))

    def accept(self, token: int) -> None:
        assert token == self.ids.pop(0)

    def mask(self) -> np.ndarray | None:
        allowed = np.zeros(-(-VOCAB // 32) * 32, dtype=np.uint8)
        allowed[self.ids[:1] or slice(VOCAB)] = 1
        return np.packbits(allowed, bitorder="little").view(np.uint32)


class Peer:
    """mlx_lm.server's own code that splits prompts and keeps caches. Its caches hold nothing."""

    def __init__(self, tokenizer, cuttable: bool) -> None:
        self._tokenizer, self._cuttable = tokenizer, cuttable
        self._cache = LRUPromptCache(10)
        provider = SimpleNamespace(processor=None, cli_args=SimpleNamespace(chat_template_args={}))
        self._server = SimpleNamespace(model_provider=provider)

    def ask(self, request: ChatRequest, answer: list[int]) -> int:
        """How many tokens of the prompt it need not compute."""
        asked = SimpleNamespace(
            request_type="chat", messages=request.messages, tools=request.tools or None,
            role_mapping=None,
        )  # fmt: skip
        arguments = SimpleNamespace(chat_template_kwargs=dict(request.template_kwargs))
        prompt, segments, kinds, *_ = ResponseGenerator._tokenize(
            self._server, self._tokenizer, asked, arguments
        )
        _, rest = self._cache.fetch_nearest_cache("model", prompt)
        cached, done = len(prompt) - len(rest), 0
        ends = [sum(map(len, segments[: n + 1])) for n in range(len(segments))]
        ends[-1] -= 1  # the last token is computed by itself
        for end, kind in zip(ends, kinds, strict=True):
            if end > max(cached, done):
                self._keep(prompt[:end], kind)
            done = end
        self._keep([*prompt, *answer], "assistant")
        return cached

    def _keep(self, tokens: list[int], kind: str) -> None:
        self._cache.insert_cache("model", tokens, [_Nothing(self._cuttable)], cache_type=kind)


class _Nothing:
    nbytes = 0

    def __init__(self, cuttable: bool) -> None:
        self.is_trimmable = lambda: cuttable

    def trim(self, tokens: int) -> int:
        return tokens


class Talk:
    """One server and who talks with it. architecture: of tests/models; desk: more of Desk's."""

    def __init__(
        self, folder: Path, architecture: str, template: str = DROPS_THINKING, **desk
    ) -> None:
        model = build(architecture)
        mx.eval(model.parameters())
        shard = SimpleNamespace(model=model, last=LastLogits(model, put_heads(model)), vocab=VOCAB)
        self.tokenizer = load_tokenizer(write_tokenizer(folder, template))
        self.cuttable = reuse_kind(model) == REUSE_CUT
        self.prompts = TokenizerPrompts(self.tokenizer, VOCAB, find_places=not self.cuttable)
        eos = tuple(self.tokenizer.eos_token_ids)
        self.desk = Desk(shard, cuttable=self.cuttable, eos=eos, **{"room": 10**6} | desk)
        self.bare = Desk(shard, eos=eos)
        self.peer = Peer(self.tokenizer, self.cuttable)

    def ticket(self, messages: list[dict], says: str | None = None, **request) -> Ticket:
        """says: what the model answers; None: its likeliest 8 tokens."""
        asked = ChatRequest(messages, **request)
        prompt = self.prompts.from_chat(asked)
        places = self.prompts.places(asked, prompt, SERVER)
        grammar = None if says is None else Says(self.encode(says + END))
        common = Common(sampling=Sampling(temperature=0), ignore_eos=says is None)
        return Ticket(prompt, 8 if says is None else 4096, common, grammar=grammar, places=places)

    def ask(self, messages: list[dict], says: str = "so\n</think>\n\nsaid", **request):
        """(tokens of the prompt, how many were reused, how many mlx_lm.server would reuse)."""
        one = self.ticket(messages, says, **request)
        before = self.desk.computed
        (ids,) = self.desk.run(one)
        assert ids == self.encode(says + END)
        assert self.desk.computed - before == len(one.prompt) - one.cached
        return len(one.prompt), one.cached, self.peer.ask(ChatRequest(messages, **request), ids)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
