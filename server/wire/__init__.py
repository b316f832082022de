"""How every rank hears the same: rank 0's decisions as messages, and the sums that carry them.

The only place that communicates. Main thread of every rank.
"""
