"""Single fields: wrong types, values outside the range, the ends of the range, and mixtures.

Values are JSON texts, since NaN, 1e400 or a number of 400 digits have no other form.
"""

import json
import random

from tests.poison.case import BAD, CHAT, COMPLETIONS, FINE, Case, body, put

PROMPT = {"prompt": [5, 6, 7], "max_tokens": 4, "seed": 1}
TURN = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "seed": 1}
MIXTURES = 60

DIGITS = "9" * 400
NO_NUMBER = ('"1"', "[]", "[1]", "{}", "true", "NaN", "Infinity", "-Infinity", "1e400", DIGITS)
NO_COUNT = ('"5"', "[5]", "{}", "true", "1.5", "1e400", "-2", "2147483648", "NaN", DIGITS)
NO_FLAG = ("1", "0", '"true"', "[]", "{}")
NO_LIST = ("5", '"x"', "{}", "true")
NO_OBJECT = ("5", '"x"', "[]", "true")

# Refused in any version of the API.
WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    COMPLETIONS: {
        "temperature": (*NO_NUMBER, "-0.1", "2.1", "-1e308", "-5e-324"),
        "top_p": (*NO_NUMBER, "0", "-1", "1.1", "1e-400"),
        "min_p": (*NO_NUMBER, "-0.1", "1.5"),
        "presence_penalty": (*NO_NUMBER, "-2.1", "2.1"),
        "frequency_penalty": (*NO_NUMBER, "-2.1", "2.1"),
        "repetition_penalty": (*NO_NUMBER, "0", "-1", "10.1"),
        "top_k": ("-2", "1.5", "2147483648", '"5"', "true", "[1]", DIGITS),
        "seed": (
            "9223372036854775808",
            "-9223372036854775809",
            "1.5",
            "1e400",
            '"1"',
            "true",
            "[]",
            "NaN",
            "9" * 4000,
            "9" * 5000,  # more than Python cares to convert
        ),
        "max_tokens": (*NO_COUNT, "0"),
        "max_completion_tokens": (*NO_COUNT, "0"),
        "n": (*NO_COUNT, "0", "-1", "129"),
        "stop": (
            "5",
            "true",
            "{}",
            "[5]",
            '["a", 5]',
            "[null]",
            '[["a"]]',
            '"\\ud800"',
            '["\\udfff"]',
            json.dumps("a" * 1025),
            json.dumps([f"{i:02}" + "é" * 63 for i in range(64)]),  # 4,160 characters in all
            json.dumps([f"{i:02}" + "a" * 1022 for i in range(64)]),
            json.dumps([str(i) for i in range(65)]),
            json.dumps([str(i) for i in range(5000)]),
        ),
        "stream": NO_FLAG,
        "ignore_eos": NO_FLAG,
        "speculate": NO_FLAG,
        "echo": NO_FLAG,
        "stream_options": (*NO_OBJECT, '{"include_usage": "yes"}', '{"include_usage": 1}'),
        "logit_bias": (
            *NO_OBJECT,
            '{"x": 1}',
            '{"-1": 1}',
            '{"999999": 1}',
            '{"5": 101}',
            '{"5": "a"}',
            '{"5": NaN}',
            '{"": 1}',
        ),
        "min_tokens": ('"5"', "[5]", "true", "1.5", "-1", "2147483648"),
        "stop_token_ids": NO_LIST,
        "logprobs": ("21", "-1", "true", '"5"', "1.5"),
        "best_of": ("0", "-1", "true", '"5"'),
        "suffix": ("5", "[]", '"\\ud800"'),
    },
    CHAT: {
        "logprobs": ("5", '"x"', "[]"),
        "top_logprobs": ("21", "-1", "true", '"5"', "5"),  # 5: without logprobs
        "tools": NO_LIST,
        "tool_choice": ("5", "[]", '"must"', '{"type": "function"}', '{"type": 5}'),
        "response_format": (
            *NO_OBJECT,
            '{"type": "xml"}',
            '{"type": 5}',
            '{"type": []}',
            '{"type": {"a": 1}}',
            '{"type": "json_schema", "json_schema": 5}',
        ),
        "chat_template_kwargs": (
            *NO_OBJECT,
            '{"chat_template": "{{ 7 * 7 }}"}',
            '{"tokenize": false}',
            '{"messages": []}',
            '{"conversation": []}',
            '{"return_tensors": "pt"}',
            '{"max_length": 1, "truncation": true}',
            '{"tokenizer_kwargs": {}}',
            '{"add_generation_prompt": false}',
        ),
        "reasoning_effort": ("5", "[]", "true", '"\\ud800"'),
    },
}

