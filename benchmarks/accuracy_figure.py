"""Draw accuracy over the number of shards from the committed result: ``python -m benchmarks.accuracy_figure``.

Needs the extra [eval], for matplotlib; so it is apart from ``benchmarks.tables``, which needs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.accuracy_by_shards import RESULT
from benchmarks.accuracy_tables import by_shards
from sisa.figures import quality_by_shards

FIGURE = Path(__file__).parents[1] / "docs" / "accuracy_by_shards.png"


def main() -> None:
    """Write the figure that ``docs/benchmarks.md`` shows."""
    lines = by_shards(json.loads(RESULT.read_text())["banking77"])
    FIGURE.write_bytes(quality_by_shards(lines, title="Banking77: unsharded at its best, shards at their most epochs"))
    print(f"{FIGURE.name} written")


if __name__ == "__main__":
    main()
