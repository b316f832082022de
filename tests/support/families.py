"""The formats in which model families write reasoning and tool calls, over small real tokenizers.

Only the markers are a family's own: they are what a parser must find. Each family's template is
just enough for mlx-lm to know the family by.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

END = "<|end_of_answer|>"
TURNS = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """call writes one call, with arguments as JSON text; calls writes several, one after another.

    cut: how much of a call is there when its tokens run out. broken: a call that no parser can
    read. raw: what the client sees of text that is no call.
    """

    name: str
    markers: tuple[str, ...]  # added to the vocabulary as single tokens
    telltale: str  # what the chat template holds
    parser: str | None  # the parser that mlx-lm finds; None: ours
    call: Callable[[str, str], str]
    calls: Callable[[list[str]], str]
    cut: str
    broken: str
    think: Callable[[str], str] | None = None
    prompt: str = "<|turn|>assistant\n"
    raw: Callable[[str], str] = str
    content: Callable[[str], str] = str
    special: tuple[str, ...] = field(default=("<|turn|>", END))


def _json_call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _xml_call(name: str, arguments: str) -> str:
    body = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in _texts(arguments)
    )
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def _glm_call(name: str, arguments: str) -> str:
    body = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in _texts(arguments)
    )
    return f"<tool_call>{name}\n{body}</tool_call>"


def _dsml_call(name: str, arguments: str) -> str:
    body = "\n".join(
        f'<｜DSML｜parameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
        f"{text}</｜DSML｜parameter>"
        for (key, text), value in zip(
            _texts(arguments), json.loads(arguments).values(), strict=True
        )
    )
    return f'<｜DSML｜invoke name="{name}">\n{body}\n</｜DSML｜invoke>'


def _invoke(open_: str, parameter: str, close: str, name: str, arguments: str) -> str:
    """A call as elements with name attributes. open_, parameter, close: the elements' tags."""
    end = parameter.partition(" ")[0]
    body = "".join(f'<{parameter}="{key}">{value}</{end}>\n' for key, value in _texts(arguments))
    return f'<{open_}="{name}">\n{body}</{close}>'


def _longcat_call(name: str, arguments: str) -> str:
    body = "".join(
        f"<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{value}</longcat_arg_value>\n"
        for key, value in _texts(arguments)
    )
    return f"<longcat_tool_call>{name}\n{body}</longcat_tool_call>"


M3 = "]<]minimax[>["


def _m3_call(name: str, arguments: str) -> str:
    body = "".join(f"{M3}<{key}>{value}{M3}</{key}>\n" for key, value in _texts(arguments))
    return f'{M3}<invoke name="{name}">\n{body}{M3}</invoke>'


def _gemma_call(name: str, arguments: str) -> str:
    return f"<|tool_call>call:{name}{_gemma_value(json.loads(arguments))}<tool_call|>"


def _gemma_value(value) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return f"[{','.join(map(_gemma_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _python_call(name: str, arguments: str) -> str:
    values = json.loads(arguments).items()
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values)})"


