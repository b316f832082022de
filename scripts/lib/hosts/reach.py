"""How scripts reach hosts, and how many: for Python and, with the settings, for bash."""

LOCAL_HOST = "127.0.0.1"  # this machine in a hostfile, and no other name is, as for mlx.launch
# Never ask, and never wait for a host that is down or goes down meanwhile.
SSH_OPTIONS = (
    "-o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
)
MOST_RANKS = 8  # JACCL's mesh has no more, and no more ports are kept for the ranks of one machine
