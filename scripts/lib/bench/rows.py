"""The table of the comparison: what is measured, on which ranks, against which target.

A check is one scene played to one or more contenders; a measure is one number of it with its goal;
a line of the table shows the measures of one or more checks. No I/O.
"""

from dataclasses import dataclass

from scripts.lib.bench import draft_scenes, scenes
from scripts.lib.bench.scenes import Scene
from scripts.lib.bench.stats import median

OURS, THEIRS, BARE, BEFORE = "ours", "theirs", "bare", "before"
OFF = "off"  # ours without drafts
# The bare engine's prompts have no beginning in common: without it, ours would compute less.
NO_PREFIXES = (("PREFIX_CACHE_PERCENT", 0),)
DRAFTS = (("SPECULATE", "auto"),)
Samples = dict[str, list[dict[str, float] | None]]  # by side, one a round; None: it broke


@dataclass(frozen=True)
class Goal:
    """What counts as met. kind: ratio (of ours to another side's), share (of ours to another key
    of ours), or value (ours alone). sense: ">=" or "<="; limit None: told, not judged."""

    kind: str
    sense: str
    limit: float | None
    against: str = THEIRS  # a side, or the other key

    def figure(self, key: str, samples: Samples) -> float | None:
        """The number that is compared with the limit, of medians over the rounds."""
        mine = middle(samples, OURS, key)
        if self.kind == "value" or mine is None:
            return mine
        if self.kind == "share":
            other = middle(samples, OURS, self.against)
        else:
            other = middle(samples, self.against, key)
        return mine / other if other else None

    def met(self, figure: float | None) -> bool | None:
        """None: there is nothing to judge."""
        if self.limit is None or figure is None:
            return None
        return figure >= self.limit if self.sense == ">=" else figure <= self.limit


@dataclass(frozen=True)
class Measure:
    """One number: its key in the scene's result, how to show it, its goal."""

    key: str
    unit: str  # tokens/s, tokens a step, ms, %, MB, or nothing
    goal: Goal

    def show(self, value: float | None) -> str:
        """With the unit."""
        if value is None:
            return "-"
        if self.unit == "ms":
            return f"{1e3 * value:.0f} ms"
        if self.unit == "%":
            return f"{100 * value:.1f}%"
        if self.unit == "a step":
            return f"{value:.2f} a step"
        if self.unit == "tokens/s":
            return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
        return f"{value:.0f} {self.unit}".strip()


@dataclass(frozen=True)
class Check:
    """A scene and what becomes of it. model: tiny, demo or copier. rounds: at most so many, None:
    all. draft_model: that mlx_lm.server drafts with."""

    id: str
    what: str
    model: str
    ranks: int
    scene: Scene
    measures: tuple[Measure, ...]
    sides: tuple[str, ...] = (OURS, THEIRS)
    rounds: int | None = None
    settings: tuple[tuple[str, object], ...] = ()  # of our server, if it needs one of its own
    default: bool = True  # False: only when named
    draft_model: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    what: str
    target: str
    checks: tuple[str, ...]


def middle(samples: Samples, side: str, key: str) -> float | None:
    """The median over the rounds."""
    return median([one.get(key) for one in samples.get(side, []) if one])


def at_least(limit: float | None, against: str = THEIRS) -> Goal:
    return Goal("ratio", ">=", limit, against)


def at_most(limit: float | None) -> Goal:
    return Goal("ratio", "<=", limit)


def speed(limit: float | None, against: str = THEIRS) -> tuple[Measure, ...]:
    return (Measure("tokens_per_s", "tokens/s", at_least(limit, against)),)


