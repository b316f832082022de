"""How the server is seen: status, counts, metrics and logs. All may write to it; it asks nobody."""
