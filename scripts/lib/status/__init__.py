"""What status.sh shows: how the servers of this checkout, their ranks and their hosts are.

    facts    what one host told: records, processes, memory
    ask      what rank 0 and the log tell; the hosts and rank 0 are asked at the same time
    judge    what all of that means: states and problems, in words; pure
    show     the table for people

All of it runs where status.sh runs, on its main thread but for the asking, and changes nothing.
Standard library only.
"""
