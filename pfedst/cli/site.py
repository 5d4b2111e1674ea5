"""`pfedst site`: a hospital in runs between hospitals."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.deployment.requirement import check_flower

USAGE = """\
usage: pfedst site --config study.yaml --data DATA --data.OPTION ... --site NAME --superlink HOST:PORT
                   --root-certificates ca.crt --key KEY --state FOLDER [OPTIONS OF FIT]

  --config             the file of the study, the same as at the centre
  --data ...           where the images of this hospital are, such as --data FolderSites --data.root /images
  --site               this hospital, as the data name it and as its key is registered at the centre
  --superlink          address of the centre
  --root-certificates  certificate of the authority that signed the certificate of the centre
  --key                private key of this hospital, made by ssh-keygen -t ecdsa -b 384 -N "" -f KEY; the centre
                       registers KEY.pub
  --state              folder for personal state, predictions and the log of all messages; for this user alone

It prints what leaves the hospital, then answers the centre until it is stopped (Ctrl-C). See the page Between hospitals
of the documentation.
"""


def run_site(arguments: Sequence[str]) -> int:
    """Answer a centre until the process is stopped. Return the exit code."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE, end="")
        return 0
    check_flower()
    from pfedst.cli.site_run import SiteCLI
    from pfedst.cli.start import run_command

    return run_command(["fit", *arguments], SiteCLI)
