"""What crosses sockets: structs, encodings and limits, without behaviour; server, clients and tests use the same."""
