"""The words that all share: errors, requests, events, pieces, settings. Imports nothing of ours."""
