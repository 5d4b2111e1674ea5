"""A command line whose options come before their class."""

import pytest

from pfedst.cli import main
from pfedst.configuration.command_line import classes_first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fit --m.rank=2 --m=FedAvg", "fit --m=FedAvg --m.rank=2"),
        ("--m.init_args.rank 2 --x -3 --m.class_path=B", "--m.class_path=B --m.init_args.rank 2 --x -3"),
        ("--m.o.lr 1 --m.o A --m M", "--m M --m.o A --m.o.lr 1"),
        ("--m A --m.a 1 --m B --m.b 2", "--m A --m.a 1 --m B --m.b 2"),  # B replaces A and its options
        ("--m.a 1 --config f --m B", "--m.a 1 --config f --m B"),  # the file may name another class, with this option
        ("--config f --m.a 1 --m B", "--config f --m B --m.a 1"),
        ("fit --m.a 1 -c f --m B", "fit --m.a 1 -c f --m B"),  # its short name
        ("-c=f --m.a 1 --m B", "-c=f --m B --m.a 1"),
        ("--c+=A --c.x 1 --c+=B --c.x 2", "--c+=A --c.x 1 --c+=B --c.x 2"),
        ("--method 1 --meth 2", "--method 1 --meth 2"),
        ("", ""),
    ],
)
def test_classes_come_before_their_options(given, expected) -> None:
    assert classes_first(given.split()) == expected.split()


def test_an_option_before_a_class_that_does_not_take_it_is_an_error(capsys) -> None:
    assert main(["fit", "--config=demo", "--method.rank=3", "--method=FedAvg"]) == 2
    assert 'unknown option "--method.rank" of FedAvg' in capsys.readouterr().err


def test_an_option_before_its_class_is_taken(capsys) -> None:
    given = ["--data.root=here", "--data=FolderSites", "--print_config"]
    assert main(["fit", "--config=demo", *given]) == 0
    assert "root: here" in capsys.readouterr().out
