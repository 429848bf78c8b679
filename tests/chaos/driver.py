"""A driver in a process of its own: `python -m tests.chaos.driver SWEEP ADDRESS`."""

import sys
from pathlib import Path

from raypeft import api
from raypeft.core.spec import parse_sweep
from raypeft.errors import Interrupted, SetupError

EXIT_REFUSED = 1
EXIT_FAILED_CELLS = 3
EXIT_INTERRUPTED = 130


def main(sweep_file: Path, address: str) -> int:
    sweep = parse_sweep(sweep_file.read_text(encoding="utf-8"), source=str(sweep_file))
    try:
        report = api.run(sweep, address=address)
    except Interrupted as error:
        print(f"interrupted {error.signal_name}", flush=True)
        return EXIT_INTERRUPTED
    except SetupError as error:
        print(f"refused {error}", flush=True)
        return EXIT_REFUSED
    print(f"done {report.num_done}, failed {dict(report.failed)}", flush=True)
    return EXIT_FAILED_CELLS if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
