"""Old names of modules: imports and configurations that use an old name load the module of today, with a warning.

The module of today is imported once and stands under both names, so that a class has one identity.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

RENAMED = {
    "pfedst.adapters.transport": "pfedst.adapters.optimal_transport",
    "pfedst.baselines": "pfedst_baselines",
    "pfedst.losses": "pfedst.methods.losses",
    "pfedst.merging": "pfedst.methods.merging",
    "pfedst.method": "pfedst.methods.interface",
    "pfedst.partition": "pfedst.methods.partition",
    "pfedst.payload": "pfedst.messages.payload",
    "pfedst.registry": "pfedst.methods.registry",
    "pfedst.side_tuning": "pfedst.methods.pfedst",
}
"""Old name of a module -> its name today. The submodules of a package follow it."""


def name_today(path: str) -> str:
    """The import path today of a module, or of something in it.

    Args:
        path: dotted, such as `pfedst.side_tuning.PFedST`.

    Returns:
        The path with the old module name replaced; a path without an old name as it is.
    """
    for old, new in RENAMED.items():
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return path


class RenamedModules(MetaPathFinder, Loader):
    """The import hook that answers for the old names.

    The hook must be the first in `sys.meta_path`: the file finder would find `ditto.py` for `pfedst.baselines.ditto`
    in the folder of `pfedst_baselines`, and make a second module with second classes.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification that this object loads, for an old name; None for any other."""
        return None if name_today(fullname) == fullname else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the empty one that stands under the old name.

        The import system returns what `sys.modules` holds after this call.

        Raises:
            ModuleNotFoundError: the module of today is not installed.
        """
        old = module.__name__
        new = name_today(old)
        if old in RENAMED:  # the warning for a package covers its submodules
            logging.getLogger("pfedst").warning(
                "%s is now %s: write the new name in configurations and imports", old, new
            )
        sys.modules[old] = import_module(new)


def install() -> None:
    """Make the old names importable in this process."""
    if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, RenamedModules())
