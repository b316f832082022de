"""From lone ranks to ranks that can serve: joined, links proven, compared, loaded, tokens equal."""
