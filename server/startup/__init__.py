"""From joined ranks to ranks that can serve: compared, loaded, links proven, their tokens equal."""
