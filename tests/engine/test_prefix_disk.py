"""Prefixes on disk: a server that has just started computes no more than one that never stopped."""

import logging
import os
import random
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from server.disk.folder import Unusable
from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.scheduler.disk_entries import LEAST, DiskEntries, OnEveryDisk
from server.scheduler.disk_index import KIB, DiskIndex, Rank0
from server.scheduler.kv_budget import RankMemory
from server.startup import prefix_disk
from server.startup.piece_pace import at_once
from server.wire.link import Link
from tests.models.served import serve
from tests.support.desk import Desk, choices, precision_of, ticket
from tests.support.small_models import KINDS, VOCAB

ROOM = 10**6
GB = 0.1


@pytest.fixture(scope="module", params=KINDS)
def shard(request):
    return make_shard(request.param)


@pytest.fixture(scope="module")
def llama():
    return make_shard("attention")


def make_shard(kind: str, seed: int = 7) -> SimpleNamespace:
    model = KINDS[kind]()
    key = mx.random.key(seed)
    # Large enough weights that the best token stands out, whatever the rounding.
    model.update(
        tree_map(
            lambda w: mx.random.normal(w.shape, key=key) * 0.4 if w.ndim > 1 else w,
            model.parameters(),
        )
    )
    mx.eval(model.parameters())
    last = LastLogits(model, put_heads(model))
    return SimpleNamespace(model=model, last=last, vocab=VOCAB, arrangement="whole")


@pytest.fixture
def start(tmp_path, shard):
    return starter(tmp_path / "kept", tmp_path, shard)


@pytest.fixture
def restart(tmp_path, llama):
    return starter(tmp_path / "kept", tmp_path, llama)


