"""The cluster server: one OpenAI-compatible endpoint on rank 0, models over all ranks.

The folders are the stages of a request, in the order in which it meets them. On rank 0's threads:

    transport   sockets, exchanges, bodies, who may come in, the page        bytes <-> exchanges
    api         routes, each API's requests and answers, their description   JSON <-> typed requests
    text        chat template and tokenizer in; text, reasoning, calls out   text <-> tokens
    grammar     what an answer must match: compiled, tried apart, masked
    scheduler   the queue, admission, pace of prefill, kept prefixes          rank 0 decides

On the main thread of every rank:

    wire        rank 0's messages, and the collectives that carry them    every rank hears the same
    engine      batches of rows, steps, caches, kept prefixes             every rank computes
    disk        kept prefixes as files, and the threads that read and write them
    sampling    from logits to the next tokens, and which rank chooses

Around them: startup (from the handshake to the canary), lifecycle (how a rank ends, and notices
that it should), observe (what all of it looks like from outside; asks nobody), protocol (the words
that all share). openai_cluster_server.py is the entry, rank.py goes from there to loop.py.
"""
