"""The proxy path: a client's connection, a request-response cycle, an endpoint's connection, one class each."""
