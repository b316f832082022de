"""JSON schema of what GET /cluster answers. Pure data."""

from server.api.openapi.words import (
    Schema,
    array,
    boolean,
    enum,
    integer,
    note,
    number,
    optional,
    string,
    told,
)
from server.observe.live_requests import PHASES as LIVE_PHASES
from server.observe.phases import PHASES


def cluster_schema() -> Schema:
    """Of the whole body."""
    size, seconds, count = optional(integer(0)), number(0), integer(0)
    rank = told(
        rank=count,
        host=string(),
        pid=integer(1),
        chip=string(),
        os=string(),
        memory_total_bytes=size,
        memory_used_bytes=note(size, "MLX's arrays: weights, KV cache, work."),
        memory_peak_bytes=note(size, "The most that these were since the start."),
        gpu_limit_bytes=note(size, "What Metal lets a process wire; null without a GPU."),
        rss_bytes=note(size, "The whole process."),
        heartbeat_age_s=note(optional(seconds), "Since a collective of all ranks last ended."),
        state=enum("loading", "ok", "silent"),
        loaded_bytes=note(size, "Of the rank's weights; null before it begins to load."),
        total_bytes=size,
    )
    model = told(
        id=string(),
        state=enum("unloaded", "loading", "loaded", "leaving"),
        why=note(string(), "Why it is so: what it makes room for, why it could not be loaded."),
        pinned=boolean(),
        size_bytes=note(size, "Of its weights, on all ranks; null if it could not be looked at."),
        context=note(optional(integer(1)), "Tokens; null until it was loaded."),
        loaded_share=note(number(0), "Of its weights, while it is being loaded."),
        loads=note(count, "How often it has been loaded since the start."),
        failures=note(count, "How often it could not be."),
        unloads=told(
            room=note(count, "How often it left for another."),
            idle=note(count, "How often for IDLE_UNLOAD."),
        ),
        load_s=note(optional(seconds), "That its last load took; null at first."),
        switched_at=note(optional(seconds), "When its state last changed, Unix time."),
        running=note(count, "Choices that the ranks work on."),
        queued=note(count, "Choices that wait for it."),
        parallel=note(optional(string()), "This and what follows: null until it was loaded."),
        batching=optional(string()),
        kv_precision=optional(string()),
        drafts=optional(string()),
    )
    point = told(
        t=seconds,
        generated_tokens_per_s=seconds,
        prompt_tokens_per_s=note(seconds, "As they are prefilled."),
        ttft_p50_s=optional(seconds),
        running=count,
        queued=count,
    )
    return told(
        status=enum(*PHASES),
        detail=string(),
        model=string(),
        models=array(model),
        run_id=string(),
        uptime_s=seconds,
        now=note(seconds, "Unix time, as are all `t`."),
        world_size=count,
        parallel=note(string(), "PARALLEL; once the model is loaded, what it led to."),
        batching=note(
            optional(string()),
            "How the model's requests are computed beside each other. Null until it is loaded.",
        ),
        kv_precision=note(
            optional(string()),
            "What keys and values are kept in: `full`, or KV_BITS and the tokens from which on; "
            "where the model does not bear these, `full: ` and why. Null until it is loaded.",
        ),
        backend=enum("none", "ring", "jaccl", "jaccl-ring"),
        versions=told(python=string(), mlx=string(), mlx_lm=string(), code=string()),
        limits=told(
            max_batch=integer(1),
            queue_max=count,
            context=optional(integer(1)),
            req_timeout_s=seconds,
            req_total_timeout_s=note(optional(seconds), "null: as long as it goes on."),
        ),
        ranks=note(array(rank), "Empty until the ranks have introduced themselves."),
        link=told(
            latency_us=optional(seconds),
            bandwidth_gb_s=optional(seconds),
            pairs=note(
                array(
                    told(ranks=array(count), latency_us=seconds, bandwidth_gb_s=seconds),
                ),
                "Each two ranks that have a link, as timed at the start.",
            ),
        ),
        formats=note(
            optional(
                told(calls=string(), calls_by=string(), thinking=string(), template=array(string()))
            ),
            "How the model writes tool calls and thoughts, as far as the server knows; what its "
            "chat template leaves out. Null until it is loaded.",
        ),
        running=count,
        queued=note(count, "Waiting, those that were paused included."),
        paused=count,
        kv_tokens=told(
            used=count,
            capacity=count,
            row=note(count, "What each request takes beside its tokens: windows and states."),
        ),
        prefix_cache=told(
            entries=count,
            tokens=count,
            hit_tokens=count,
            miss_tokens=count,
            evicted_tokens=count,
            disk=note(
                told(
                    entries=count,
                    bytes=count,
                    limit_bytes=count,
                    hit_tokens=count,
                    read_bytes=count,
                    written_bytes=count,
                    evicted_bytes=count,
                    failures=count,
                ),
                "Bytes are those of the fullest rank's disk; a limit of 0: nothing is kept there.",
            ),
        ),
        drafts=note(
            told(on=optional(string()), drafted=count, right=count, steps=count),
            "Tokens that were drafted, those of them that were right, and the decode steps that "
            "had drafts. `on`: for which steps there may be some; null until the model is loaded.",
        ),
        series=told(interval_s=integer(1), points=array(point)),
        totals=note(
            told(
                requests=count,
                answered=count,
                refused=count,
                failed=count,
                cut=count,
                prompt_tokens=count,
                cached_tokens=count,
                generated_tokens=count,
            ),
            "Of the requests that ask the model for an answer, since the server started. Those "
            "in `requests` and in none of the four after it are in progress.",
        ),
        keys=note(
            array(
                told(
                    key=note(string(), "Its label; keys of one label are counted together."),
                    answered=count,
                    refused=count,
                    failed=count,
                    cut=count,
                    prompt_tokens=count,
                    cached_tokens=count,
                    generated_tokens=count,
                )
            ),
            "Requests for answers that have ended, and tokens, since the server started. Empty "
            "without keys.",
        ),
        requests=note(
            array(
                told(
                    id=note(string(), "As the answer's `x-request-id`."),
                    key=note(optional(string()), "The label of its API key."),
                    route=string(),
                    model=optional(string()),
                    stream=boolean(),
                    phase=enum(*LIVE_PHASES),
                    age_s=seconds,
                    choices=integer(1),
                    prompt_tokens=count,
                    cached_tokens=count,
                    generated_tokens=count,
                    max_tokens=note(count, "The most that it may still become."),
                    kv_tokens=note(count, "That its rows take of the KV memory."),
                    stop=note(boolean(), "Whether whoever asks may DELETE /requests/{id}."),
                )
            ),
            "That have a place in the line and are not over, in the order they came.",
        ),
        restarts=count,
        last_failure=optional(string()),
        events=note(array(told(t=seconds, text=string()), most=50), "Newest last."),
    )
