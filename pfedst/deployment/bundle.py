"""The app bundle that Flower carries to every hospital with a run.

No process of pfedst unpacks or imports it: hospitals answer with the package that they have installed. Each computes
the bundle itself, and refuses the messages of a run that brings another. A stock SuperNode does import it.
"""

from __future__ import annotations

import hashlib
from functools import cache

from flwr.cli.build import build_fab_from_files

FILES = {
    "pyproject.toml": """\
[project]
name = "pfedst-app"
version = "1.0.0"
description = "pfedst between hospitals: everything is in the installed package"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.42,<1.43"]

[tool.flwr.app]
publisher = "pfedst"
fab-format-version = 1
flwr-version-target = "1.42.0"

[tool.flwr.app.components]
serverapp = "pfedst_app.apps:server"
clientapp = "pfedst_app.apps:client"
""",
    "LICENSE": "Apache-2.0\n",
    "pfedst_app/__init__.py": "",
    "pfedst_app/apps.py": """\
from pfedst.cli import site_app

client = site_app.client  # Flower looks for an assignment
server = site_app.server
""",
}


@cache
def bundle() -> bytes:
    """Return the bundle of this version of pfedst; the same bytes on every machine. It is packed once a process."""
    content: bytes = build_fab_from_files({name: text.encode() for name, text in FILES.items()})[0]
    return content


@cache
def bundle_digest() -> str:
    """Return the SHA-256 of the bundle."""
    return hashlib.sha256(bundle()).hexdigest()
