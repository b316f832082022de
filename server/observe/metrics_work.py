"""The metrics of the engine: steps, prefill, KV memory, prefix cache, collectives.

Called by metrics.py. Pure reading.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from server.observe.metric_words import Words
from server.observe.model_record import ModelRecord
from server.observe.model_view import ModelView
from server.observe.recorder import Recorder
from server.observe.views import DiskUse, DraftUse, LinkSpeed, PrefixUse, View


def describe_work(words: Words, record: ModelRecord, model: ModelView) -> Iterator[Metric]:
    """What the ranks do together for one model."""
    yield words.histogram(
        "step_batch_size",
        "Choices that got a token in a decode step.",
        record.batch_size.snapshot(),
    )
    yield words.histogram(
        "decode_step_seconds",
        "A decode step as rank 0 sees it: the ranks' arithmetic and their collectives cannot be "
        "told apart inside.",
        record.step_seconds.snapshot(),
    )
    yield words.histogram(
        "prefill_chunk_seconds",
        "A chunk of prompts, between two decode steps if others decode.",
        record.prefill_seconds.snapshot(),
    )
    yield words.counter(
        "prefill_tokens",
        "Tokens of prompts that the ranks computed: without cached ones, with padding, and again "
        "after a pause.",
        record.prefilled_tokens,
    )
    yield from _drafts(words, model.load.drafts)
    yield from _kv(words, model)
    yield from _prefix_cache(words, model.load.prefixes)


def describe_links(words: Words, record: Recorder, view: View) -> Iterator[Metric]:
    """What is of no one model: the links, the ranks' disks."""
    limit = view.load.prefixes.disk.limit_bytes
    yield words.gauge("prefix_disk_limit_bytes", "PREFIX_DISK_GB, for all models.", limit)
    yield from _link(words, record, view.link)
    yield from _canary(words, record)


def _drafts(words: Words, drafts: DraftUse) -> Iterator[Metric]:
    yield words.counter(
        "spec_decode_num_draft_tokens", "Tokens that were drafted. As vLLM's.", drafts.drafted
    )
    yield words.counter(
        "spec_decode_num_accepted_tokens",
        "Those that were what the model chose. As vLLM's.",
        drafts.right,
    )
    yield words.counter(
        "spec_decode_num_drafts", "Decode steps that had drafts of any choice.", drafts.steps
    )


def _kv(words: Words, model: ModelView) -> Iterator[Metric]:
    used, capacity, size = model.load.kv_used, model.kv_tokens, model.token_bytes
    yield words.gauge(
        "kv_cache_usage_perc",
        "Share of the KV budget that running requests use, 0 to 1; prefixes kept beside them give "
        "way. As vLLM's.",
        used / capacity if capacity else 0,
    )
    yield words.gauge("kv_cache_tokens", "Tokens' worth of KV cache that is in use.", used)
    yield words.gauge("kv_cache_capacity_tokens", "Tokens' worth of the KV budget.", capacity)
    yield words.gauge("kv_cache_used_bytes", "KV cache in use, rank 0's share of it.", used * size)
    yield words.gauge(
        "kv_cache_capacity_bytes", "The KV budget, rank 0's share of it.", capacity * size
    )


def _prefix_cache(words: Words, prefixes: PrefixUse) -> Iterator[Metric]:
    hits, misses = prefixes.hit_tokens, prefixes.miss_tokens
    yield words.counter(
        "prefix_cache_queries", "Prompt tokens looked up in the prefix cache. As vLLM's.",
        hits + misses,
    )  # fmt: skip
    yield words.counter(
        "prefix_cache_hits", "Prompt tokens found in the prefix cache. As vLLM's.", hits
    )
    yield words.counter("prefix_cache_misses", "Prompt tokens not found there.", misses)
    yield words.counter(
        "prefix_cache_evicted_tokens",
        "Tokens thrown out of the prefix cache for want of room.",
        prefixes.evicted_tokens,
    )
    yield words.gauge("prefix_cache_entries", "Prompts kept in the prefix cache.", prefixes.entries)
    yield words.gauge("prefix_cache_tokens", "Tokens kept in the prefix cache.", prefixes.tokens)
    yield from _prefix_disk(words, prefixes.disk)


def _prefix_disk(words: Words, disk: DiskUse) -> Iterator[Metric]:
    """Bytes are those of the fullest rank."""
    yield words.gauge("prefix_disk_entries", "Prefixes kept on the ranks' disks.", disk.entries)
    yield words.gauge("prefix_disk_bytes", "Bytes that they take on the fullest disk.", disk.bytes)
    yield words.counter(
        "prefix_disk_hits", "Prompt tokens that were read back from disk.", disk.hit_tokens
    )
    yield words.counter("prefix_disk_read_bytes", "Bytes that were read back.", disk.read_bytes)
    yield words.counter("prefix_disk_written_bytes", "Bytes written.", disk.written_bytes)
    yield words.counter(
        "prefix_disk_evicted_bytes", "Bytes deleted for want of room.", disk.evicted_bytes
    )
    yield words.counter(
        "prefix_disk_failures",
        "Prefixes that some rank could not write or read back; what that costs is time.",
        disk.failures,
    )


def _canary(words: Words, record: Recorder) -> Iterator[Metric]:
    last, usual = record.canary_seconds or (None, None)
    yield words.gauge(
        "canary_seconds",
        "The last canary: all ranks compute the same prompt, and compare (CANARY_INTERVAL).",
        last,
    )
    yield words.gauge("canary_usual_seconds", "The fastest canary before it.", usual)


def _link(words: Words, record: Recorder, link: LinkSpeed | None) -> Iterator[Metric]:
    """Inside a step collectives cannot be timed without stopping the pipeline; these can."""
    yield words.gauge(
        "link_latency_seconds",
        "Sum of one number over all ranks: median of 20, measured at the start and with each "
        "canary (CANARY_INTERVAL).",
        link and link.latency,
    )
    yield words.gauge(
        "link_bandwidth_bytes_per_second",
        "Size of a large message over the time of its sum over all ranks, measured as the latency.",
        link and link.bandwidth,
    )
    yield words.gauge(
        "step_collectives_seconds",
        "The sums over all ranks of a decode step of one row, played again with nothing between, "
        "measured as the latency: the link's part of decode_step_seconds. None in a pipeline.",
        link and link.step,
    )
    yield words.histogram(
        "meeting_seconds",
        "The idle ranks' meeting: one sum of a few numbers, the wait for the rank that woke last "
        "included.",
        record.meeting_seconds.snapshot(),
    )
    yield words.histogram(
        "message_collective_seconds",
        "The sum that brings rank 0's messages right after a meeting, when no rank is late: the "
        "link alone.",
        record.bundle_seconds.snapshot(),
    )
