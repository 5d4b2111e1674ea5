"""Options of the centre for runs over Flower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, listed
from pfedst.names import plain_names

NEED_IMAGES = {
    "dry_run": "the images are at the hospitals",
    "init": "hospitals would not get the frozen tensors of that run",
}
"""Options that a run over Flower does not have, and why."""


class FlowerOptions:
    """The SuperLink and the hospitals of a run with `--coordinator.transport flower`.

    Args:
        superlink: HOST:PORT of the SuperLink, as seen from the centre; it should be on this machine.
        root_certificates: file with the certificate of the authority that signed the SuperLink's certificate.
        secret: the file that `flower-superlink --superexec-auth-secret-file` was given.
        sites: the names of all hospitals of the run; each is the name under which a key is registered.
        wait_seconds: how long to wait for a hospital that is not connected, at the start and whenever it goes away,
            before it is left out, >= 0.

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(
        self,
        superlink: str = "127.0.0.1:8000",
        root_certificates: Path | None = None,
        secret: Path | None = None,
        sites: Sequence[str] = (),
        wait_seconds: float = 600.0,
    ) -> None:
        if not wait_seconds >= 0:
            raise ConfigurationError(f"--flower.wait_seconds {wait_seconds}: must be 0 or more")
        self.superlink = superlink
        self.root_certificates = root_certificates
        self.secret = secret
        self.sites = plain_names(sites)
        self.wait_seconds = wait_seconds
        if len(set(self.sites)) != len(self.sites):
            raise ConfigurationError(f"--flower.sites {list(sites)}: each hospital once")

    def check_unused(self) -> None:
        """Check that no option is set, for a run by another transport.

        Raises:
            ConfigurationError: naming the options, which would have no effect.
        """
        defaults = vars(FlowerOptions())
        if changed := [f"--flower.{name}" for name, value in vars(self).items() if value != defaults[name]]:
            raise ConfigurationError(f"{listed(changed)}: add --coordinator.transport flower, or leave it out")

    def check(self) -> None:
        """Check that everything is given that a run needs.

        Raises:
            ConfigurationError: naming the option.
        """
        if not self.sites:
            raise ConfigurationError(
                "--coordinator.transport flower: name the hospitals with --flower.sites [NAME, NAME], as their keys "
                "are registered"
            )
        for name, file, remedy in (
            ("root_certificates", self.root_certificates, "the certificate of your authority, such as ca.crt"),
            ("secret", self.secret, "the file that flower-superlink was given as --superexec-auth-secret-file"),
        ):
            if file is None or not file.is_file():
                raise ConfigurationError(f"--flower.{name} {file}: give {remedy}")


def check_centre(options: Mapping[str, Any]) -> None:
    """Check that no option is set that a run over Flower does not have.

    Args:
        options: of the command line, by name.

    Raises:
        ConfigurationError: naming the option.
    """
    for name, reason in NEED_IMAGES.items():
        if options[name]:
            raise ConfigurationError(f"--{name}: not with --coordinator.transport flower, as {reason}")
