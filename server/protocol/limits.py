"""Facts that ranks and scripts share, and that no user sets. Imports nothing; Python 3.9.

Bash gets them with the settings (scripts/lib/settings/settings.py), under the same names.
"""

FILES_LEAST = 4096  # open files, hard limit: mlx-lm raises the soft one so far when it is imported
RAISE_FILES_DARWIN = "sudo launchctl limit maxfiles 65536 200000"
RAISE_FILES_LINUX = "echo '* hard nofile 65536' | sudo tee -a /etc/security/limits.conf"
LOCAL_HOST = "127.0.0.1"  # this machine in a hostfile, and no other name is, as for mlx.launch
# Never ask, and never wait for a host that is down or goes down meanwhile.
SSH_OPTIONS = (
    "-o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
)
MOST_RANKS = 8  # JACCL's mesh has no more, and no more ports are kept for the ranks of one machine
