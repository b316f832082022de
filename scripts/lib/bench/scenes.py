"""One measurement each: what is done to a contender, and which numbers come of it.

A scene is called with the contender awake and all others stopped, and leaves it idle. Prompts are
made from the round's tag, so both servers get the same ones and no prompt comes twice. Times that
are returned are in seconds. A scene raises Broken when requests fail that should not.
"""

import random
import statistics
import time
from collections.abc import Callable

from scripts.lib.bench.contenders import Bare, Broken, Contender, Ours, WebServer
from scripts.lib.bench.load import Load, count_tokens, run_closed
from scripts.lib.bench.processes import cpu_seconds, resident_mb
from scripts.lib.bench.stats import percentile
from scripts.lib.bench.swarm import Call
from scripts.lib.bench.workload import sampling, words

REQUEST_DEADLINE_S = 120.0
LONG_DEADLINE_S = 300.0
RAMP_S = 0.005  # between clients: mlx_lm.server's listen backlog is 5
SETTLE_S = 1.0  # for a server to be idle again after clients have left it
EARLY = 0.05  # of the answers may end by themselves, or two servers do unlike work
LONG_ANSWER = 1800  # tokens: as many as the demo model's context leaves of the longest prompt
ENDLESS = 3000  # tokens: more than any decoder of a scene will live to get

Scene = Callable[[Contender, str], dict[str, float]]


def make_call(
    server: WebServer, seed: str, prompt: int, output: int, fields: dict, deadline_s: float
) -> Call:
    """A chat with one message of random words."""
    text = words(server.gauge.words_for(prompt), seed)
    return Call(server.asker.path, server.asker.fields(text, output, fields), deadline_s)


def check(calls: list[Call], name: str) -> None:
    """Raises Broken if one of them failed, other than by being abandoned."""
    for call in calls:
        answer = call.read()
        if answer.failure not in ("", "abandoned"):
            raise Broken(f"{name}: {answer.failure} {answer.detail}".strip())


def closed_loop(*arguments, **named) -> Load:
    """run_closed(), whose Ctrl-C ends the load and tells what it measured. Here it ends all."""
    load = run_closed(*arguments, **named)
    if "abandoned" in load.failures:
        raise KeyboardInterrupt
    return load


def throughput(
    clients: int, per_client: int, prompt: int, output: int, mix: str, ramp_s: float = RAMP_S
) -> Scene:
    """tokens_per_s of a closed loop in which each client sends per_client requests. ramp_s:
    between the first requests of two clients."""

    def scene(contender: Contender, tag: str) -> dict[str, float]:
        requests = clients * per_client
        if isinstance(contender, Bare):
            done = contender.run(LONG_DEADLINE_S, clients=clients, requests=requests,
                                 prompt=prompt, output=output)  # fmt: skip
            return {"tokens_per_s": done["tokens"] / done["seconds"]}

        def make(client: int, number: int) -> Call:
            fields = sampling(mix, client, number)
            return make_call(contender, f"{tag} {number}", prompt, output, fields,
                             REQUEST_DEADLINE_S)  # fmt: skip

        load = closed_loop(
            contender.swarm, clients, make, requests=requests, ramp_s=ramp_s * clients
        )
        if load.failures:
            raise Broken(f"{contender.name}: {load.failures}")
        early = sum(answer.finish != "length" for answer in load.answers)
        if early > EARLY * requests:
            raise Broken(f"{contender.name}: {early} of {requests} answers ended by themselves")
        return {"tokens_per_s": load.tokens_per_s, "client_cpu": load.client_cpu}

    return scene


