"""The tokenizer of a model folder, without running code that came with the model.

Called once on the main thread of every rank. Some folders bring Python for their tokenizer, which
transformers would import, or ask on a terminal that nobody sees whether it may. What such code
does is known in two cases: there is a tokenizer.json all the same, or a file of tiktoken's ranks,
whose pattern stands in the code and can be read there. Then a folder without code is written, and
read in its place. In all other cases somebody has to look at the code and say so.
"""

import base64
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedConfig
from transformers.convert_slow_tokenizer import TikTokenConverter

from server.protocol.tokenizer_code import RANKS, TOKENIZER, read_json, split_pattern, wanted_code

CONFIG = "tokenizer_config.json"
COPIED = ("*.json", "*.jinja", "*.txt")

log = logging.getLogger(__name__)


def load(folder: Path, config: dict[str, Any], trust: bool) -> Any:
    """mlx-lm's wrapper of the tokenizer. config: the model's. trust: code of the folder may run.
    Raises whatever transformers does where it cannot be read, and ValueError where code is needed
    that nobody trusts."""
    tokenizer = _load(folder, config, trust)
    tokenizer.name_or_path = str(folder)  # where config.json is, which says what model this is
    return tokenizer


def _load(folder: Path, config: dict[str, Any], trust: bool) -> Any:
    code, ends = wanted_code(folder), config.get("eos_token_id")
    if code is None:
        return _read(folder, ends)
    if (folder / TOKENIZER).is_file():
        log.info("the tokenizer's code (%s) is not needed, and not run", code.file)
        with _without_code(folder) as plain:
            return _read(plain, ends)
    pattern = split_pattern(folder, code)
    if pattern is not None:
        log.info("the tokenizer is made of %s; its code (%s) is not run", RANKS, code.file)
        with _without_code(folder) as plain:
            _convert(folder, pattern).save(str(plain / TOKENIZER))
            return _read(plain, ends)
    if not trust:
        raise ValueError(code.refusal)
    log.warning("code of the model folder is run for its tokenizer: %s", code.file)
    return _read(folder, ends, trust=True)


def _read(folder: Path, ends: Any, trust: bool = False) -> Any:
    options: dict[str, Any] = {"trust_remote_code": trust}  # unset, it would ask on a terminal
    try:
        return load_tokenizer(folder, options, eos_token_ids=ends)
    except Exception as error:
        # It reads the model's config, too, and fails at what it does not know there. A tokenizer
        # that says its own class needs none of that.
        try:
            options["config"] = PreTrainedConfig()
            return load_tokenizer(folder, options, eos_token_ids=ends)
        except Exception:
            raise error from None


@contextmanager
def _without_code(folder: Path) -> Iterator[Path]:
    """A folder with the tokenizer's small files, whose config names no code. Gone afterwards: a
    tokenizer is read into memory."""
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
        plain = Path(name)
        for pattern in COPIED:
            for path in folder.glob(pattern):
                if path.is_file() and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, plain / path.name)
        config = read_json(folder / CONFIG)
        for key in ("auto_map", "tokenizer_class"):
            config.pop(key, None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (plain / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        yield plain


class _Ranks(TikTokenConverter):
    """Reads the ranks by itself: tiktoken's package is needed for nothing else."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line.strip())
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


def _convert(folder: Path, pattern: str) -> Tokenizer:
    """A tokenizer of the ranks, and of the tokens after them that the config names. Between those
    there may be some without a name."""
    path = str(folder / RANKS)
    tokenizer = _Ranks(path, pattern=pattern).converted()
    first = tokenizer.get_vocab_size()
    ranks = sorted(tokenizer.get_vocab().values())
    if ranks != list(range(first)):
        raise ValueError(f"{path}: {first} tokens, whose ranks are not 0 to {first - 1}")
    named = {
        int(number): entry
        for number, entry in read_json(folder / CONFIG)["added_tokens_decoder"].items()
        if int(number) >= first
    }
    for number in range(first, max(named, default=first - 1) + 1):
        entry = named.get(number, {"content": f"<|reserved_token_{number}|>"})
        token = AddedToken(entry["content"], normalized=False)
        special = entry.get("special", True)
        added = tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
        if added != 1 or tokenizer.token_to_id(entry["content"]) != number:
            raise ValueError(f"{folder / CONFIG}: token {number} is {entry['content']!r} twice")
    return tokenizer
