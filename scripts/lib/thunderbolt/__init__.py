"""Thunderbolt cabling, from what macOS prints to the matrix of a hostfile.

    ports     parsers: the texts of macOS's tools to Ports
    cabling   Ports of all hosts to cables, and cables to the rows of an rdma matrix

Pure functions on texts and frozen dataclasses; the standard library alone. Nothing here asks a
host, so everything can be tried without a Mac. The formats are those that Apple's TN3205, MLX's
source and users' reports show.
"""
