"""The cluster server: one OpenAI-compatible endpoint on rank 0, one model over all ranks.

The stages of a request, in the order in which it meets them:

    settings             what the operator asked for, read once from the environment
    http_server          sockets, deadlines, bodies, JSON and event streams (rank 0)
    routes, door         which URL does what, and who may come in (rank 0)
    model_routes         from a body to an answer, whatever the API (rank 0)
    requests, fields     what all APIs check in the same way (rank 0)
    dialects/            each API's own: requests in, answers out (rank 0)
    formats, grammar*    what an answer must match, compiled and tried apart (rank 0)
    prompts              chat template, tokenizer, and the right way out (rank 0)
    tickets              the bounded line between HTTP threads and the engine (rank 0)
    director             what to admit, pause, cancel and deliver, decided on rank 0
    messages, mailbox    rank 0's decisions, as bytes, to every rank
    loop                 the lockstep loop on the main thread of every rank
    engine, batches      mlx-lm's batching with a step of our own
    choosers, sampling, rows    rank 0's choice of the next tokens
    generation, answering       from tokens to pieces to the client (rank 0)
    plain_text, chat_text, forced_calls    tokens to text, reasoning and calls (rank 0)

Beside them: link (collectives), handshake, model_files and canary (are all ranks the same?),
loading, kv_budget, watchdog, lifeline, pidfile and shutdown (how a rank notices that it should
end), openapi (the routes described), page (the page at /), and exit_codes (what a rank's end tells
the supervisor).

How it is seen: status (what /health says), stages (until it serves), fleet, machine and heartbeat
(what is known of each rank), account (what became of a request), recorder, histogram and series
(the numbers), cluster_state (/cluster), metrics* (/metrics), request_log, event_file, line_file,
link_speed, versions.
"""
