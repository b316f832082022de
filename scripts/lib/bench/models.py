#!/usr/bin/env python3
"""Make the models of the comparison.

usage: models.py DEMO TARGET [copier]

Into the folder TARGET go `demo`, the model in the folder DEMO, and `tiny`, two random layers
with DEMO's tokenizer, where all that is not the forward pass shows. In both, the end-of-text is
a token that never comes, so that every answer has the length that was asked for: mlx_lm.server
knows no ignore_eos. Nothing else differs from DEMO, whose weights are linked to, not copied. With
`copier` go there, too, `copier`, which is as large as demo and writes a file again (copier.py), and
`small-copier`, which does so with tiny's layers.
"""

import json
import shutil
import sys
from pathlib import Path

from scripts.lib.bench.copier import make_copier

TINY = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
SEED = 5
TOKENIZER = "tokenizer_config.json"


def find_silent_token(folder: Path) -> tuple[int, str]:
    """A special token that neither the chat template nor anything else uses: its id and text.

    Raises ValueError if the tokenizer has none.
    """
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8")).get("added_tokens", [])
    used = (folder / TOKENIZER).read_text("utf-8")
    for template in folder.glob("*.jinja"):
        used += template.read_text("utf-8")
    special = [(one["id"], one["content"]) for one in tokens if one.get("special")]
    found = [(token, text) for token, text in special if text not in used]
    if not found:
        raise ValueError(f"{folder}: the tokenizer has no special token to spare")
    return found[-1]


def make_endless(source: Path, target: Path) -> None:
    """source with an end-of-text that never comes, as target."""
    silent, text = find_silent_token(source)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name in ("config.json", "generation_config.json"):
            config = json.loads(file.read_text("utf-8"))
            for part in (config, config.get("text_config", {})):
                if "eos_token_id" in part:
                    part["eos_token_id"] = silent
            config["eos_token_id"] = silent
            (target / file.name).write_text(json.dumps(config, indent=2))
        elif file.name == TOKENIZER:
            # mlx-lm ends at the tokenizer's end-of-text as well as at the config's.
            write_tokenizer(file, target / file.name, text)
        elif file.is_file() and not file.name.startswith("."):
            (target / file.name).symlink_to(file.resolve())


def write_tokenizer(source: Path, target: Path, end: str) -> None:
    """A tokenizer's config, with end as its end-of-text."""
    config = json.loads(source.read_text("utf-8"))
    target.write_text(json.dumps(config | {"eos_token": end}, indent=2))


def make_tiny(source: Path, target: Path) -> None:
    """Two random layers with the vocabulary, tokenizer and context of source, as target."""
    from mlx_lm.models import llama

    from scripts.lib.model.random_model import write_random_weights

    config = json.loads((source / "config.json").read_text("utf-8"))
    silent, text = find_silent_token(source)
    sizes = TINY | {
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "eos_token_id": silent,
    }
    model = llama.Model(llama.ModelArgs.from_dict(sizes))

    def silence(head):
        head[silent] = 0
        return head

    write_random_weights(target, model, SEED, silence)
    (target / "config.json").write_text(json.dumps(sizes, indent=2))
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    write_tokenizer(source / TOKENIZER, target / TOKENIZER, text)
    for template in source.glob("*.jinja"):
        shutil.copy(template, target / template.name)


def main() -> int:
    """Makes them; returns the exit code."""
    if len(sys.argv) < 3 or sys.argv[3:] not in ([], ["copier"]):
        print(__doc__, file=sys.stderr)
        return 2
    source, target = map(Path, sys.argv[1:3])
    try:
        make_endless(source, target / "demo")
        make_tiny(source, target / "tiny")
        if sys.argv[3:]:
            make_copier(target / "demo", target / "copier")
            make_copier(target / "tiny", target / "small-copier")
    except (OSError, ValueError, KeyError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
