"""Kept prefixes on this rank's own disk: files, the folder, and the threads that read and write.

On every rank, by the main thread's order; imports no mlx and decides nothing.
"""
