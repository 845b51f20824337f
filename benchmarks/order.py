"""How random the order of clips is, and how many shards it fetches, by the size of its window.

    python benchmarks/order.py [--shards 1000 --clips 50 --windows 16,64,256,all --lanes 8 --batch 16 --nodes 1,8
                               --room 128]

One source of equal shards; nothing is read. A line of JSON for each window:

- ``same_shard``: share of pairs of clips in one batch that come from one shard.
- ``shards_per_batch``: different shards in a batch.
- ``soonest_again``: examples after which a clip came again at the soonest (the mean is a round).
- ``rounds_alike``: rank correlation of the clips' places in two rounds.
- ``fetches_N``: shards fetched in a round, over the data set's number, by all of N nodes, which share the room.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict

import numpy as np

from four_d.data.order import Mixture, Window

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=50, help="clips of a shard")
    parser.add_argument("--windows", default="16,64,256,all")
    parser.add_argument("--lanes", type=int, default=8, help="data.clips_multiple")
    parser.add_argument("--batch", type=int, default=16, help="clips of a batch")
    parser.add_argument("--nodes", default="1,8")
    parser.add_argument("--room", type=int, default=128, help="shards that the caches of all nodes hold together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.windows.split(","):
        window: Window = "all" if name == "all" else int(name)
        nodes = [int(count) for count in arguments.nodes.split(",")]
        print(json.dumps({"benchmark": "order", "window": window, **measure(arguments, window, nodes)}), flush=True)


def measure(arguments: argparse.Namespace, window: Window, nodes: list[int]) -> dict[str, float]:
    """Figures of a window over `ROUNDS` rounds."""
    total = arguments.shards * arguments.clips
    mixture = Mixture(
        [[arguments.clips] * arguments.shards], [1.0], arguments.seed, window=window, lanes=arguments.lanes
    )
    order = np.array([mixture.pick(number)[1] for number in range(ROUNDS * total)])
    batches = (order // arguments.clips)[: len(order) // arguments.batch * arguments.batch].reshape(-1, arguments.batch)
    same = (batches[:, :, None] == batches[:, None]).sum() - batches.size
    pairs = len(batches) * arguments.batch * (arguments.batch - 1)
    places = [np.argsort(order[turn * total : (turn + 1) * total]) for turn in range(ROUNDS)]
    gaps = places[1] + total - places[0]
    return {
        "same_shard": float(same / pairs),
        "shards_per_batch": float(np.mean([len(set(batch)) for batch in batches.tolist()])),
        "soonest_again": int(gaps.min()),
        "rounds_alike": float(np.corrcoef(places[0], places[1])[0, 1]),
        **{
            f"fetches_{count}": fetches(order // arguments.clips, count, arguments.lanes, arguments.room)
            for count in nodes
        },
    }


def fetches(shards: np.ndarray, nodes: int, lanes: int, room: int) -> float:
    """Mean number of times that a shard is fetched a round, each node keeping its share of ``room`` shards."""
    count = 0
    node_of = np.arange(len(shards)) % lanes * nodes // lanes
    for node in range(nodes):
        kept: OrderedDict[int, None] = OrderedDict()
        for shard in shards[node_of == node].tolist():
            count += shard not in kept
            kept[shard] = None
            kept.move_to_end(shard)
            if len(kept) > max(room // nodes, 1):
                kept.popitem(last=False)
    return count / ROUNDS / len(set(shards.tolist()))


if __name__ == "__main__":
    main()
