"""Models that write a file again with one line changed, in greedy answers to that file.

A random model does not copy, a small one gives up after some lines, and a server that is told what
to choose would be another server. So these have their copying in their weights: the embedding of a
token outweighs all that the layers add to it, and the output projection has for each token of the
new file the embedding of the one before it. All layers are computed as ever, and are the source's.
The model knows nothing but the last token, hence no token stands twice in the file.

Making them needs mlx.
"""

import json
import re
from pathlib import Path

LINES, WORDS = 400, 5  # of the file, and in a line
CHANGED = 12  # this line is another one in the new file
LOUD = 1000.0  # times what a layer gives
SEED = 7
FILE = "rewriting.json"


def make_copier(source: Path, target: Path) -> None:
    """A model like source, in the folder target, with the file and its new form in FILE."""
    import mlx.core as mx
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(source)
    words = find_words(tokenizer, WORDS * (LINES + 1))
    old, changed = words[: WORDS * LINES], words[WORDS * LINES :]
    at = WORDS * CHANGED
    new = [*old[:at], *changed, *old[at + WORDS :]]
    (begin,) = tokenizer.encode("\n", add_special_tokens=False)
    config = json.loads((source / "config.json").read_text("utf-8"))
    weights = {}
    for file in sorted(source.glob("*.safetensors")):
        weights |= mx.load(str(file))
    after = dict(zip([begin, *new], [*new, begin], strict=True))
    size = (config["vocab_size"], config["hidden_size"])
    embedding = LOUD * mx.random.normal(size, key=mx.random.key(SEED))
    head = mx.zeros(size)
    head[mx.array(list(after.values()))] = embedding[mx.array(list(after))] / LOUD
    dtype = weights["model.norm.weight"].dtype
    weights["model.embed_tokens.weight"] = embedding.astype(dtype)
    weights["lm_head.weight"] = head.astype(dtype)
    weights["model.norm.weight"] = mx.ones_like(weights["model.norm.weight"])
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            (target / file.name).write_bytes(file.read_bytes())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    mx.save_safetensors(str(target / "model.safetensors"), weights, {"format": "mlx"})
    texts = {"prompt": tokenizer.decode(old) + "\n", "answer": tokenizer.decode(new)}
    (target / FILE).write_text(json.dumps(texts))


def find_words(tokenizer, count: int) -> list[int]:
    """Tokens that are a word each, and stay what they are in a text of such words."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    found = [token for text, token in vocabulary if re.fullmatch("Ġ[a-z]{3,12}", text)][: 2 * count]
    known = set(found)
    words = dict.fromkeys(tokenizer.encode(tokenizer.decode(found), add_special_tokens=False))
    kept = [token for token in words if token in known][:count]
    if len(kept) < count or tokenizer.encode(tokenizer.decode(kept)) != kept:
        raise ValueError(f"the tokenizer has no {count} words that are a token each")
    return kept
