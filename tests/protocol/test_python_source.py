"""Several threads read Python's source at once, as request threads do with calls in its words."""

import ast
import gc
import time
from concurrent.futures import ThreadPoolExecutor

from server.protocol import python_source

SOURCE = "[" + ", ".join(f"{{'a': (1, [2, {n}])}}" for n in range(2000)) + "]"


def test_several_threads_may_parse_at_once():
    """A SystemError told of a "recursion depth mismatch", and the request was lost."""

    def give_way(*what) -> None:
        time.sleep(0.0005)

    gc.callbacks.append(give_way)  # a collection amid a tree is where another thread comes in
    try:
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(lambda _: python_source.parse(SOURCE, "eval"), range(12)))
    finally:
        gc.callbacks.remove(give_way)
    assert {len(tree.body.elts) for tree in trees} == {2000}


def test_what_cannot_be_parsed_raises_as_ever_and_holds_up_nobody():
    for _ in range(2):
        try:
            python_source.parse("a b", "eval")
        except SyntaxError:
            pass
        else:
            raise AssertionError("that is no Python")
    assert isinstance(python_source.parse("1"), ast.Module)
