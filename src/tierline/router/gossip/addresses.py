"""Where routers tell each other what they do."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address is in brackets.

    Raises
    ------
    ValueError
        Saying what is allowed.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port[:6]) <= 65535:
        raise ValueError("HOST:PORT, such as 10.0.0.7:8100 or [fd00::7]:8100")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError("HOST:PORT, such as 10.0.0.7:8100 or [fd00::7]:8100")
    return host.strip("[]"), int(port)
