"""Unknown and abbreviated options of the commands that are no runs."""

import pytest

from pfedst.cli import main


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["predict", "run", "a.png", "--out=a.csv", "--encoder-weights=x"], 'Did you mean "--encoder_weights"?'),
        (["report", "run", "--metrc", "accuracy"], 'Did you mean "--metric"?'),
        (
            ["cache", "clear", "--al"],
            'cache clear: unrecognized arguments: --al. Did you mean "--all"? See pfedst cache',
        ),
        (["data", "init", "folder", "--sede=3"], 'Did you mean "--seed"?'),
        (["configs", "copy"], "pfedst configs copy: the following arguments are required: name. See"),
        (["env", "now"], "pfedst env: unrecognized arguments: now. See pfedst env --help"),
    ],
)
def test_an_option_that_is_not_known_names_the_nearest(capsys, command, told) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("pfedst: error: pfedst")
    assert len(error.splitlines()) == 1
    assert told in error
