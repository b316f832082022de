"""How a rank ends, and how it notices that it should: signals, watchdog, lease, pid file."""
