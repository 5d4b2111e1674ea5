"""Run an interface with the arguments of `fit`, `validate` or `test`, or only parse them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pfedst.cli.federated import ENVIRONMENT, PFedSTCLI
from pfedst.cli.parser import Parser
from pfedst.cli.quiet import quieten, show_messages
from pfedst.cli.source_configuration import configuration_of
from pfedst.cli.study import results_depend_on
from pfedst.configuration.renamed_options import present_arguments
from pfedst.configuration.shipped import with_files
from pfedst.configuration.yaml_text import check_configurations
from pfedst.errors import ConfigurationError
from pfedst.methods.registry import registered_methods
from pfedst.tracking import save_dir_may_be_left_out

Interface = TypeVar("Interface", bound=PFedSTCLI)


def run_command(arguments: Sequence[str], interface: type[PFedSTCLI] = PFedSTCLI) -> int:
    """Parse and run `fit`, `validate` or `test` with `interface`; return the exit code."""
    show_messages()
    run_interface(arguments, interface)
    return 0


def run_interface(arguments: Sequence[str], interface: Callable[[Sequence[str]], Interface]) -> Interface:
    """Parse and run `fit`, `validate` or `test`; return the interface with what it has done."""
    quieten()
    with of_the_source(with_files(present_arguments(arguments))) as arguments:
        check_configurations(arguments, ENVIRONMENT)
        save_dir_may_be_left_out()
        registered_methods()  # imports them, so that their class names can be used as short names
        Parser.reads(arguments)
        return interface(arguments)


@contextmanager
def of_the_source(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Return the arguments of `test RUN|MODEL` or `validate RUN|MODEL` with the configuration and the path of it."""
    command, *rest = arguments
    if command != "fit" and not rest:
        raise ConfigurationError(f"{command}: give the folder of a run: pfedst {command} runs/NAME")
    if command == "fit" or rest[0].startswith("-"):
        yield [*arguments]
        return
    with configuration_of(rest[0], f"pfedst {command}") as (place, configuration):
        yield [command, f"--config={configuration}", *rest[1:], f"--ckpt_path={place}"]


class _ParseCLI(PFedSTCLI):
    """A command line that is parsed and neither built nor run."""

    def instantiate_classes(self) -> None:
        """Build and run nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Build and run nothing."""

    def results_depend_on(self, arguments: Sequence[str]) -> str:
        """Return all that results depend on of the configuration of `fit` with these arguments."""
        config = self.parser.parse_args(["fit", *present_arguments(arguments)])
        return results_depend_on(self._parser("fit").dump(config["fit"], skip_unset=False), self.defaults())


def parse_only() -> Callable[[Sequence[str]], str]:
    """Return a function from arguments of `fit` to all that results depend on; faster than a new parser each."""
    quieten()
    method = next(iter(registered_methods()))  # any will do: the first parse is not used
    return _ParseCLI(["fit", f"--method={method}", "--data=SyntheticSites"]).results_depend_on
