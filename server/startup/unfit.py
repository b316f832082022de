"""Architectures that a generic split is known not to suit, with the reason.

What is not here is found out at the start, from the layers themselves, and proven. This is to know
it before launch, without MLX; tests/models/matrix.py, run with all architectures, says what belongs
here.
"""

from collections.abc import Mapping

TENSOR, PIPELINE = "generic tensor", "generic pipeline"

_MORE_THAN_ONCE = "its layers run more than once in a pass"
_SHARED = "its layers use what the first ones have"

UNFIT: Mapping[str, Mapping[str, str]] = {
    "afm7": {
        TENSOR: "its projections are of a kind of their own",
        PIPELINE: "its last layers look into the caches of others",
    },
    "dbrx": {PIPELINE: "it looks at numbers in the midst of its layers"},
    "exaone": {TENSOR: "its attention takes all heads together for the hidden size"},
    "gemma3n": {TENSOR: "its feed-forward blocks look at their whole width"},
    "gpt_neox": {TENSOR: "queries, keys and values of its heads are interleaved"},
    "gptj": {PIPELINE: "its layers are not called with a hidden state first"},
    "iquestloopcoder": {PIPELINE: _MORE_THAN_ONCE},
    "nanbeige": {PIPELINE: _MORE_THAN_ONCE},
    "nanochat": {TENSOR: "its attention takes all heads together for the hidden size"},
    "rwkv7": {PIPELINE: _SHARED},
    "talkie": {PIPELINE: "its layers take more than a hidden state from each other"},
}
