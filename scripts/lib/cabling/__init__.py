"""Thunderbolt cabling, from what macOS prints to the matrix of a hostfile.

In the order of the data:

    survey      the program that asks one host, and the facts in its answer
    ports       parsers: the texts of macOS's tools to Ports
    network     the same for interfaces, services, bridges and neighbours
    cabling     Ports of all hosts to cables, and cables to the rows of an rdma matrix
    plan        mesh or ring, who is which rank, which cables are used
    ends        the two ends of each cable compared; pings: each hears the other
    addressing  the commands that give an end another address; bridge: that take it out of one
    advice      what is missing or doubtful, in words (advise_ends, finding: its parts)
    draw        the cabling as text and for Graphviz

Pure functions on texts and frozen dataclasses; the standard library alone. Nothing here asks a
host but make_hostfile and pings, so everything can be tried without a Mac. The formats are those
that Apple's TN3205, man pages and sources, MLX's source and users' reports show.
"""
