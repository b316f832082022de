"""Benchmarks of a server from outside: load, clocks, numbers, tables.

    stats, workload      what is drawn and what is made of the times; no I/O
    swarm, answers       many requests at once from one thread, and what came back
    gauge                how many words make the tokens that were asked for

scripts/bench_serving.py uses these on any endpoint. scripts/dev/bench_compare.sh has also:

    models, copier       the models of the comparison
    processes, servers   both servers and the bare engine as processes: start, pause, end
    peer_server, bare_engine, step_profile    programs that ranks run
    scenes, draft_scenes one measurement each
    rows, compare        the table, and who is measured when
    page                 the table in docs/performance.md

What bench_serving.py needs uses the standard library alone.
"""
