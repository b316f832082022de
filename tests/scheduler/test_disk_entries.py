"""What rank 0 knows of the ranks' disks: what serves a prompt, what is based on what, what goes."""

import random

import numpy as np
import pytest

from server.protocol.row_lengths import Precision
from server.scheduler.disk_entries import (
    EVERYBODY,
    LEAST,
    MOST_CHAIN,
    DiskEntries,
    OnEveryDisk,
    label_of,
    name_of,
)

LIMIT = 10**6


def text(seed: int, length: int) -> np.ndarray:
    return np.array(random.Random(seed).choices(range(1000), k=length), dtype=np.int32)


def longer(tokens: np.ndarray, seed: int, by: int) -> np.ndarray:
    return np.concatenate([tokens, text(seed, by)])


def entries(
    cuttable: bool = True, limit: int = LIMIT, ranks: int = 2, **more: Precision
) -> DiskEntries:
    return DiskEntries(limit, ranks, cuttable, **more)


def put(some: DiskEntries, tokens: np.ndarray, owner: str = "", kib: int = 10):
    """As a Store does. Returns where it starts."""
    base, start, _ = some.base_for(tokens, owner)
    some.add(tokens, owner, base, start, (kib,) * len(some.kib))
    return start


def found(some: DiskEntries, tokens: np.ndarray, owner: str = "") -> int:
    entry, length = some.find(tokens, owner)
    return length if entry is not None else 0


def as_found(some: DiskEntries) -> list[OnEveryDisk]:
    """What the ranks' files would say."""
    return [
        OnEveryDisk(
            e.name, e.base.name if e.base else "", e.start, len(e.tokens), e.kib,
            label_of(e.owner, e.tokens[e.start :]), e.used,
        )
        for e in some._entries.values()
    ]  # fmt: skip


@pytest.mark.parametrize("cuttable", [True, False])
def test_the_longest_beginning_is_found_but_for_one_token(cuttable):
    some, prompt = entries(cuttable), text(1, 500)
    put(some, prompt[:200])
    assert put(some, prompt[:400]) == 200
    assert found(some, prompt) == 400
    assert found(some, prompt[:400]) == (399 if cuttable else 200)
    assert found(some, longer(prompt[:300], 2, 50)) == (300 if cuttable else 200)
    assert found(some, text(3, 400)) == 0


def test_what_is_read_is_the_file_that_has_the_last_token_wanted():
    """Of a longer text's chain a part would do: the files behind it need not be whole."""
    some, prompt = entries(), text(1, 600)
    for length in (200, 400, 600):
        put(some, prompt[:length])
    entry, length = some.find(longer(prompt[:300], 2, 10), "")
    assert (len(entry.tokens), length) == (400, 300)
    assert [len(one.tokens) for one in entry.chain] == [400, 200]


def test_prompts_that_part_are_based_on_what_they_share():
    some, system = entries(), text(1, 500)
    put(some, longer(system, 2, 300))
    assert put(some, longer(system, 3, 300)) == 500
    assert put(some, longer(system[: LEAST - 1], 4, 300)) == 0  # too little to be worth it


def test_a_long_chain_is_written_anew():
    some, prompt = entries(), text(1, LEAST * (MOST_CHAIN + 2))
    starts = [put(some, prompt[: LEAST * n]) for n in range(1, MOST_CHAIN + 2)]
    assert starts[:-1] == [LEAST * n for n in range(MOST_CHAIN)]
    assert starts[-1] == 0


@pytest.mark.parametrize("cuttable", [True, False])
def test_ends_go_before_what_they_are_based_on_the_last_used_longest(cuttable):
    some, prompt = entries(cuttable, limit=40), text(1, 600)
    for length in (200, 400, 600):
        put(some, prompt[:length])
    put(some, text(2, 300))
    some.use(text(2, 300), "")
    assert some.make_room((10, 10))
    assert some.forgotten == [name_of("", prompt)]
    assert found(some, longer(prompt, 3, 1)) == 400
    assert some.make_room((20, 20))
    assert found(some, longer(prompt, 3, 1)) == 200
    assert found(some, longer(text(2, 300), 3, 1)) == 300
    assert some.kib == [20, 20]


def test_what_is_at_work_stays_whatever_is_needed():
    some = entries(limit=20)
    put(some, text(1, 300))
    entry, _ = some.find(longer(text(1, 300), 2, 1), "")
    assert not some.make_room((15, 15), pinned=[entry])
    assert some.forgotten == []


def test_each_rank_s_bytes_count():
    """In a pipeline their parts are unequal."""
    some = entries(limit=100)
    some.add(text(1, 200), "", None, 0, (10, 60))
    some.add(text(2, 200), "", None, 0, (10, 30))
    assert some.kib == [20, 90]
    assert some.make_room((1, 20))
    assert len(some) == 1


