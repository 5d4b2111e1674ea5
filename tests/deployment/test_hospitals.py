"""Three hospitals on loopback over Flower's own SuperLink and SuperNodes: `make check-hospitals` runs this file alone.

It tests deployment/runtime.py, which uses parts of flwr that are not public, and takes two to three minutes.
"""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from pfedst.cli import main
from pfedst.testing.hospitals import PFEDST, SITES, STUDY, Loopback, free_port, write_images

pytestmark = pytest.mark.hospitals
ROUNDS = 2


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")
    with Loopback(tmp_path_factory.mktemp("hospitals")) as made:
        write_images(made.folder / "images", (36, 30, 24), 9, 32)
        (made.folder / "study.yaml").write_text(STUDY.format(model="vit-nano", rounds=ROUNDS))
        for site in SITES:
            shutil.copytree(made.folder / "images" / site / site, made.folder / "all" / site)
        made.make_certificates([*SITES, "stranger"])
        made.start_superlink()
        for site in SITES:
            made.register(site)
        for site in SITES:
            made.start(site, made.site_command(site))
        for site in SITES:
            made.wait_for(site, "answers 127.0.0.1")
        yield made


def wait_until(happens, seconds=100.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def messages(machines, site):
    file = machines.folder / "hospitals" / site / "messages.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def records(run):
    times = ("fit_seconds", "peak_memory_bytes")
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_a_run_in_which_a_site_is_killed_has_the_bits_of_a_run_in_one_process(machines) -> None:
    machines.start("fit", machines.fit_command("first"))
    wait_until(lambda: any(line["kind"] == "fit" and line["round"] == 2 for line in messages(machines, "site_b")))
    machines.kill("site_b")
    machines.start("site_b", machines.site_command("site_b"))
    machines.do(f"{PFEDST} fit --config study.yaml --data FolderSites --data.root all --name reference")
    assert machines.ended("fit", 150) == 0, machines.log("fit")
    runs = machines.folder / "runs"
    for file in sorted((runs / "reference" / "state").rglob("*.safetensors")):
        one, other = load_file(file), load_file(runs / "first" / file.relative_to(runs / "reference"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    assert records(runs / "first") == records(runs / "reference")
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("first", "reference")]
    for key in ("personal", "generic", "at_priors", "class_metrics", "calibration", "best_on_validation"):
        assert summaries[0].get(key) == summaries[1].get(key), key
    # nothing of a hospital but its own folder holds personal state, and the folder is for this user alone
    assert not (runs / "first" / "sites").exists()
    state = machines.folder / "hospitals" / "site_b"
    assert state.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (state / "first" / "sites" / "site_b").glob("after-*")) == [
        "after-000001",
        "after-000002",
    ]
    sent = [line for line in messages(machines, "site_a") if line["direction"] == "sent"]
    assert {line["kind"] for line in sent} >= {"hello", "prototypes", "fit", "evaluate"}
    assert all(len(line["sha256"]) == 64 and line["bytes"] > 0 for line in sent)


def test_a_hospital_predicts_with_its_own_state_and_the_files_of_the_centre(machines) -> None:
    runs, site = machines.folder / "runs", machines.folder / "hospitals" / "site_a" / "first"
    shutil.copytree(runs / "first", site, dirs_exist_ok=True)
    images, found = str(machines.folder / "images" / "site_a"), []
    for name, run in (("there", site), ("here", runs / "reference")):
        file = machines.folder / f"{name}.csv"
        assert main(["predict", str(run), images, "--site", "site_a", "--out", str(file)]) == 0
        found.append(file.read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\n") > 9


def test_strangers_are_refused(machines) -> None:
    """A key that is not registered, and a centre whose authority is another."""
    machines.do('openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=other" -keyout o.key -out other.crt')
    options = {"stranger": {"key": "stranger"}, "misled": {"authority": "other.crt"}}
    for name, given in options.items():
        line = machines.site_command("site_a", **given).replace("hospitals/site_a", f"hospitals/{name}")
        machines.start(name, line)
    for name, words in (("stranger", "KEY.pub"), ("misled", "--root-certificates")):
        assert machines.ended(name, 200) == 2, machines.log(name)
        assert words in machines.log(name).splitlines()[-1], machines.log(name)


def test_a_centre_needs_the_secret_and_the_superlink(machines) -> None:
    from pfedst.deployment import runtime
    from pfedst.errors import ConfigurationError, NoAnswerError

    (machines.folder / "guess").write_bytes(b"x" * 32)
    files = machines.folder / "guess", machines.folder / "ca.crt"
    link = runtime.Address(f"127.0.0.1:{machines.port}", *files)
    with pytest.raises(ConfigurationError, match="--flower.secret"), runtime.submitted_run(link):
        pass
    nobody = runtime.Address(f"127.0.0.1:{free_port()}", *files, retry_seconds=0.1)
    with pytest.raises(NoAnswerError, match="cannot be reached"), runtime.submitted_run(nobody):
        pass


def test_a_run_with_another_bundle_is_refused(machines, monkeypatch) -> None:
    from pfedst.deployment import bundle, runtime
    from pfedst.errors import ConfigurationError
    from pfedst.transport.flower import Flower

    theirs = {**bundle.FILES, "pfedst_app/apps.py": bundle.FILES["pfedst_app/apps.py"] + "print('a stranger')\n"}
    monkeypatch.setattr(bundle, "FILES", theirs)
    folder = machines.folder
    link = runtime.Address(f"127.0.0.1:{machines.port}", folder / "secret", folder / "ca.crt")
    before = len(messages(machines, "site_a"))
    with runtime.submitted_run(link) as grid, pytest.raises(ConfigurationError, match="site_a: Flower reports error 7"):
        Flower(grid, ["site_a"], {}, wait_seconds=60, timeout_seconds=60).hello("run")
    assert len(messages(machines, "site_a")) == before


def test_a_hospital_with_another_study_refuses_with_the_differences(machines) -> None:
    line = machines.fit_command("other", "--method.rank 4", "--coordinator.rounds 1", "--coordinator.evaluate_every 1")
    said = machines.do(line, may_fail=True)
    assert "--method.init_args.rank is not set at this hospital, 4 at the centre" in said, said
    assert not (machines.folder / "runs" / "other").exists()