UNKNOWN_MODELS = (
    '""',
    '"other"',
    '"demo "',
    '"../../../../etc/passwd"',
    '"https://example.invalid/model"',
    '"$(reboot)"',
    '"\\u0000"',
    json.dumps("m" * 1_000_000),
)
NO_MODEL = ("5", "true", "[]", '{"a": 1}', '"\\ud800"')

# Allowed, and as far out as it goes.
EXTREME: dict[str, tuple[str, ...]] = {
    "temperature": ("0", "-0.0", "2", "1e-400", "5e-324", "1e-300", "0.000999", "null"),
    "top_p": ("1", "5e-324", "1e-10", "0.9999999999999999", "null"),
    "min_p": ("0", "1", "5e-324", "1e-10"),
    "top_k": ("-1", "0", "1", "264", "265", "100000", "2147483647"),
    "seed": ("9223372036854775807", "-9223372036854775808", "0", "-1", "1.0", "1e3"),
    "presence_penalty": ("2", "-2", "5e-324"),
    "frequency_penalty": ("2", "-2", "-0.0"),
    "repetition_penalty": ("10", "5e-324", "1e-300", "1e-45", "1e-38"),
    "max_tokens": ("1", "64.0", "1e2"),
    "stop": (
        "null",
        "[]",
        '""',
        '["", ""]',
        '"\\u0000"',
        json.dumps([f"{i:02}" + "é" * 62 for i in range(64)]),
        json.dumps([f"{i:02}" + "é" * 1022 for i in range(4)]),
        json.dumps(["__match__", "__fail__"]),
    ),
    "n": ("1", "null"),
    "user": ("5", '"\\ud800"', "[[[[]]]]", DIGITS, "1e400"),  # ignored, whatever it is
    "\\": ("1",),
    "": ("null",),
}


def cases() -> list[Case]:
    found = []
    for path, base in ((COMPLETIONS, PROMPT), (CHAT, TURN)):
        for field, texts in WRONG[path].items():
            found += [_case(path, base, field, text, BAD) for text in texts]
    for text in UNKNOWN_MODELS:
        found.append(_case(COMPLETIONS, PROMPT, "model", text, 404))
    for text in NO_MODEL:
        found.append(_case(CHAT, TURN, "model", text, BAD))
    for field, texts in EXTREME.items():
        found += [_case(COMPLETIONS, PROMPT, field, text, FINE) for text in texts]
    return found + _mixtures()


def _case(path: str, base: dict, field: str, text: str, status: int) -> Case:
    shown = text if len(text) <= 40 else f"{text[:24]}...{len(text)}"
    return body(f"{path[4:]} {field}={shown}", path, put(base, field, text), status)


def _mixtures() -> list[Case]:
    """Extremes of every kind in one request, in half of them with one wrong value among them."""
    chance = random.Random(3)
    wrong = WRONG[COMPLETIONS]
    found = []
    for i in range(MIXTURES):
        chosen = {
            field: chance.choice(texts)
            for field, texts in EXTREME.items()
            if field != "max_tokens" and chance.random() < 0.7
        }
        status = FINE
        if i % 2:
            field = chance.choice(sorted(wrong))
            chosen[field] = chance.choice(wrong[field])
            status = BAD
        base = {name: value for name, value in PROMPT.items() if name not in chosen}
        base |= {"stream": True} if i % 3 == 0 and "stream" not in chosen else {}
        text = json.dumps(base)[:-1]
        text += "".join(f", {json.dumps(name)}: {value}" for name, value in chosen.items()) + "}"
        found.append(body(f"mixture {i}", COMPLETIONS, text, status))
    return found