def _k3_call(name: str, arguments: str) -> str:
    kinds = {str: "string", int: "integer", dict: "object"}
    body = "".join(
        f'<|open|>argument key="{key}" type="{kinds[type(value)]}"<|sep|>{text}'
        "<|close|>argument<|sep|>"
        for (key, text), value in zip(
            _texts(arguments), json.loads(arguments).values(), strict=True
        )
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{body}<|close|>call<|sep|>'


def _texts(arguments: str) -> list[tuple[str, str]]:
    """Each argument's value as families without JSON write it: strings without quotes."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in json.loads(arguments).items()
    ]


def _kimi_call(name: str, arguments: str) -> str:
    return (
        f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}"
        "<|tool_call_end|>"
    )


def _kimi_calls(calls: list[str]) -> str:
    numbered = "".join(call.replace(":0<", f":{n}<", 1) for n, call in enumerate(calls))
    return f"<|tool_calls_section_begin|>{numbered}<|tool_calls_section_end|>"


def _deepseek_v31_call(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def _deepseek_r1_call(name: str, arguments: str) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"
        "<｜tool▁call▁end｜>"
    )


def _harmony_call(name: str, arguments: str) -> str:
    return (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )


def _named(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "arguments": {arguments}}}'


def _listed(opener: str, closer: str) -> Callable[[list[str]], str]:
    return lambda calls: f"{opener}[{', '.join(calls)}]{closer}"


def _seed_call(name: str, arguments: str) -> str:
    body = "".join(f"<parameter={key}>{value}</parameter>\n" for key, value in _texts(arguments))
    return f"<seed:tool_call>\n<function={name}>\n{body}</function>\n</seed:tool_call>"


def _solar_call(name: str, arguments: str) -> str:
    return (
        f"<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>{name}<|tool_call:args|>{arguments}"
        "<|tool_call:end|>"
    )


def _hunyuan_call(name: str, arguments: str) -> str:
    return f"<tool_call>{name}\n```json\n{arguments}\n```</tool_call>"


def _tags(text: str) -> str:
    return f"<think>\n{text}\n</think>\n\n"


def _closing(text: str) -> str:
    return f"{text}\n</think>\n\n"


def _lines(calls: list[str]) -> str:
    return "\n".join(calls)


def _deepseek_section(calls: list[str]) -> str:
    return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"


TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
DEEPSEEK = (
    "<think>", "</think>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip
OPENED = "<|turn|>assistant\n<think>\n"
_HARMONY_FINAL = "<|channel|>final<|message|>"

FAMILIES = [
    Family(
        "qwen3", TAGS, "<tool_call>{{ tool_call.name }}", "json_tools", _json_call, _lines,
        cut='<tool_call>\n{"name": "weather", "arguments": {"city": "Zü',
        broken='<tool_call>\n{"name": "weather", "arguments": {"city": }}\n</tool_call>',
        think=_tags,
    ),
    Family(
        "qwen3.5", TAGS, "<tool_call>\n<function=", "qwen3_coder", _xml_call, _lines,
        cut="<tool_call>\n<function=weather>\n<parameter=city>\nZü",
        broken="<tool_call>\n<func weather>\n</tool_call>",
        think=_closing, prompt=OPENED,
    ),
    Family(
        "deepseek-v3.1", DEEPSEEK, "<｜Assistant｜>", None, _deepseek_v31_call, _deepseek_section,
        cut='<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Zü',
        broken="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{oh}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        think=lambda text: f"{text}</think>", prompt="<｜Assistant｜><think>",
    ),
    Family(
        "deepseek-r1", DEEPSEEK, "<｜Assistant｜>", None, _deepseek_r1_call, _deepseek_section,
        cut="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{",
        broken="<｜tool▁calls▁begin｜>weather<｜tool▁calls▁end｜>",
        think=_closing, prompt="<｜Assistant｜><think>\n",
    ),
    Family(
        "deepseek-v3.2", ("<think>", "</think>", "<｜Assistant｜>", "｜DSML｜"), "<｜Assistant｜>",
        None, _dsml_call,
        lambda calls: f"<｜DSML｜function_calls>\n{_lines(calls)}\n</｜DSML｜function_calls>",
        cut='<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter nam',
        broken="<｜DSML｜function_calls>weather</｜DSML｜function_calls>",
        think=lambda text: f"{text}</think>", prompt="<｜Assistant｜><think>",
    ),
    Family(
        "glm-4.x", (*TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"), "<arg_key>",
        "glm47", _glm_call, _lines,
        cut="<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zü",
        broken="<tool_call>it would be nice</tool_call>",
        think=lambda text: f"\n<think>{text}</think>\n",
    ),
    Family(
        "kimi-k2",
        (
            "<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
            "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
        ),
        "<|tool_calls_section_begin|>", "kimi_k2", _kimi_call, _kimi_calls,
        cut="<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Zü',
        broken="<|tool_calls_section_begin|><|tool_call_begin|>weather"
        "<|tool_call_end|><|tool_calls_section_end|>",
        think=lambda text: f"<think>{text}</think>",
    ),
    Family(
        "gpt-oss",
        ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>",
         "<|call|>"),
        "<|start|>", None, _harmony_call, "<|start|>assistant".join,
        cut='<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Zü',
        broken="<|channel|>commentary to=functions.weather json<|message|>{oh}<|call|>",
        think=lambda text: f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant",
        prompt="<|start|>assistant",
        raw=lambda text: text.replace("<|channel|>commentary ", ""),
        content=lambda text: f"{_HARMONY_FINAL}{text}<|end|><|start|>assistant",
        special=("<|turn|>", "<|return|>"),
    ),
    Family(
        "llama-3", ("<|python_tag|>", "<|eot_id|>"), "{{ builtin_tools }}", None,
        lambda name, arguments: f'{{"name": "{name}", "parameters": {arguments}}}',
        lambda calls: "<|python_tag|>" + "; ".join(calls),
        cut='<|python_tag|>{"name": "weather", "parameters": {"city": "Zü',
        broken='<|python_tag|>weather.call(city="Zürich")',
    ),
    Family(
        "mistral", ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"), "[TOOL_CALLS]", "mistral",
        lambda name, arguments: f"[TOOL_CALLS]{name}[ARGS]{arguments}", "".join,
        cut='[TOOL_CALLS]weather[ARGS]{"city": "Zü',
        broken="[TOOL_CALLS]weather in town",
        think=lambda text: f"[THINK]{text}[/THINK]",
    ),
    Family(
        "mistral-7b", ("[TOOL_CALLS]",), "[TOOL_CALLS]", "mistral",
        lambda name, arguments: f'{{"name": "{name}", "arguments": {arguments}}}',
        lambda calls: f"[TOOL_CALLS] [{', '.join(calls)}]",
        cut='[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zü',
        broken='[TOOL_CALLS] [{"tool": "weather"}]',
    ),
    Family(
        "deepseek-v4", ("<think>", "</think>", "<｜Assistant｜>", "｜DSML｜"), "<｜Assistant｜>",
        None, _dsml_call,
        lambda calls: f"<｜DSML｜tool_calls>\n{_lines(calls)}\n</｜DSML｜tool_calls>",
        cut='<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter nam',
        broken="<｜DSML｜tool_calls>weather</｜DSML｜tool_calls>",
        think=lambda text: f"{text}</think>", prompt="<｜Assistant｜><think>",
    ),
    Family(
        "minimax-m2", ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"),
        "<minimax:tool_call>", "minimax_m2",
        partial(_invoke, "invoke name", "parameter name", "invoke"),
        lambda calls: f"<minimax:tool_call>\n{_lines(calls)}\n</minimax:tool_call>",
        cut='<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Zü',
        broken="<minimax:tool_call>\nweather\n</minimax:tool_call>",
        think=_tags,
    ),
    Family(
        "minimax-m3", ("<think>", "</think>", M3), f"{M3} <tool_call>", None, _m3_call,
        lambda calls: f"{M3}<tool_call>\n{_lines(calls)}\n{M3}</tool_call>",
        cut=f'{M3}<tool_call>\n{M3}<invoke name="weather">\n{M3}<city>Zü',
        broken=f"{M3}<tool_call>\nweather\n{M3}</tool_call>",
        think=_tags,
    ),
    Family(
        "gemma4", ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        "<|tool_call> <tool_call|>", "gemma4", _gemma_call, "".join,
        cut='<|tool_call>call:weather{city:<|"|>Zü',
        broken="<|tool_call>call:weather in town<tool_call|>",
        think=lambda text: f"<|channel>thought\n{text}\n<channel|>",
    ),
    Family(
        "lfm2", ("<|tool_call_start|>", "<|tool_call_end|>"), "<|tool_list_start|>", "pythonic",
        _python_call, lambda calls: f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>",
        cut="<|tool_call_start|>[weather(city='Zü",
        broken="<|tool_call_start|>[weather in town]<|tool_call_end|>",
    ),
    Family(
        "longcat", ("<longcat_think>", "</longcat_think>"), "<longcat_tool_call>", "longcat",
        _longcat_call, _lines,
        cut="<longcat_tool_call>weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_v",
        broken="<longcat_tool_call>it would be nice</longcat_tool_call>",
        think=lambda text: f"<longcat_think>{text}</longcat_think>\n",
    ),
    Family(
        "minicpm5", ("<think>", "</think>"), '<function name="x"><param name="y">', "minicpm5",
        partial(_invoke, "function name", "param name", "function"), _lines,
        cut='<function name="weather">\n<param name="city">Zü',
        broken='<function name="weather">in town</function>',
        think=_tags,
    ),
    Family(
        "kimi-k3", ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"), "none", "kimi_k3",
        _k3_call, lambda calls: f"<|open|>tools<|sep|>{''.join(calls)}<|close|>tools<|sep|>",
        cut='<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument',
        broken="<|open|>tools<|sep|>weather<|close|>tools<|sep|>",
        think=lambda text: f"<|open|>think<|sep|>{text}<|close|>think<|sep|>",
    ),
    Family(
        "granite-3", ("<|tool_call|>",), "<|tool_call|> <think> </think> <response> </response>",
        None, _named, _listed("<|tool_call|>", ""),
        cut='<|tool_call|>[{"name": "weather", "arguments": {"city": "Zü',
        broken="<|tool_call|>weather in town",
        think=lambda text: f"<think>{text}</think>\n",
        content=lambda text: f"<response>{text}</response>",
    ),
    Family(
        "nemotron", ("<think>", "</think>"), "<TOOLCALL>", None, _named,
        _listed("<TOOLCALL>", "</TOOLCALL>"),
        cut='<TOOLCALL>[{"name": "weather", "arguments": {"city": "Zü',
        broken="<TOOLCALL>weather in town</TOOLCALL>",
        think=_tags,
    ),
    Family(
        "hunyuan-a13b", (), "<tool_calls> <think> </think> <answer> </answer>", None, _named,
        _listed("<tool_calls>\n", "\n</tool_calls>"),
        cut='<tool_calls>[{"name": "weather", "arguments": {"city": "Zü',
        broken="<tool_calls>weather in town</tool_calls>",
        think=_tags, content=lambda text: f"<answer>\n{text}\n</answer>",
    ),
    Family(
        "hunyuan", (), "<tool_calls>", None, _hunyuan_call,
        lambda calls: f"<tool_calls>\n{_lines(calls)}\n</tool_calls>",
        cut='<tool_calls><tool_call>weather\n```json\n{"city": "Zü',
        broken="<tool_calls><tool_call>weather in town</tool_call></tool_calls>",
    ),
    Family(
        "seed-oss", ("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        "<seed:tool_call>", None, _seed_call, _lines,
        cut="<seed:tool_call>\n<function=weather>\n<parameter=city>Zü",
        broken="<seed:tool_call>\n<func weather>\n</seed:tool_call>",
        think=lambda text: f"<seed:think>{text}</seed:think>\n",
    ),
    Family(
        "command-a",
        tuple(f"<|{end}_{what}|>" for what in ("THINKING", "ACTION", "RESPONSE")
              for end in ("START", "END")),
        "<|START_ACTION|>", None,
        lambda name, arguments:
            f'{{"tool_call_id": "0", "tool_name": "{name}", "parameters": {arguments}}}',
        _listed("<|START_ACTION|>", "<|END_ACTION|>"),
        cut='<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parame',
        broken="<|START_ACTION|>weather in town<|END_ACTION|>",
        think=lambda text: f"<|START_THINKING|>{text}<|END_THINKING|>",
        content=lambda text: f"<|START_RESPONSE|>{text}<|END_RESPONSE|>",
    ),
    Family(
        "command-r", (), "Action: ```json", None,
        lambda name, arguments: f'{{"tool_name": "{name}", "parameters": {arguments}}}',
        _listed("Action: ```json\n", "```"),
        cut='Action: ```json\n[\n    {"tool_name": "weather", "parameters": {"city": "Zü',
        broken="Action: ```json\nweather in town```",
    ),
    Family(
        "apertus",
        ("<|inner_prefix|>", "<|inner_suffix|>", "<|tools_prefix|>", "<|tools_suffix|>"),
        "<|tools_prefix|>", None, lambda name, arguments: f'{{"{name}": {arguments}}}',
        _listed("<|tools_prefix|>", "<|tools_suffix|>"),
        cut='<|tools_prefix|>[{"weather": {"city": "Zü',
        broken='<|tools_prefix|>[{"weather": {}, "get_time": {}}]<|tools_suffix|>',
        think=lambda text: f"<|inner_prefix|>{text}<|inner_suffix|>",
    ),
    Family(
        "solar",
        ("<|begin|>", "<|end|>", "<|think|>", "<|content|>", "<|tool_calls|>", "<|calls|>",
         *(f"<|tool_call:{what}|>" for what in ("begin", "name", "args", "end"))),
        "<|tool_call:begin|>", None, _solar_call,
        lambda calls: f"<|begin|>assistant<|tool_calls|>{''.join(calls)}<|calls|>",
        cut="<|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>weath",
        broken="<|begin|>assistant<|tool_calls|>weather in town",
        think=lambda text: f"<|think|>{text}<|end|><|begin|>assistant",
        prompt="<|begin|>assistant",
        raw=lambda text: text.replace("<|begin|>assistant", ""),
        content=lambda text: f"<|content|>{text}<|end|>",
    ),
    Family(
        "llama-4", ("<|python_start|>", "<|python_end|>"), "<|python_start|>", None,
        lambda name, arguments: f'{{"name": "{name}", "parameters": {arguments}}}',
        lambda calls: "<|python_start|>" + "; ".join(calls) + "<|python_end|>",
        cut='<|python_start|>{"name": "weather", "parameters": {"city": "Zü',
        broken="<|python_start|>import weather<|python_end|>",
    ),
    Family(
        "olmo-3", (), "<function_calls>", None, _python_call,
        lambda calls: f"<function_calls>\n{_lines(calls)}\n</function_calls>",
        cut="<function_calls>\nweather(city='Zü",
        broken="<function_calls>\nweather in town</function_calls>",
    ),
    Family(
        "internlm", ("<|action_start|>", "<|plugin|>", "<|action_end|>"), "<|action_start|>", None,
        lambda name, arguments: f'{{"name": "{name}", "parameters": {arguments}}}',
        lambda calls: f"<|action_start|><|plugin|>{_lines(calls)}<|action_end|>",
        cut='<|action_start|><|plugin|>{"name": "weather", "parameters": {"city": "Zü',
        broken="<|action_start|><|plugin|>weather in town<|action_end|>",
    ),
]  # fmt: skip


def write_tokenizer(family: Family, path: Path, corpus: list[str]) -> Path:
    """A byte-level BPE with merges from the corpus, so that tokens end inside and across words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.markers])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in family.special]
    )
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.special[-1],
        "clean_up_tokenization_spaces": False,
        # In a comment, as the words of a template play no part here.
        "chat_template": TURNS + "{% if false %}{% raw %}" + family.telltale
        + "{% endraw %}{% endif %}",
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
