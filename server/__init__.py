"""The cluster server: one OpenAI-compatible endpoint on rank 0, one model over all ranks.

The stages of a request, in the order in which it meets them:

    settings             what the operator asked for, read once from the environment
    http_server          sockets, deadlines, bodies, JSON and event streams (rank 0)
    routes               which URL does what (rank 0)
    requests, fields     the client's JSON, checked and typed (rank 0)
    prompts              chat template, tokenizer, streaming text (rank 0)
    tickets              the bounded line between HTTP threads and the engine (rank 0)
    director             what to admit, cancel and deliver, decided on rank 0
    messages, mailbox    rank 0's decisions, as bytes, to every rank
    loop                 the lockstep loop on the main thread of every rank
    engine, sampling     mlx-lm's batching with rank 0's choice of token
    generation, answers  tokens to text to OpenAI's shapes (rank 0)

Beside them: handshake and model_files (are all ranks the same?), loading, watchdog,
lifeline, pidfile and shutdown (how a rank notices that it should end), status (what
/health says), and exit_codes (what a rank's end tells the supervisor).
"""