def test_owners_do_not_find_each_other_s_and_all_find_everybody_s():
    some = entries()
    put(some, text(1, 300), "ann")
    put(some, text(2, 300), EVERYBODY)
    for seed, owner, length in ((1, "ann", 300), (1, "ben", 0), (2, "ben", 300), (2, "ann", 300)):
        assert found(some, longer(text(seed, 300), 9, 5), owner) == length
    assert put(some, text(1, 300), "ben") == 0
    assert name_of("ann", text(1, 300)) != name_of("ben", text(1, 300))


def test_a_start_knows_what_the_files_say():
    some, prompt = entries(), text(1, 600)
    for length in (200, 400, 600):
        put(some, prompt[:length])
    put(some, longer(prompt[:300], 2, 200), "ann")
    put(some, longer(prompt[:300], 3, 200))
    again, files = entries(), as_found(some)
    random.Random(1).shuffle(files)
    again.load(files)
    assert again.forgotten == []
    assert again.kib == some.kib
    assert sorted(e.name for e in again._entries.values()) == sorted(f.name for f in files)
    assert found(again, longer(prompt, 9, 1)) == 600
    assert found(again, longer(longer(prompt[:300], 3, 200), 9, 1)) == 500


def test_a_start_forgets_what_says_something_else_than_its_name():
    some, prompt = entries(), text(1, 600)
    for length in (200, 400, 600):
        put(some, prompt[:length])
    files = as_found(some)
    wrong = label_of("", text(2, 200))
    files[1] = OnEveryDisk(**{**vars(files[1]), "label": wrong})
    again = entries()
    again.load(files)
    assert found(again, longer(prompt, 9, 1)) == 200
    assert set(again.forgotten) == {files[1].name, files[2].name}
    for label in (b"", b"{}\n", b"\xff\n", label_of("", prompt)[:-1], b"[1]\n"):
        again = entries()
        again.load([OnEveryDisk(**{**vars(files[0]), "label": label})])
        assert (len(again), again.forgotten) == (0, [files[0].name])


def test_a_smaller_limit_is_kept_from_the_start():
    some = entries()
    for seed in range(5):
        put(some, text(seed, 300))
    again = entries(limit=25)
    again.load(as_found(some))
    assert len(again) == 2 and len(again.forgotten) == 3


def test_what_shares_a_file_with_a_broken_one_is_doomed():
    some, system = entries(), text(1, 300)
    put(some, system)
    for seed in (2, 3):
        put(some, longer(system, seed, 200))
    put(some, text(4, 300))
    entry, _ = some.find(longer(longer(system, 2, 200), 9, 1), "")
    assert len(some.doom(entry)) == 3
    assert len(some) == 1 and len(some.forgotten) == 3
    assert some.kib == [10, 10]


@pytest.mark.parametrize("cuttable", [True, False])
def test_of_texts_in_fewer_and_in_all_bits_none_is_based_on_the_other(cuttable):
    some, short = entries(cuttable, precision=Precision(600)), text(1, 400)
    long = longer(short, 2, 400)
    put(some, short)
    assert put(some, long) == 0
    assert put(some, longer(long, 3, 300)) == 800, "of the same kind"
    assert found(some, longer(short, 4, 100)) == 400
    assert found(some, longer(long, 5, 100)) == 800
    again = entries(cuttable, precision=Precision(600))
    again.load(as_found(some))
    assert len(again) == 3 and not again.forgotten


def test_a_long_text_on_disk_serves_no_beginning_that_is_short():
    some, long = entries(precision=Precision(600)), text(1, 900)
    put(some, long)
    assert found(some, longer(long[:500], 2, 400)) == 0
    assert found(some, longer(long[:700], 2, 400)) == 700


def test_entries_of_several_models_have_one_limit_and_the_oldest_of_all_goes():
    beside: list[DiskEntries] = []
    one, other = entries(limit=100), entries(limit=100)
    one.join(beside)
    other.join(beside)
    for seed in range(5):
        put(one, text(seed, 200))
    for seed in range(4):
        put(other, text(seed, 200))
    for age, entry in enumerate([*one._entries.values(), *other._entries.values()]):
        entry.used = age
    assert other.make_room([10, 10])
    assert not one.forgotten, "90 and 10 fit"
    assert other.make_room([20, 20])
    assert len(one.forgotten) == 1 and not other.forgotten
    oldest = next(iter(one._entries.values()))
    one.pinned = lambda: [oldest]
    assert other.make_room([30, 30]) and len(one.forgotten) == 2
    assert oldest.name not in one.forgotten
    one.leave()
    assert other.make_room([60, 60]) and not other.forgotten
    assert one.make_room([60, 60])


def test_who_joins_full_disks_has_room_made_for_what_it_brings():
    beside: list[DiskEntries] = []
    one, other = entries(limit=100), entries(limit=100)
    for some in (one, other):
        for seed in range(8):
            put(some, text(seed, 200))
    one.join(beside)
    other.join(beside)
    assert sum(some.kib[0] for some in beside) <= 100
