"""Calls as elements whose names are attributes: DeepSeek's DSML (V3.2 and V4), MiniMax M2, Kimi K3,
Muse Spark, MiniCPM5. Pure; rank 0's HTTP threads.

Values stand as they are, without any layout around them. DSML and Kimi K3 say of each value
whether it is a string.
"""

import re

from server.text.calls.elements import Elements, Shape

_QUOTED = r"[\"']?(?P<{}>[^\"'<>\n]{{1,256}})[\"']?"
_NAME, _KEY = _QUOTED.format("name"), _QUOTED.format("key")


def _invokes(
    blocks: tuple[tuple[str, str], ...],
    call: str,
    argument: str,
    said: str = "",
    cdata: bool = False,
) -> Elements:
    """call, argument: names of the elements. said: what may stand after an argument's name."""
    call_, argument_ = re.escape(call), re.escape(argument)
    return Elements(
        Shape(
            blocks=blocks,
            call_head=f"<{call} name=",
            call_open=re.compile(rf"<{call_} name={_NAME}\s*>"),
            call_close=f"</{call}>",
            argument_head=f"<{argument} name=",
            argument_open=re.compile(rf"<{argument_} name={_KEY}{said}\s*>"),
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
    said=r'(?:\s+string="(?P<said>true|false)")?',
)
MINIMAX_M2 = _invokes((("<minimax:tool_call>", "</minimax:tool_call>"),), "invoke", "parameter")
MUSE_SPARK = _invokes(
    (("<atem:function_calls>", "</atem:function_calls>"),),
    "atem:invoke",
    "atem:parameter",
    said=r"(?:\s[^<>\n]{0,128})?",
)
MINICPM5 = _invokes((), "function", "param", cdata=True)
KIMI_K3 = Elements(
    Shape(
        blocks=(("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),),
        call_head="<|open|>call ",
        call_open=re.compile(
            r'<\|open\|>call [^<>\n]{0,64}?tool="(?P<name>[^"<>\n]{1,256})"[^<>\n]{0,64}<\|sep\|>'
        ),
        call_close="<|close|>call<|sep|>",
        argument_head="<|open|>argument ",
        argument_open=re.compile(
            r'<\|open\|>argument key="(?P<key>[^"<>\n]{1,256})"'
            r'(?: type="(?P<said>\w{1,16})")?<\|sep\|>'
        ),
        argument_close="<|close|>argument<|sep|>",
    )
)
