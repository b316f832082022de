"""GET /openapi.json: the routes, their requests and answers, as JSON schemas."""
