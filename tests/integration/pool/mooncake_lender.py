"""Lends memory to a Mooncake Store until it is stopped: ``mooncake_lender.py PORT BYTES``."""

import sys
import time

from mooncake.store import MooncakeDistributedStore

if __name__ == "__main__":
    store = MooncakeDistributedStore()
    status = store.setup(
        "127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 16 * 1024 * 1024, "tcp", "", f"127.0.0.1:{sys.argv[1]}"
    )
    assert status == 0
    sys.stdout.write("lent\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)
