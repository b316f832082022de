"""What a model wrote, read as tool calls: one reader for each format, none that guesses."""
