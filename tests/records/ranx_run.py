"""Metrics of random rankings by ranx, an independent implementation: tests/records/ranx.json.

Not a test: it made the record that test_metrics.py compares with, in an environment of its own.

    python ranx_run.py > ranx.json
"""

import json
from importlib.metadata import version

import numpy as np
from ranx import Qrels, Run, evaluate

ROWS, ITEMS, LENGTH = 200, 30, 25

rng = np.random.default_rng(0)
ranked = [rng.permutation(ITEMS)[:LENGTH].tolist() for _ in range(ROWS)]
targets = rng.integers(0, ITEMS, ROWS).tolist()
# ranx returns values in the order of the names as text.
qrels = Qrels({f"{row:03}": {str(target): 1} for row, target in enumerate(targets)})
run = Run(
    {
        f"{row:03}": {str(item): float(LENGTH - place) for place, item in enumerate(items)}
        for row, items in enumerate(ranked)
    }
)
names = {f"HR@{k}": f"hit_rate@{k}" for k in (1, 3, 5, 10, 20)}
names |= {f"NDCG@{k}": f"ndcg@{k}" for k in (1, 3, 5, 10, 20)}
each = evaluate(qrels, run, list(names.values()), return_mean=False)
print(
    json.dumps(
        {
            "versions": {name: version(name) for name in ("ranx", "numba", "numpy")},
            "ranked": ranked,
            "targets": targets,
            "values": {ours: each[theirs].tolist() for ours, theirs in names.items()},
        }
    )
)
