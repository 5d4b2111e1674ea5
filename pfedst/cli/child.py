"""`pfedst` as a child process of a comparison. It ends when its parent ends.

If a comparison is killed, its runs must not continue to write while the comparison is started again.
"""

from __future__ import annotations

import os
import sys
import threading

from pfedst.cli import main


def end_with_parent() -> None:
    """End this process when its standard input closes, which means that the parent has ended. Runs survive any end."""

    def watch() -> None:
        while os.read(0, 1):  # unbuffered: a buffered reader would delay the end of this process
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
