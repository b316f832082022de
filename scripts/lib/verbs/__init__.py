"""What the command lines of all verbs share, so that an option means the same everywhere.

    parser          argparse with our words, the same for the same mistake
    shared          the options that several verbs have, and what their values may be
    header          a script's header: its help, and the options that its usage names
    options         the command line of a verb that is bash, read for it
    exit_codes      what every script's exit code means
    verb_settings   the settings of a verb that is Python, and which server it means
    file_kind       what is at a path where a file is wanted; a file that is written whole
    running_server  which server a client of ours talks to

Standard library only; all but verb_settings and running_server run under Python 3.9.
"""
