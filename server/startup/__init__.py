"""From ranks alone to ranks that can serve: joined, links proven, compared, loaded, proven."""
