"""What crosses sockets: structs, encodings and limits, without behaviour. Server, clients and tests use the same ones."""
