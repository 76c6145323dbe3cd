"""``status``: what is in the node, and what it has done."""

from typing import TYPE_CHECKING

from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.node.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def status(node: "NodeAdmin", output: "Output") -> None:
    """Print what the node holds and what it has done since it started.

    \b
    Examples:
      tierline node status
      tierline node status --url http://10.0.0.7:9200 --json
    """
    from tierline.cli.node.facts import status_facts

    if output.is_json:
        output.document(await node.stats_document())
    else:
        output.facts(status_facts(node.url, await node.stats()))
