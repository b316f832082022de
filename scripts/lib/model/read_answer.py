"""Read a raw answer of a model as the server would: content, reasoning, tool calls, finish reason.

usage: read_answer.py --model DIR [--request FILE] [--text FILE] [--finish stop|length] [--json]

It takes the model's tokenizer and chat template and the very code that the server runs, but no
weights and no other ranks, so it answers in seconds on any machine with the environment. Use it
when a new model's calls come out wrong: put what the model wrote into a file, and see.

  --model DIR      Folder of the model: its tokenizer, config.json if there is one. No weights.
  --request FILE   Body of a chat request as JSON, for its tools, tool_choice, stop, messages ...
                   Without one, or without tools in it, calls are text, as they are for clients.
                   Messages and model may be missing.
  --text FILE      The raw answer, with all of its markers, to the letter (standard input).
  --finish REASON  How the model ended: stop, so that its end-of-text token follows; or length, its
                   tokens having run out (stop).
  --json           One JSON object on one line, for programs: content, reasoning, calls (id, name,
                   arguments), finish, format.

format is the way to write calls that the server knows this model by; none: it knows none, and calls
stay text. Why something that looks like a call is none stands on standard error.
Exit codes: 0 read, 1 the request, the answer's bytes or the model's folder were refused, 2 usage,
3 a file is missing.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REFUSED, MISSING = 1, 3  # argparse has 2
BYTE_ORDER_MARK = "\ufeff"  # which the server takes, too


class Problem(Exception):
    """What stops the program: a message, and its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Reads the answer and prints it; returns the exit code."""
    arguments = _arguments()
    try:
        with _notes_on_stderr():
            answer = _read(arguments)
    except Problem as problem:
        print(f"read_answer.py: {problem}", file=sys.stderr)
        return problem.code
    shown = json.dumps(answer, ensure_ascii=False) if arguments.json else _shown(answer)
    # An argument may hold half of a surrogate pair, which UTF-8 cannot.
    print(shown.encode("utf-8", "backslashreplace").decode())
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="read_answer.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS,
        add_help=False,
    )  # fmt: skip
    parser.add_argument("--help", "-h", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--request", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--finish", choices=("stop", "length"), default="stop", help=argparse.SUPPRESS
    )
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.help:
        print(__doc__.strip())
        sys.exit(0)
    if arguments.model is None:
        parser.error("--model DIR is needed: the folder of the model's tokenizer (see --help)")
    return arguments


def _read(arguments: argparse.Namespace) -> dict[str, Any]:
    """The answer as a JSON object."""
    folder = arguments.model
    if not folder.is_dir():
        raise Problem(f"--model {folder}: there is no such folder", MISSING)
    body = _body(arguments.request)
    text = _text(arguments.text)
    tokenizer, vocab = _tokenizer(folder)

    # The server's own rooms, which need the environment; after all that needs none is checked.
    from server.api.dialects import chat
    from server.protocol.client import SERVER
    from server.protocol.errors import ApiError
    from server.protocol.pieces import Parts
    from server.protocol.requests import Served
    from server.text.calls.formats import name_of
    from server.text.markup import markup_of
    from server.text.prompts import TokenizerPrompts

    name = folder.resolve().name
    body = {"messages": [{"role": "user", "content": "Hi"}], **body, "model": name}
    prompts = TokenizerPrompts(tokenizer, vocab)
    try:
        request = chat.parse(body, Served(name))
        prompt = prompts.from_chat(request)
        out = prompts.chat_out(request, prompts.chat_constraint(request, prompt, SERVER), prompt)
    except ApiError as error:
        raise Problem(f"the server would refuse the request: {error}", REFUSED) from error
    finally:
        prompts.close()
    reader = markup_of(tokenizer).reader
    _tell_unread(request, reader, text)
    tokens = prompts.encode(text, special_tokens=False)
    if arguments.finish == "stop" and tokenizer.eos_token_id is not None:
        tokens.append(tokenizer.eos_token_id)
    parts = Parts()
    for token in tokens:
        parts += out.add(token)
        if out.stopped is not None:
            break
    rest, finish = out.finish(arguments.finish)
    parts += rest
    return {
        "content": parts.text,
        "reasoning": parts.reasoning,
        "calls": _calls(parts.calls),
        "finish": finish,
        "format": name_of(reader),
    }


def _tell_unread(request: Any, reader: Any, text: str) -> None:
    """Says why calls are not looked for, where there might be some."""
    from server.text.calls.formats import NAMES

    readers = [known for known, _ in NAMES] if reader is None else [reader]
    marked = any(opener in text for known in readers for opener in known.openers)
    mode, why = request.tool_choice.mode, ""
    if reader is None and request.tools and mode == "auto":
        # It may be marked in a way that nobody here knows.
        why = "the model's format of calls is not known (format: none), so calls stay text"
    elif marked and not request.tools:
        why = "the request has no tools"
    elif marked and mode == "none":
        why = "tool_choice is 'none'"
    if why:
        print(f"read_answer.py: no tool call: {why}", file=sys.stderr)


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """Shows what the readers log, such as why markup is no call."""
    notes = logging.StreamHandler(sys.stderr)
    notes.setFormatter(logging.Formatter("read_answer.py: %(message)s"))
    logger = logging.getLogger("server.text")
    before = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(before)


def _body(path: Path | None) -> dict[str, Any]:
    """The request's body."""
    if path is None:
        return {}
    text = _decoded(_bytes(path, "--request"), f"--request {path}")
    try:
        body = json.loads(text.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        raise Problem(f"--request {path}: no JSON: {error}", REFUSED) from error
    if not isinstance(body, dict):
        raise Problem(f"--request {path}: not a JSON object, as a request's body is", REFUSED)
    return body


def _text(path: Path | None) -> str:
    """The raw answer."""
    if path is None:
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return _decoded(_bytes(path, "--text"), f"--text {path}")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Problem(f"{where}: not UTF-8: {error}", REFUSED) from error


def _bytes(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Problem(f"{option} {path}: {error.strerror or error}", MISSING) from error


def _tokenizer(folder: Path) -> tuple[Any, int]:
    """The tokenizer as the server loads it, and how many tokens the model knows."""
    try:
        from mlx_lm.utils import load_config

        from scripts.lib.model.model_folder import has_tokenizer
        from server.protocol.tokenizer_code import must_run
        from server.startup.tokenizer import load
    except ImportError as error:
        raise Problem(f"the environment is missing: {error}; see README.md", MISSING) from error
    # transformers would give advice on packages, or make a tokenizer without a vocabulary.
    if not has_tokenizer(folder) and must_run(folder) is None:
        raise Problem(
            f"--model {folder}: no tokenizer: tokenizer.json (or tokenizer.model) is missing",
            REFUSED,
        )
    try:
        config = load_config(folder) if (folder / "config.json").exists() else {}
        tokenizer = load(folder, config, trust=False)
    except Exception as error:  # transformers raises whatever it likes for a folder that is none
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise Problem(f"--model {folder}: no tokenizer: {why}", REFUSED) from error
    vocab = config.get("vocab_size")
    return tokenizer, max(len(tokenizer), vocab if isinstance(vocab, int) else 0)


def _calls(pieces: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Whole calls. Arguments are an object, or what there is of one where a forced call was cut."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.id is not None:
            calls.append({"id": piece.id, "name": piece.name, "arguments": ""})
        calls[piece.index]["arguments"] += piece.arguments
    for call in calls:
        try:
            call["arguments"] = json.loads(call["arguments"])
        except ValueError:
            pass  # cut: its text tells more than an error would
    return calls


def _shown(answer: dict[str, Any]) -> str:
    """The answer for people. Texts are quoted, so that every blank and line break can be seen."""
    lines = [f"{key}: {_quoted(answer[key])}" for key in ("reasoning", "content")]
    for call in answer["calls"]:
        lines.append(f"call: {call['name']} {_quoted(call['arguments'])}")
    return "\n".join([*lines, f"finish: {answer['finish']}", f"format: {answer['format']}"])


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
