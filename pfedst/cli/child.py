"""`pfedst` as a comparison starts it: it ends when the process that started it does.

A comparison that is killed may not leave runs behind that write on while it is started again.
"""

from __future__ import annotations

import os
import sys
import threading

from pfedst.cli import main


def end_with_parent() -> None:
    """End this process when its standard input closes: the other end was the parent's, and runs survive any end."""

    def watch() -> None:
        while os.read(0, 1):  # of the file itself: a buffered reader would hold up the end of this process
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
