"""How an answer that is passed on is framed for its client, and how a broken one ends. Rule: it never looks whole."""

from tierline.router.http.bodies import ChunkedBody, LengthBody, UntilCloseBody
from tierline.router.http.heads import ResponseHead

AnswerBody = LengthBody | ChunkedBody | UntilCloseBody


def framing(response: ResponseHead, body: AnswerBody | None, *, takes_chunks: bool) -> tuple[bytes, bool]:
    """Return the field that says where the body ends, and whether the client's connection can outlast it.

    Parameters
    ----------
    response, body
        The answer as it comes.
    takes_chunks
        Whether the client understands chunked bodies.
    """
    if response.is_chunked and takes_chunks:
        return b"transfer-encoding: chunked\r\n", True
    if response.length is not None:
        return b"content-length: %d\r\n" % response.length, True
    return b"", isinstance(body, LengthBody)  # else the end of the connection is the end of the body


def connection_field(*, keep_alive: bool, takes_chunks: bool) -> bytes:
    """Return what tells the client whether its connection lasts, where its version does not."""
    if not keep_alive:
        return b"connection: close\r\n"
    return b"" if takes_chunks else b"connection: keep-alive\r\n"


def ends_by_closing(body: AnswerBody | None) -> bool:
    """Whether an orderly end of the connection would look like the end of a whole body."""
    return isinstance(body, UntilCloseBody) or (isinstance(body, ChunkedBody) and body.keeps_payload)
