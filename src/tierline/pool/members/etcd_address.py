"""Where etcd is, as a setting says it; without what is needed to ask it."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

PREFIX = "tierline/members"
_ALLOWED = (
    "http://HOST:PORT[,HOST:PORT...][/PREFIX] or https://..., with USER@ before the first host where etcd asks for one"
)


@dataclass(frozen=True)
class EtcdAddress:
    """Where etcd is.

    Parameters
    ----------
    urls
        Of its servers; any of them will do.
    prefix
        Of the members' keys, without a slash at its end.
    user
        Who we are there; empty where nobody is asked.
    """

    urls: tuple[str, ...]
    prefix: str
    user: str = ""

    def __str__(self) -> str:
        return f"{','.join(self.urls)}/{self.prefix}"


def parse_etcd(text: str) -> EtcdAddress:
    """Return the address of a setting; raises ``ValueError`` saying what is allowed.

    >>> parse_etcd("https://pool@a:2379,b:2379/team").urls
    ('https://a:2379', 'https://b:2379')
    """
    scheme, _, rest = text.partition("://")
    hosts, _, prefix = rest.partition("/")
    user, at, hosts = hosts.rpartition("@")
    if scheme not in ("http", "https") or ":" in user or (at and not user):
        raise ValueError(_ALLOWED)
    urls = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"{scheme}://{host}")
            is_address = bool(parts.hostname) and parts.port is not None and parts.netloc == host
        except ValueError:
            is_address = False
        if not is_address or "?" in text or "#" in text:
            raise ValueError(_ALLOWED)
        urls.append(f"{scheme}://{host}")
    return EtcdAddress(tuple(urls), prefix.strip("/") or PREFIX, unquote(user))