def make_checks(quick: bool) -> list[Check]:
    """All checks, in the order of the table. quick: as short as they can be and still work."""

    def of(usual: int, short: int) -> int:
        return short if quick else usual

    def busy(
        clients: int, mix: str, output: int, per_client: int = 2, ramp_s: float = scenes.RAMP_S
    ) -> Scene:
        requests, tokens = of(per_client, 1), of(output, 8)
        return scenes.throughput(clients, requests, 48, tokens, mix, ramp_s)

    def alone(output: int, requests: int = 2) -> Scene:
        return busy(1, "greedy", output, requests)

    rewrite = draft_scenes.rewrite(of(160, 80))

    def drafted(
        name: str,
        what: str,
        model: str,
        ranks: int,
        scene: Scene,
        limit: float,
        against: str = OFF,
        draft_model: str = "",
    ) -> Check:
        pace = Measure("tokens_per_step", "a step", Goal("value", ">=", None))
        return Check(
            name,
            what,
            model,
            ranks,
            scene,
            (*speed(limit, against), pace),
            (OURS, against),
            settings=DRAFTS,
            default=False,
            draft_model=draft_model,
        )

    return [
        Check("tiny-1-greedy", "32 clients, greedy", "tiny", 1, busy(32, "greedy", 128),
              speed(3.0)),
        Check("tiny-1-mixed", "32 clients, mixed", "tiny", 1, busy(32, "mixed", 48, 1), speed(2.0)),
        Check("tiny-2-greedy", "32 clients, greedy", "tiny", 2, busy(32, "greedy", 96),
              speed(2.5)),
        Check("tiny-2-mixed", "32 clients, mixed", "tiny", 2, busy(32, "mixed", 48, 1), speed(2.0)),
        Check("demo-2-greedy", "8 clients, greedy", "demo", 2, busy(8, "greedy", 96, 1),
              speed(1.05)),
        Check("demo-2-mixed", "8 clients, mixed", "demo", 2, busy(8, "mixed", 96, 1),
              speed(1.5)),
        Check("tiny-1-alone", "1 client", "tiny", 1, alone(192, 6), speed(1.3)),
        Check("tiny-2-alone", "1 client", "tiny", 2, alone(128, 6), speed(1.3)),
        Check("demo-1-alone", "1 client", "demo", 1, alone(24), speed(1.0)),
        Check("demo-2-alone", "1 client", "demo", 2, alone(24), speed(1.0)),
        Check("newcomer", "a newcomer beside 7", "demo", 2,
              scenes.newcomers(7, of(5, 2), 32),
              (Measure("ttft_p95", "ms", at_most(0.4)),)),
        Check("long-prompt", "4 decoders beside a long prompt", "demo", 2,
              scenes.long_prompt(4, of(6000, 1500)),
              (Measure("itl_p95", "ms", at_most(0.3)),), rounds=3),
        Check("beside-long", "7 chats beside a long one", "demo", 2,
              scenes.beside_long(7, of(6000, 1500), of(32, 8)), speed(3.0), rounds=3),
        Check("second-turn", "second turn of a conversation", "demo", 2,
              scenes.second_turn(of(3000, 600), of(16, 4)),
              (Measure("second", "ms", at_most(1.0)),
               Measure("second", "ms", Goal("share", "<=", 0.15, "first"))), rounds=3),
        # The bare engine has the prompts of all clients from the first moment: no ramp.
        Check("bare-demo", "against the bare engine", "demo", 1,
              busy(32, "greedy", 32, 1, ramp_s=0),
              speed(0.95, BARE), (OURS, BARE), settings=NO_PREFIXES),
        Check("bare-tiny", "against the bare engine", "tiny", 1, busy(32, "greedy", 128, ramp_s=0),
              speed(0.6, BARE), (OURS, BARE), settings=NO_PREFIXES),
        Check("idle", "idle CPU", "tiny", 2, scenes.idle(of(20, 3)),
              (Measure("rank", "%", Goal("value", "<=", 0.03)),
               Measure("launcher", "%", Goal("value", "<=", 0.01))), rounds=1),
        Check("burst", "64 clients connect at once", "tiny", 1,
              scenes.burst(64, of(4, 1), 32, of(32, 8)),
              (Measure("lost", "", Goal("value", "<=", 0)),), rounds=1),
        Check("memory", "rank 0 over many requests", "tiny", 1,
              scenes.memory(64, of(10_000, 1000), 24, 8),
              (Measure("growth_mb", "MB", Goal("value", "<=", 16)),), (OURS,), rounds=1,
              settings=(("KV_BUDGET_GB", 0.08),), default=False),
        *(Check(f"even-{model}-{ranks}-{rows}", f"{rows} equal rows", model, ranks,
                busy(rows, "greedy", output, 1, ramp_s=0), speed(0.97, BEFORE), (OURS, BEFORE),
                default=False)
          for model, output in (("demo", 32), ("tiny", 128))
          for ranks in (1, 2) for rows in (8, 32)),
        drafted("rewrite-2", "a file written again", "copier", 2, rewrite, 2.0),
        drafted("json-2", "JSON by a schema with long keys", "demo", 2,
                draft_scenes.schema(of(3, 1)), 1.5),
        *[drafted(f"prose-{ranks}-{clients}", f"prose, {clients} client(s)", "demo", ranks,
                  draft_scenes.prose(clients, of(96, 8)), 0.98)
          for ranks in (1, 2) for clients in (1, 8)],
        drafted("rewrite-1", "against a draft model that is always right", "copier", 1, rewrite,
                1.0, THEIRS, draft_model="small-copier"),
        Check("tiny-1-seeds", "32 clients, a seed each", "tiny", 1, busy(32, "seeds", 32, 1),
              speed(None), rounds=1),
        Check("demo-2-seeds", "8 clients, a seed each", "demo", 2, busy(8, "seeds", 24, 1),
              speed(None), rounds=1),
    ]  # fmt: skip


