"""HTTP/1.1 as bytes: heads, body framing, replies. No sockets; a message that can be read in two ways is refused."""
