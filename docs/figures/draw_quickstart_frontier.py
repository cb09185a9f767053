"""Draw accuracy against diversity for every objective of a quickstart run.

    python docs/figures/draw_quickstart_frontier.py RESULT.json

writes ``quickstart-frontier.svg`` beside this file: the first chart of the run's report as a file of its own.
"""

import argparse
import json
from pathlib import Path

from bridgegarden.quickstart.report import frontier_chart
from bridgegarden.quickstart.result import QuickstartResult
from bridgegarden.report.charts import standalone


def draw(result: QuickstartResult) -> str:
    """The text of the SVG file."""
    title = "Right answers when sampling against the variety kept, for every objective"
    return standalone(frontier_chart(result), title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="result.json of a quickstart run")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("quickstart-frontier.svg"))
    arguments = parser.parse_args()
    tree = json.loads(arguments.result.read_text(encoding="utf-8"))
    arguments.output.write_text(draw(QuickstartResult.from_dict(tree)), encoding="utf-8")
    print(arguments.output)


if __name__ == "__main__":
    main()
