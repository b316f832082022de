"""What every script's exit code means. Bash writes the numbers: common.sh has the same list."""

DONE = 0
FAILED = 1  # a host or a check
USAGE = 2
MISSING = 3  # a tool or a file; of status.sh and logs.sh: a server