def starter(folder: Path, model_dir: Path, shard):
    """start() is a server that has just started, with what the last one left on disk."""
    held = []

    def start(**options) -> Desk:
        for opened in held:
            opened.disk._folder.close()  # as when its process ends
        held.clear()
        made = options.pop("shard", shard)
        gb = options.pop("gb", GB)
        settings = SimpleNamespace(
            prefix_disk_dir=str(folder), prefix_disk_gb=gb, model_dir=model_dir
        )
        link = Link(mx.distributed.init())
        opened = at_once(prefix_disk.open_disk(settings, link, made, lambda stage: None))
        assert not opened.problem
        held.append(opened)
        cuttable = reuse_kind(made.model) == REUSE_CUT
        entries = DiskEntries(int(gb * 1e9) // KIB, 1, cuttable, precision_of(made))
        found = opened.found
        entries.load(OnEveryDisk(*e, found[e[0]].label, found[e[0]].used) for e in opened.entries)
        mine = Rank0(opened.disk.is_over, opened.disk.touch, opened.labels)
        index = DiskIndex(entries, [RankMemory(10**9, 4096, 512)], mine)
        options = {"room": ROOM, "cuttable": cuttable} | options
        return Desk(made, disk=(opened.disk, index), **options)

    return start


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def ask(desk: Desk, prompt: list[int], tokens: int = 12):
    """Its answer, and how many tokens of the prompt were kept."""
    one = ticket(prompt=prompt, max_tokens=tokens)
    (answer,) = desk.run(one)
    return answer, one.cached


def look(desk: Desk):
    return desk.scheduler._disk.look()


def test_a_conversation_goes_on_after_a_restart(start, shard):
    bare, prompt = Desk(shard), text(1, 400)
    for turn in range(4):
        desk = start()
        answer, cached = ask(desk, prompt)
        assert answer == ask(bare, prompt)[0], f"turn {turn}"
        if turn:
            # All but the turn's own tokens, and what was too little for a file of its own.
            assert cached > len(prompt) - 150 - LEAST, f"turn {turn}"
            assert look(desk).hit_tokens == cached
        prompt = prompt + answer + text(10 + turn, 150)


def test_memory_disk_and_no_reuse_give_the_same_text(start, shard):
    desk, bare = start(), Desk(shard)
    prompt = text(1, 500)
    first, _ = ask(desk, prompt)
    longer = prompt + first + text(2, 30)
    right, _ = ask(bare, longer, 30)
    in_memory, cached = ask(desk, longer, 30)
    assert cached > 400
    from_disk, cached = ask(start(), longer, 30)
    assert cached > 400
    assert in_memory == from_disk == right


def test_choices_and_sampled_answers_go_on_from_disk(start, shard):
    prompt = text(3, 300)
    fields = {"prompt": prompt, "max_tokens": 10, "temperature": 1.0, "seed": 3}
    right = Desk(shard).run(choices(3, **fields))
    ask(start(), prompt)
    again = choices(3, **fields)
    assert start().run(again) == right
    assert again.cached >= 299


def test_each_token_is_on_disk_once(restart):
    desk, prompt = restart(), text(1, 1000)
    ask(desk, prompt)
    first = look(restart()).bytes
    for turn in range(4):
        desk = restart()
        prompt = prompt + text(20 + turn, 200)
        ask(desk, prompt)
    used = look(restart())
    assert used.entries == 5
    assert first < used.bytes < 2.2 * first  # the text has grown to 1.8 times of what it was


def test_prompts_that_part_share_their_beginning_on_disk(restart):
    system, desk = text(1, 1000), restart()
    for seed in range(2, 6):
        ask(desk, system + text(seed, 200))
    desk = restart()
    assert look(desk).bytes < 2.5 * 1000 * 512
    for seed in range(2, 6):
        assert ask(desk, system + text(seed, 200) + [1, 2])[1] >= 1200


def test_what_is_on_disk_already_is_not_written_again(restart):
    prompt = text(1, 600)
    ask(restart(), prompt)
    desk = restart()
    ask(desk, [*prompt, 5])
    assert look(desk).written_bytes == 0


def test_disk_is_bounded_and_what_was_used_last_stays(restart):
    gb = 1e-3
    desk = restart(gb=gb)
    old = text(1, 400)
    ask(desk, old)
    for seed in range(2, 10):
        ask(desk, text(seed, 400))
        ask(desk, [*old, seed])
    use = look(desk)
    assert use.evicted_bytes > 0
    files = list(desk.disk._folder.path.iterdir())
    assert sum(path.stat().st_size for path in files) <= gb * 1e9
    assert ask(restart(gb=gb), [*old, 1])[1] == 400


def files_of(desk: Desk) -> list[Path]:
    return sorted(desk.disk._folder.path.glob("*.kept"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def tear(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def lose(path: Path) -> None:
    path.unlink()


def overwrite(path: Path) -> None:
    path.write_bytes(b"something else")


@pytest.mark.parametrize("harm", [flip_a_bit, tear, lose, overwrite])
@pytest.mark.parametrize("running", [False, True])
def test_a_file_that_is_harmed_is_computed_again(restart, llama, caplog, harm, running):
    """Before the start and after it: the start looks at sizes, reading at every byte."""
    prompt = text(1, 600)
    desk = restart()
    right, _ = ask(desk, prompt)
    longer = prompt + right + text(2, 20)
    (path,) = files_of(desk)
    if running:
        desk = restart()
        harm(path)
    else:
        harm(path)
        desk = restart()
    with caplog.at_level(logging.WARNING):
        answer, cached = ask(desk, longer)
    assert (answer, cached) == (ask(Desk(llama), longer)[0], 0)
    assert len(caplog.records) <= 1
    # And what took its place serves from now on.
    assert ask(restart(), longer)[1] >= 600


def test_what_is_based_on_a_harmed_file_goes_with_it(restart, llama):
    prompt = text(1, 600)
    ask(restart(), prompt)
    ask(restart(), prompt + text(2, 300))
    desk = restart()
    first = min(files_of(desk), key=lambda path: path.stat().st_mtime)
    flip_a_bit(first)
    longer = prompt + text(2, 300) + [5]
    assert ask(desk, longer) == (ask(Desk(llama), longer)[0], 0)
    assert ask(restart(), longer)[1] >= 900


def test_another_models_files_are_not_used(restart, llama):
    """Trained on, it has the same names and sizes, and other numbers."""
    prompt = text(1, 600)
    ask(restart(), prompt)
    other = make_shard("attention", seed=8)
    desk = restart(shard=other)
    assert ask(desk, prompt) == (ask(Desk(other), prompt)[0], 0)
    # Nor when they lie in its folder.
    mine, theirs = desk.disk._folder.path, restart().disk._folder.path
    for path in theirs.glob("*.kept"):
        shutil.copy(path, mine)
    desk = restart(shard=other)
    longer = [*prompt, *text(2, 5)]
    assert ask(desk, longer)[0] == ask(Desk(other), longer)[0]


def test_a_disk_that_takes_nothing_more_is_one_line_and_no_reason_to_stop(restart, llama, caplog):
    desk = restart()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with caplog.at_level(logging.WARNING):
            for seed in range(3):
                prompt = text(seed, 600)
                assert ask(desk, prompt)[0] == ask(Desk(llama), prompt)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ["File too large" in record.message for record in caplog.records] == [True]
    assert files_of(desk) == [] == list(desk.disk._folder.path.glob("*.part"))
    assert look(desk).failures == 1


def test_a_folder_that_goes_away_is_no_reason_to_stop(restart, llama):
    desk = restart()
    prompt = text(1, 600)
    ask(desk, prompt)
    desk = restart()
    shutil.rmtree(desk.disk._folder.path)
    for seed in (1, 2):
        prompt = [*text(seed, 600), 5]
        assert ask(desk, prompt) == (ask(Desk(llama), prompt)[0], 0)
    assert files_of(desk)  # in a folder made again


def test_files_are_private_and_their_names_carry_no_text(restart):
    desk = restart()
    ask(desk, text(1, 600))
    folder = desk.disk._folder.path
    for path in (folder, folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700
    (path,) = files_of(desk)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.stem) == 32 and set(path.stem) <= set("0123456789abcdef")


def test_a_folder_in_use_by_another_server_is_left_alone(restart, tmp_path, llama, monkeypatch):
    monkeypatch.setattr("server.disk.folder.LOCK_WAIT_S", 0)
    restart()
    settings = SimpleNamespace(
        prefix_disk_dir=str(tmp_path / "kept"), prefix_disk_gb=GB, model_dir=tmp_path
    )
    link = Link(mx.distributed.init())
    opened = at_once(prefix_disk.open_disk(settings, link, llama, lambda stage: None))
    assert opened.disk is None
    assert "is in use by another server" in opened.problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_named(tmp_path, llama):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(Unusable, match="shut"):
        prefix_disk.Folder(tmp_path / "shut" / "kept", 0, "maker", 10**9)


@pytest.mark.parametrize(
    "name", ["gpt_oss", "deepseek_v32", "qwen3_next", "nemotron_h", "llama4", "deepseek_v41"]
)
def test_families_go_on_from_disk(tmp_path, name):
    """What a batch hands out of its caches goes back into caches that the model has made."""
    shard = serve(name)
    shard.arrangement = "whole"
    start = starter(tmp_path / "kept", tmp_path, shard)
    start_prompt = [3 + token % 240 for token in text(1, 300)]
    answer, _ = ask(start(), start_prompt)
    longer = start_prompt + answer + [5, 6, 7]
    desk = start()
    assert ask(desk, longer)[0] == ask(Desk(shard), longer)[0]
    assert look(desk).hit_tokens >= 299
    assert look(desk).failures == 0


@pytest.mark.parametrize("kind", ["llama, heads of 64", "qwen3_next, heads of 64"])
def test_keys_in_fewer_bits_outlive_a_restart(tmp_path, kind):
    """KV_BITS: a short text's whole keys, and a longer one's, of which it is the beginning."""
    shard = serve(kind, kv_bits=8, kv_bits_from=500)
    shard.arrangement = "whole"
    start, bare, prompt = starter(tmp_path / "kept", tmp_path, shard), Desk(shard), text(1, 300)
    for turn in range(4):
        desk = start()
        answer, cached = ask(desk, prompt)
        assert answer == ask(bare, prompt)[0], f"turn {turn}"
        if turn:
            assert cached > len(prompt) - 180 - LEAST, f"turn {turn}"
            assert look(desk).hit_tokens == cached
        prompt = prompt + answer + text(10 + turn, 150)
    assert len(prompt) > 800


def test_what_is_kept_in_other_bits_is_not_found(tmp_path):
    """The same model with another KV_BITS or KV_BITS_FROM has a folder of its own."""
    link, names = Link(mx.distributed.init()), set()
    for bits, length in ((0, 0), (8, 0), (4, 0), (8, 500)):
        shard = serve("llama, heads of 64", kv_bits=bits, kv_bits_from=length)
        shard.arrangement = "whole"
        totals = at_once(prefix_disk.sums(shard.model, link))
        names.add(prefix_disk.name_maker(tmp_path, link, shard, totals))
    assert len(names) == 4