class Decoders:
    """Streams that keep a server decoding in the background until they are hung up on."""

    def __init__(
        self, server: WebServer, count: int, tag: str, prompt: int = 32, output: int = ENDLESS
    ) -> None:
        self.server = server
        self.calls = [
            make_call(server, f"{tag} decoder {n}", prompt, output, {"temperature": 0}, 3600)
            for n in range(count)
        ]

    def start(self, then: Callable[[], None]) -> None:
        """Starts them; calls then when each of them decodes."""
        waiting = set(self.calls)

        def piece(call: Call) -> None:
            # The first may be the role's; at the third it decodes, whatever the server's manner.
            if call in waiting and sum(b'"content"' in data for _, data in call.pieces) >= 3:
                waiting.remove(call)
                if not waiting:
                    self.server.swarm.on_piece = None
                    then()

        self.server.swarm.on_piece = piece
        begin = time.perf_counter()
        for number, call in enumerate(self.calls):
            self.server.swarm.start(call, begin + number * RAMP_S)

    def stop(self) -> None:
        """Hangs up."""
        self.server.swarm.on_piece = None
        self.server.swarm.abandon(self.calls)


def newcomers(decoders: int, count: int, prompt: int) -> Scene:
    """ttft_p95 of newcomers that come one at a time while others decode."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        background = Decoders(server, decoders, tag)
        # Pauses of random length: mlx_lm.server admits every so many steps, and a newcomer may
        # meet that at any phase.
        chance = random.Random(tag)
        seen: list[Call] = []

        def send() -> None:
            if len(seen) == count or (seen and seen[-1].failure):
                background.stop()
                return
            call = make_call(server, f"{tag} newcomer {len(seen)}", prompt, 4, {"temperature": 0},
                             REQUEST_DEADLINE_S)  # fmt: skip
            seen.append(call)
            at = time.perf_counter() + chance.uniform(0.2, 1.0)
            server.swarm.start(call, at, lambda done: send())

        background.start(send)
        server.swarm.run()
        settle(server)
        check([*seen, *background.calls], server.name)
        times = [call.read().ttft for call in seen]
        return {"ttft_p95": percentile(times, 95), "ttft_p50": percentile(times, 50)}

    return scene


def long_prompt(decoders: int, prompt: int, quiet_s: float = 1.0) -> Scene:
    """itl_p95 of decoders while a long prompt is computed: all gaps that overlap the time from
    its sending to its first token. Also its own ttft, and the decoders' itl_p95 before it."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        background = Decoders(server, decoders, tag)
        call = make_call(server, f"{tag} long", prompt, 2, {"temperature": 0}, LONG_DEADLINE_S)

        def send() -> None:
            server.swarm.start(call, time.perf_counter() + quiet_s, lambda done: background.stop())

        background.start(send)
        server.swarm.run()
        settle(server)
        check([call, *background.calls], server.name)
        answer = call.read()
        begin, end = answer.sent, answer.sent + answer.ttft
        during, before = [], []
        for decoder in background.calls:
            texts = decoder.read().texts
            for first, second in zip(texts, texts[1:], strict=False):
                if second <= begin:
                    before.append(second - first)
                elif first < end:
                    during.append(second - first)
        if not during:
            raise Broken(f"{server.name}: the decoders got nothing while the prompt was computed")
        return {
            "itl_p95": percentile(during, 95),
            "itl_most": max(during),
            "itl_p95_before": percentile(before, 95) if before else 0.0,
            "ttft": answer.ttft,
        }

    return scene


def beside_long(clients: int, prompt: int, output: int) -> Scene:
    """tokens_per_s of short chats, all at once, while one with a long prompt decodes."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        background = Decoders(server, 1, f"{tag} long", prompt, LONG_ANSWER)
        calls = [
            make_call(server, f"{tag} short {n}", 50, output, {"temperature": 0}, LONG_DEADLINE_S)
            for n in range(clients)
        ]
        left = set(calls)

        def done(call: Call) -> None:
            left.discard(call)
            if not left:
                background.stop()

        def send() -> None:
            begin = time.perf_counter()
            for number, call in enumerate(calls):
                server.swarm.start(call, begin + number * RAMP_S, done)

        background.start(send)
        server.swarm.run()
        settle(server)
        check([*calls, *background.calls], server.name)
        answers = [call.read() for call in calls]
        seconds = max(one.ended for one in answers) - min(one.sent for one in answers)
        return {"tokens_per_s": sum(map(count_tokens, answers)) / seconds}

    return scene


def second_turn(prompt: int, answer_tokens: int) -> Scene:
    """ttft of the first and of the second turn of a conversation."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        turns = [{"role": "user", "content": words(server.gauge.words_for(prompt), tag)}]
        first = _say(server, turns, answer_tokens)
        turns.append({"role": "assistant", "content": first.text})
        turns.append({"role": "user", "content": words(12, f"{tag} second")})
        second = _say(server, turns, 4)
        return {"first": first.ttft, "second": second.ttft, "cached": second.cached_tokens or 0}

    return scene


