"""The command `streamcache`, also where the packages of its extra are missing."""

import sys

from streamcache.extras import MissingExtra, require
from streamcache.interrupt import stop_at_once


def main() -> None:
    stop_at_once(True)
    try:
        require("cli", "the command line")
    except MissingExtra as error:
        print(f"streamcache: {error}", file=sys.stderr)
        sys.exit(2)
    from streamcache import cli

    cli.main()


if __name__ == "__main__":
    main()
