"""Where the configuration says that a pool's members come from; a client of what is not asked is not loaded."""

from tierline.kube.selections import parse_service
from tierline.node.config import NodeConfig, split_address
from tierline.pool.members import Member, MemberSource, StaticMembers, parse_member
from tierline.pool.members.etcd_address import parse_etcd


def member_source(config: NodeConfig) -> MemberSource | None:
    """Return the source that the configuration names; ``None``: the node is in no pool.

    Raises
    ------
    UsageError
        A package is missing.
    """
    if config.peers_kubernetes is not None:
        from tierline.pool.members.kubernetes import KubernetesMembers

        return KubernetesMembers(parse_service(config.peers_kubernetes))
    if config.peers_etcd is not None:
        from tierline.pool.members.etcd import EtcdCredentials, EtcdMembers

        assert config.transfer_address is not None  # the configuration asks for both
        own = Member(config.node_name, *split_address(config.transfer_address))
        shown = EtcdCredentials(config.peers_etcd_password_file, config.peers_etcd_ca, config.peers_etcd_certificate)
        return EtcdMembers(parse_etcd(config.peers_etcd), own, shown)
    return StaticMembers([parse_member(peer) for peer in config.peers]) if config.peers else None
