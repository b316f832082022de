"""setup_cluster.sh: the other scripts, one after the other, each if it is needed and after a yes.

    main      the command line, and the walk: look, show, ask, run, look again
    steps     the table of steps: what each is for, its look and its commands
    looks     what each step finds: it holds, it is needed, it is not for here, it cannot go on
    site      hosts, hostfile, model and settings: what the steps are about
    state     what is remembered from one call to the next
    command   one command: shown as it could be pasted, and run
    own_python  a Python of the checkout's own, for hosts that have another one or none

Runs on rank 0 alone, with the standard library. Nothing on a host is changed but by a command that
was shown.
"""
