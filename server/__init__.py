"""The cluster server: one OpenAI-compatible endpoint on rank 0, one model over all ranks.

The stages of a request, in the order in which it meets them (on rank 0 where nothing else is said):

    settings_table, settings    every setting there is; what the operator asked for, read once from
                         the environment (every rank)
    http_server          sockets, deadlines, bodies, JSON and event streams
    routes, door         which URL does what, and who may come in
    cross_site, host_names   which web pages may not, and by which names
    model_routes         from a body to an answer, whatever the API
    lanes, client      how many are made ready at once, and how long who waits for that waits
    requests, fields, json_limits   what all APIs check in the same way
    dialects/            each API's own: requests in, answers out
    formats, schema_limits, grammar_text, call_grammar
                         what an answer must match, and how that is written as a grammar
    client, grammar, grammar_cache, grammar_queue, grammar_process, grammar_check
                         compiled: who waits for it and how long, once each, tried apart
    prompts              chat template, tokenizer, and the right way out
    tickets              the bounded line between HTTP threads and the engine
    director, running    what to admit, pause, cancel and deliver
    pacing               how much of a prompt to prefill between two decode steps
    prefix_index, prefix_tree   which beginnings of prompts to reuse, to keep and to give up
    messages, mailbox    rank 0's decisions, as bytes, to every rank
    loop, failures       the lockstep loop on the main thread of every rank, and whose failure it is
                         when something in it goes wrong: one request's, or this rank's
    engine, batches, prefix_store   mlx-lm's batching with a step of our own, and the ranks' shards
                         of kept prefixes (every rank)
    choosers, dealing, sampling, drawing, rows, chances, constraint, token_masks
                         the choice of the next tokens, by rank 0 or the rank that a row is dealt
                         to, and how it reaches every rank
    generation, answering       from tokens to pieces to the client
    plain_text, stop_strings    tokens to text, for completions
    chat_text, markup, call_text, call_scanner, call_parsers, forced_calls
                         tokens to text, reasoning and calls, as the model's family marks them

pieces and errors are what these stages hand to each other: parts of an answer, and the one
exception that becomes an HTTP error.

Every rank's life: openai_cluster_server is the entry, joining finds the other ranks, rank goes from
there to the loop. link holds the collectives, seal proves what they bring; handshake, versions,
model_files and canary ask whether all ranks are the same; loading brings the model, last_logits has
it project only what is wanted, split_head divides that projection, kv_budget tells how much memory
is left; watchdog (with wait_clock and turn_times), lifeline, pidfile and shutdown are how a rank
notices that it should end, and exit_codes what that tells the supervisor.

How it is seen: stages (until it serves), status (/health, /queue, /v1/models), heartbeat, machine
and fleet (what each rank tells of itself), account (what became of a request), recorder, histogram
and series (the numbers), link_speed, cluster_state (/cluster), metrics with metric_words,
metrics_requests, metrics_work and metrics_ranks (/metrics), rank_log (what each rank prints),
request_log and event_file, both through line_file, and all of them through line_queue, page (the
page at /), openapi with openapi_requests, openapi_answers and openapi_words (the routes described).
"""
