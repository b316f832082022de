"""Which models fit beside each other, by what each would hold."""

import pytest

pytest.importorskip("mlx")

from scripts.lib.model.together import as_text, judge_together

GB = 10**9


def model(name, gigabytes, memory=100, token=100_000, peak=1, **more):
    row = {
        "ranks": 2,
        "how": "tensor",
        "reasons": [],
        "weights_bytes": [gigabytes * GB] * 2,
        "kv": [{"request_bytes": 0, "token_bytes": token}] * 2,
        "usable_bytes": [memory * GB] * 2,
    } | more
    return {
        "model": name,
        "context": 32768,
        "largest_weight_bytes": peak * GB,
        "ranks": [row | {"ranks": 1}, row],
    }


def test_all_of_them_fit():
    told = judge_together([model("large", 60), model("small", 4), model("other", 20)], 2)
    assert told == {"ranks": 2, "fit": [["large", "small", "other"]], "against": ""}
    assert as_text(told) == "\nbeside each other, on 2 rank(s):\n  all 3 of them fit\n"


def test_the_largest_sets_are_named_and_why_there_is_no_larger_one():
    three = [model("large", 60), model("small", 4), model("other", 50)]
    told = judge_together(three, 2)
    assert told["fit"] == [["large", "small"], ["small", "other"]]
    assert (
        told["against"].startswith("rank 0: its ")
        and "leave too little of 100.0 GB" in (told["against"])
    )
    text = as_text(told)
    assert "  fit together:  large, small\n  fit together:  small, other\n  not all:  " in text


def test_what_loading_takes_at_its_peak_and_least_caches_count():
    two = [model("a", 60), model("b", 35)]
    assert judge_together(two, 2)["against"] == ""
    peak = judge_together([model("a", 60), model("b", 35, peak=6)], 2)
    assert "35.0 GB of weights, beside 60.0 GB of other models, leave too little" in peak["against"]
    wide = judge_together([model("a", 60, token=10**6), model("b", 30, token=10**6)], 2)
    assert wide["against"].endswith("leave 7.0 GB for caches, where 8.2 GB is least")


def test_what_would_not_run_is_left_out_and_memory_that_is_not_known_said():
    told = judge_together([model("a", 60), model("b", 1, how=None)], 2)
    assert told["fit"] == [["a"]]
    told = judge_together([model("a", 60, usable_bytes=[None, 1]), model("b", 1)], 2)
    assert (told["fit"], told["against"]) == ([], "the hosts' memory is not known")
