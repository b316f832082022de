"""Facts that ranks and scripts share, and that no user sets. Imports nothing; Python 3.9.

Bash gets them with the settings (scripts/lib/settings/settings.py), by the same names.
"""

FILES_LEAST = 4096  # open files, hard limit: mlx-lm raises the soft one so far when it is imported
RAISE_FILES_DARWIN = "sudo launchctl limit maxfiles 65536 200000"
RAISE_FILES_LINUX = "echo '* hard nofile 65536' | sudo tee -a /etc/security/limits.conf"
