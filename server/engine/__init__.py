"""What every rank computes: batches of rows, steps and caches, and its shard of kept prefixes.

Main thread of every rank, the same calls in the same order everywhere.
"""
