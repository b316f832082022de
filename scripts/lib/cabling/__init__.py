"""Thunderbolt cabling, from what macOS prints to the matrix of a hostfile.

In the order of the data:

    survey      the program that asks one host, and the facts in its answer
    ports       parsers: the texts of macOS's tools to Ports
    cabling     Ports of all hosts to cables, and cables to the rows of an rdma matrix
    plan        mesh or ring, who is which rank, which cables are used
    advice      what is missing or doubtful, in words (addressing, finding: its parts)
    draw        the cabling as text and for Graphviz

Pure functions on texts and frozen dataclasses; the standard library alone. Nothing here asks a
host, so everything can be tried without a Mac. The formats are those that Apple's TN3205, MLX's
source and users' reports show.
"""
