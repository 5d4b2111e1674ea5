"""A grid whose runs are done in this process: what a comparison asks for, without seconds of imports a run."""

from pfedst.cli import main
from pfedst.comparison import Grid


class InProcessGrid(Grid):
    """Notes the names of what it ran."""

    ran: list[str] = []  # noqa: RUF012

    def run(self, runs, what):
        failed = {}
        for run in runs:
            if self.is_finished(run):
                continue
            self.ran.append(run.name)
            if code := main(["fit", *run.arguments]):
                failed[run.name] = f"exit code {code}: said above"
        return failed
