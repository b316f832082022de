"""What the clients ask for: when, how long, with which words and which sampling. No I/O.

Everything is drawn from random numbers with a seed, so a run can be repeated exactly. Prompts
differ from their first word on (behind a shared prefix), or a server with a prefix cache would
be measured on prompts that it has already seen.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Of four letters each, so that a byte-level tokenizer makes the same number of tokens of any of
# them; most are one token to the tokenizers of today's models.
_WORDS = (
    "able also area army away baby back ball band bank base bear beat best bill bird blue boat "
    "body bone book both call calm camp card care case cash cast cell city club coal coat code "
    "cold come cook cool copy cost crew crop dark data date deal deep desk door down draw drop "
    "drum dust duty each earn east easy edge face fact fair fall farm fast fear feed feel feet "
    "file fill film find fine fire firm fish five flag flat flow food foot form four free from "
    "fuel full fund game gate gift girl give glad goal gold good gray grow hair half hall hand "
    "hard head hear heat help here high hill hold hole home hope hour huge idea iron item join "
    "jump just keep kind king knee lake land lane last late lead leaf left life lift line list "
    "live load long look loss loud love luck main make many mark meal mean meet milk mind mine "
    "moon more most move much name near neck need news next nice nine noon nose note once only "
    "open over pack page pair park part past path peak pick plan play poor post pull pure push "
    "rain rank rate read real rest rice rich ride ring rise risk road rock role roof room root "
    "rose rule safe sail salt sand save seat seed sell send ship shop shot show side sign silk "
    "site size skin snow soft soil some song soon sort soul star stay step stop such sure tail "
    "take talk tall task team tell tent term test text than then thin time tone tool town tree "
    "trip true tube turn type unit upon vary vast very view vote wage wait walk wall warm wash "
    "wave week well west what when wide wife wild wind wine wing wise wish with wood word work "
    "yard year"
)
WORDS = tuple(_WORDS.split())

MIXES = ("greedy", "mixed", "seeds")


@dataclass(frozen=True)
class Lengths:
    """A number of tokens, or a range of them to draw from, ends included."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """From "128" or "16-512". Raises ValueError."""
        found = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", text)
        least = int(found[1]) if found else 0
        most = int(found[2] or found[1]) if found else 0
        if not 1 <= least <= most:
            raise ValueError(f"{text!r}: must be a number of tokens, as 128, or a range, as 16-512")
        return cls(least, most)

    def draw(self, chance: random.Random) -> int:
        """One of them."""
        return chance.randint(self.least, self.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start, for ever: independent arrivals, `rate` a second on average."""
    chance = random.Random(f"arrivals {seed}")
    at = 0.0
    while True:
        at += chance.expovariate(rate)
        yield at


def words(count: int, seed: object) -> str:
    """That many words with a blank between; the same for the same seed."""
    return " ".join(random.Random(f"words {seed}").choices(WORDS, k=count))


def sampling(mix: str, client: int, number: int) -> dict[str, float | int]:
    """The sampling fields of request `number` of a client.

    greedy: temperature 0. mixed: temperature and top_p differ from client to client. seeds: as
    mixed, and each request has a seed of its own.
    """
    if mix == "greedy":
        return {"temperature": 0}
    fields: dict[str, float | int] = {
        "temperature": round(0.5 + 0.6 * (client * 7 % 32) / 32, 4),
        "top_p": round(0.75 + 0.2 * (client * 11 % 32) / 32, 4),
    }
    if mix == "seeds":
        fields["seed"] = client * 100_003 + number
    elif mix != "mixed":
        raise ValueError(f"mix is {mix!r}: must be one of {', '.join(MIXES)}")
    return fields