LINES = (
    Line("tiny, 1 rank, 32 clients, greedy tokens/s", ">= 3.0x", ("tiny-1-greedy",)),
    Line("tiny, 1 rank, 32 clients, temperature and top_p different per client", ">= 2.0x",
         ("tiny-1-mixed",)),
    Line("tiny, 2 ranks, 32 clients, greedy / mixed", ">= 2.5x / >= 2.0x",
         ("tiny-2-greedy", "tiny-2-mixed")),
    Line("demo, 2 ranks, 8 clients, greedy / mixed", ">= 1.05x / >= 1.5x",
         ("demo-2-greedy", "demo-2-mixed")),
    Line("1 client, tokens/s: tiny, 1 and 2 ranks / demo, 1 and 2 ranks",
         ">= 1.3x, >= 1.3x / >= 1.0x, >= 1.0x",
         ("tiny-1-alone", "tiny-2-alone", "demo-1-alone", "demo-2-alone")),
    Line("time to first token p95 of a newcomer while 7 others decode, demo, 2 ranks", "<= 0.4x",
         ("newcomer",)),
    Line("inter-token p95 of 4 decoders while a 6,000-token prompt arrives, demo, 2 ranks",
         "<= 0.3x", ("long-prompt",)),
    Line("tokens/s of 7 chats of about 50 tokens beside one of 6,000 that decodes, demo, 2 ranks",
         ">= 3x", ("beside-long",)),
    Line("second turn of a 3,000-token conversation, time to first token: against theirs / "
         "against the first turn (demo, 2 ranks)", "<= 1.0x / <= 0.15x", ("second-turn",)),
    Line("tokens/s against our own engine loop without HTTP, 32 clients, demo / tiny (1 rank)",
         ">= 0.95 / >= 0.6", ("bare-demo", "bare-tiny")),
    Line("idle CPU a rank / launcher (tiny, 2 ranks)", "<= 3% / <= 1% of a core", ("idle",)),
    Line("64 clients streaming: refused or reset connections below the queue limit", "0",
         ("burst",)),
    Line("memory of rank 0 beyond weights and KV, 64 clients: growth over the second half of "
         "10,000 requests", "flat (<= 16 MB)", ("memory",)),
    *(Line(f"{rows} equal rows, demo / tiny, 1 and 2 ranks each, tokens/s against this project "
           "with mlx-lm's batches", ">= 0.97x",
           tuple(f"even-{model}-{ranks}-{rows}" for model in ("demo", "tiny") for ranks in (1, 2)))
      for rows in (8, 32)),
    Line("drafts: a file written again with a line changed, 1 client, as large as demo, 2 ranks: "
         "tokens/s / tokens a step", ">= 2.0x", ("rewrite-2",)),
    Line("the same, 1 rank, against --draft-model with a model that is always right", ">= 1.0x",
         ("rewrite-1",)),
    Line("drafts: JSON by a schema with long keys, demo, 2 ranks: tokens/s / tokens a step",
         ">= 1.5x", ("json-2",)),
    *[Line(f"drafts: prose at temperature 1, demo, {ranks}: tokens/s / tokens a step of 1 client / "
           "of 8", ">= 0.98x", (f"prose-{ranks[0]}-1", f"prose-{ranks[0]}-8"))
      for ranks in ("1 rank", "2 ranks")],
    Line("beside it: a seed a request, tiny, 1 rank, 32 clients / demo, 2 ranks, 8 clients",
         "none", ("tiny-1-seeds", "demo-2-seeds")),
)  # fmt: skip

HEADER = ("what", "ours", "mlx_lm.server", "ratio", "target", "verdict")


def cells(line: Line, checks: dict[str, Check], results: dict[str, Samples]) -> tuple[str, ...]:
    """The row as text."""
    ours, other, ratios, verdicts = [], [], [], []
    for check in (checks[name] for name in line.checks):
        samples = results.get(check.id)
        for measure in check.measures:
            if samples is None:
                for column in (ours, other, ratios):
                    column.append("-")
                verdicts.append("not run")
                continue
            goal = measure.goal
            figure = goal.figure(measure.key, samples)
            ours.append(measure.show(middle(samples, OURS, measure.key)))
            if goal.kind == "share":
                other.append(f"first turn {measure.show(middle(samples, OURS, goal.against))}")
            elif goal.kind == "ratio" and goal.against in (BARE, BEFORE, OFF):
                shown = measure.show(middle(samples, goal.against, measure.key))
                other.append(f"{goal.against} {shown}")
            else:
                other.append(measure.show(middle(samples, THEIRS, measure.key)))
            factor = f"{figure:.2f}x" if figure is not None else "-"
            ratios.append("" if goal.kind == "value" else factor)
            verdicts.append(verdict(goal.met(figure), goal, figure))
    return (line.what, *map(_join, (ours, other, ratios)), line.target, _join(verdicts))


def verdict(met: bool | None, goal: Goal, figure: float | None) -> str:
    if met is not None:
        return "met" if met else "MISSED"
    return "for comparison" if goal.limit is None and figure is not None else "no figure"


def _join(parts: list[str]) -> str:
    if len(set(parts)) == 1:
        return parts[0]
    return " / ".join(parts)


def render(checks: list[Check], results: dict[str, Samples]) -> str:
    """The table as Markdown, its columns aligned."""
    by_id = {check.id: check for check in checks}
    table = [HEADER, *(cells(line, by_id, results) for line in LINES)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
