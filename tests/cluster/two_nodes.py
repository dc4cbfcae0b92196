"""A Ray cluster of two nodes on this machine, for as long as the standard input of this program stays open.

The nodes have loopback addresses of their own; 127.0.0.1 will not do, since Ray takes it for the address of the network.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# On a busy machine Python needs more than the usual minute to start in a worker. Ray's own settings are spelled like this.
os.environ["RAY_worker_register_timeout_seconds"] = "600"  # noqa: SIM112

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 200 << 20


def main() -> None:
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    head = {**node, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**node, node_ip_address="127.0.0.3")
        cluster.wait_for_nodes()
        print(f"address {cluster.address}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


main()
