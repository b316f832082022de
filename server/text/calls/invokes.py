"""Calls as elements whose names are attributes: DeepSeek's DSML (V3.2 and V4), MiniMax M2, Kimi K3,
Muse Spark, MiniCPM5. Pure; rank 0's HTTP threads.

Values stand as they are, without any layout around them. DSML and Kimi K3 say of each value
whether it is a string.
"""

import re

from server.text.calls.elements import Elements, Shape

# Attributes before and after the one that is looked for.
_BEFORE, _AFTER = r"(?:[^<>\n]{0,64}?\s)?", r"(?:\s[^<>\n]{0,64}?)?\s*"
_QUOTED = r" *= *[\"']?(?P<{}>(?<=[\"'])[^\"'<>\n]{{1,256}}(?=[\"'])|[^\s\"'<>]{{1,256}})[\"']?"
_NAME, _KEY = _QUOTED.format("name"), _QUOTED.format("key")
# What stands ahead among the attributes of an argument.
_AHEAD = r"(?:(?=[^<>\n]{{0,400}}?\b{} *= *[\"']?(?P<said>\w{{1,16}})))?"


def _invokes(
    blocks: tuple[tuple[str, str], ...],
    call: str,
    argument: str,
    said: str = "",
    cdata: bool = False,
) -> Elements:
    """call, argument: names of the elements. said: an attribute of an argument, read ahead."""
    call_, argument_ = re.escape(call), re.escape(argument)
    return Elements(
        Shape(
            blocks=blocks,
            bare=f"<{call} name=",
            call_head=f"<{call} ",
            call_open=re.compile(rf"<{call_} {_BEFORE}name{_NAME}{_AFTER}>"),
            call_close=f"</{call}>",
            argument_head=f"<{argument} ",
            argument_open=re.compile(rf"<{argument_} {said}{_BEFORE}name{_KEY}{_AFTER}>"),
            argument_close=f"</{argument}>",
            cdata=cdata,
        )
    )


DSML = _invokes(
    (
        ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        ("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),
    ),
    "｜DSML｜invoke",
    "｜DSML｜parameter",
    said=_AHEAD.format("string"),
)
MINIMAX_M2 = _invokes((("<minimax:tool_call>", "</minimax:tool_call>"),), "invoke", "parameter")
MUSE_SPARK = _invokes(
    (("<atem:function_calls>", "</atem:function_calls>"),),
    "atem:invoke",
    "atem:parameter",
)
MINICPM5 = _invokes((), "function", "param", cdata=True)
KIMI_K3 = Elements(
    Shape(
        blocks=(("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),),
        bare="<|open|>call ",
        call_head="<|open|>call ",
        call_open=re.compile(rf"<\|open\|>call {_BEFORE}tool{_NAME}{_AFTER}<\|sep\|>"),
        call_close="<|close|>call<|sep|>",
        argument_head="<|open|>argument ",
        argument_open=re.compile(
            rf"<\|open\|>argument {_AHEAD.format('type')}{_BEFORE}key{_KEY}{_AFTER}<\|sep\|>"
        ),
        argument_close="<|close|>argument<|sep|>",
    )
)