def _say(server: WebServer, turns: list[dict], output: int):
    fields = server.asker.fields("", output, {"temperature": 0}) | {"messages": list(turns)}
    answer = server.swarm.ask(server.asker.path, fields, LONG_DEADLINE_S)
    if answer.failure:
        raise Broken(f"{server.name}: {answer.failure} {answer.detail}")
    return answer


def idle(seconds: float) -> Scene:
    """rank, launcher: CPU of the busiest rank and of the launcher while nothing is asked."""

    def scene(contender: Contender, tag: str) -> dict[str, float]:
        time.sleep(2 * SETTLE_S)  # naps grow while nothing happens
        pids = [*contender.pids(), contender.launcher.pid]
        before, began = [cpu_seconds(pid) for pid in pids], time.perf_counter()
        time.sleep(seconds)
        wall = time.perf_counter() - began
        used = [(cpu_seconds(pid) - b) / wall for pid, b in zip(pids, before, strict=True)]
        return {"rank": max(used[:-1]), "launcher": used[-1]}

    return scene


def burst(clients: int, per_client: int, prompt: int, output: int) -> Scene:
    """lost: refused, reset or cut connections when all clients connect at once and stream."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        def make(client: int, number: int) -> Call:
            return make_call(server, f"{tag} {number}", prompt, output, {"temperature": 0},
                             REQUEST_DEADLINE_S)  # fmt: skip

        load = closed_loop(server.swarm, clients, make, requests=per_client * clients)
        lost = {"refused", "reset", "cut"}
        count = sum(number for kind, number in load.failures.items() if kind in lost)
        return {"lost": count, "failed": sum(load.failures.values()), "of": per_client * clients}

    return scene


def memory(clients: int, requests: int, prompt: int, output: int) -> Scene:
    """growth_mb: by how much rank 0's resident memory grew over the second half of the requests,
    from the median of the fifth tenth to that of the last. Also mb_1 to mb_10, each tenth's."""

    def scene(server: Ours, tag: str) -> dict[str, float]:
        pid = server.pids()[0]
        every = max(1, requests // 200)
        samples: list[list[float]] = [[] for _ in range(10)]

        def make(client: int, number: int) -> Call:
            if number % every == 0:
                samples[number * 10 // requests].append(resident_mb(pid))
            return make_call(server, f"{tag} {number}", prompt, output,
                             sampling("mixed", client, number), REQUEST_DEADLINE_S)  # fmt: skip

        load = closed_loop(server.swarm, clients, make, requests=requests)
        if load.failures:
            raise Broken(f"{server.name}: {load.failures}")
        tenths = [statistics.median(tenth) for tenth in samples]
        result = {f"mb_{number}": mb for number, mb in enumerate(tenths, 1)}
        return result | {"growth_mb": tenths[9] - tenths[4]}

    return scene


def settle(server: WebServer) -> None:
    """Until the server, which clients have just left, answers promptly again."""
    time.sleep(SETTLE_S)
    fields = server.asker.fields("One", 1, {"temperature": 0}, stream=False)
    answer = server.swarm.ask(server.asker.path, fields, REQUEST_DEADLINE_S)
    if answer.failure:
        raise Broken(f"{server.name} after clients left: {answer.failure} {answer.detail}")
