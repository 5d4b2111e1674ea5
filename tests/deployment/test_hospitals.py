"""Three hospitals on loopback over Flower's own SuperLink and SuperNodes: `make check-hospitals` runs this file alone.

It tests deployment/runtime.py and grid.py, which use parts of flwr that are not public, and every kind of fault that only
whole processes have. It takes about five minutes: for a minute Flower does not notice that a SuperNode is gone, so the
faults that need this minute share it.
"""

import json
import os
import re
import shutil
import signal
import ssl
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pfedst.cli import main
from pfedst.testing.hospitals import PFEDST, SITES, STUDY, Loopback, free_port, write_images

pytestmark = pytest.mark.hospitals
ROUNDS = 2
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
SERVER = """\
{user}daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log access.log;
    client_body_temp_path tmp_body;
    proxy_temp_path tmp_proxy;
    fastcgi_temp_path tmp_fastcgi;
    uwsgi_temp_path tmp_uwsgi;
    scgi_temp_path tmp_scgi;
{shipped}
}}
"""
"""A whole configuration around the part that the page ships, with all files in one folder."""
FAULTY = """\
import time

from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from pfedst.deployment import runtime

store, push, lost = InMemoryNodeState.store_message, runtime.push_message, []


def store_late(state, message):
    if not message.metadata.reply_to_message_id:
        time.sleep(0.6)
    return store(state, message)


def lose_first_fit(client, message, context):
    if message.metadata.message_type == "train" and not lost:
        lost.append(message)
        raise TimeoutError("a request of this machine")
    push(client, message, context)


InMemoryNodeState.store_message, runtime.push_message = store_late, lose_first_fit
"""
"""What a slow machine does to a site: a task is offered before its message is stored; a reply does not get through."""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A centre, and sites a and b, which answer; two strangers that will be refused in a minute."""
    pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")
    with Loopback(tmp_path_factory.mktemp("hospitals")) as made:
        write_images(made.folder / "images", (36, 30, 24), 9, 32)
        (made.folder / "study.yaml").write_text(STUDY.format(model="vit-nano", rounds=ROUNDS))
        for site in SITES:
            shutil.copytree(made.folder / "images" / site / site, made.folder / "all" / site)
        made.make_certificates([*SITES, "stranger"])
        made.do('openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=other" -keyout o.key -out other.crt')
        made.start_superlink()
        for site in SITES:
            made.register(site)
        for site in SITES[:2]:
            made.start(site, made.site_command(site))
        for site in SITES[:2]:
            made.wait_for(site, "answers 127.0.0.1")
        for name, given in STRANGERS.items():
            line = made.site_command("site_a", **given).replace("hospitals/site_a", f"hospitals/{name}")
            made.start(name, line)
        yield made


STRANGERS = {"stranger": {"key": "stranger"}, "misled": {"authority": "other.crt"}}
"""A key that is not registered, and a centre whose authority is another."""


@pytest.fixture(scope="module")
def proxy(machines):
    """The port of nginx with the configuration of the page; None without nginx."""
    if NGINX is None:
        yield None
        return
    port, folder = free_port(), machines.folder
    (shipped,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for there, here in (("443", f"127.0.0.1:{port}"), ("/srv/pfedst", str(folder)), (":8000", f":{machines.port}")):
        assert there in shipped
        shipped = shipped.replace(there, here)
    (folder / "nginx").mkdir()
    user = "user root;\n" if os.geteuid() == 0 else ""  # else the workers of root may not write into this folder
    (folder / "nginx" / "nginx.conf").write_text(SERVER.format(user=user, shipped=shipped))
    machines.start("nginx", f"{NGINX} -p {folder}/nginx -c nginx.conf")
    yield port


def wait_until(happens, seconds=300.0) -> None:
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


def has_asked(machines, site, run, round_number):
    """Whether a site has received the request for its fit."""
    return any(
        (line["kind"], line["run"], line["round"], line["direction"]) == ("fit", run, round_number, "received")
        for line in messages(machines, site)
    )


def supernode_of(machines, site):
    """The process of Flower that a site has started."""
    process = machines.processes[site].pid
    (child,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(child)


def test_a_run_with_every_fault_has_the_bits_of_a_run_in_one_process(machines, proxy) -> None:
    """A site comes late, by the proxy, and loses a message; the SuperLink is killed and started again; then a site,
    and the SuperNode alone of another."""
    machines.start("fit", machines.fit_command("first"))
    (machines.folder / "faulty").mkdir()
    (machines.folder / "faulty" / "sitecustomize.py").write_text(FAULTY)
    machines.start("site_c", f"env PYTHONPATH=faulty {machines.site_command('site_c', port=proxy)}")
    wait_until(lambda: has_asked(machines, "site_a", "first", 1))
    machines.kill("superlink")
    machines.start_superlink()
    wait_until(lambda: has_asked(machines, "site_b", "first", 2))
    machines.kill("site_b")
    os.kill(supernode_of(machines, "site_a"), signal.SIGKILL)
    machines.start("site_b", machines.site_command("site_b"))
    machines.do(f"{PFEDST} fit --config study.yaml --data FolderSites --data.root all --name reference")
    assert machines.ended("fit", 300) == 0, machines.log("fit")
    assert "Flower's SuperNode has ended; it is started again" in machines.log("site_a")
    assert machines.log("site_c").count("a message was lost: TimeoutError") == 1
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


def test_a_late_site_is_left_out_of_its_round_and_a_killed_centre_goes_on(machines) -> None:
    """Site b stands still for longer than the time of a request. When it goes on, its reply is too late."""
    machines.start("fit", machines.fit_command("late", "--coordinator.timeout_seconds 30"))
    wait_until(lambda: has_asked(machines, "site_b", "late", 1))
    site_b = machines.processes["site_b"].pid
    os.kill(site_b, signal.SIGSTOP)
    try:
        run = machines.folder / "runs" / "late"
        wait_until((run / "state" / "round-000001").exists)
    finally:
        os.kill(site_b, signal.SIGCONT)
    machines.kill("fit")
    # on a busy machine 30 s are short for the sites to start
    machines.start("fit", machines.fit_command("late", "--coordinator.timeout_seconds 120", "--resume"))
    assert machines.ended("fit", 300) == 0, machines.log("fit")
    fits = {(row["round"], row["client"]): row.get("left_out", row["participated"]) for row in records(run)}
    assert {at: what for at, what in fits.items() if at[0]} == {
        (1, "site_a"): True,
        (1, "site_b"): "NoAnswerError",
        (1, "site_c"): True,
        **{(2, site): True for site in SITES},
    }
    assert json.loads((run / "summary.json").read_text())["left_out"] == {"site_b": {"NoAnswerError": 1}}


def test_the_proxy_gives_hospitals_their_path_alone(machines, proxy) -> None:
    """Site c has trained through it; whoever submits a run or takes its server's place is refused."""
    if proxy is None:
        pytest.skip("nginx is not installed: apt-get install nginx")
    import httpx

    from pfedst.deployment import runtime
    from pfedst.errors import ConfigurationError

    asked = re.findall(r'"POST (\S+) HTTP[^"]*" (\d+)', (machines.folder / "nginx" / "access.log").read_text())
    assert {path for path, status in asked if status == "200"} >= {"/v1/fleet/pull-messages", "/v1/fleet/push-messages"}
    link = runtime.Address(f"127.0.0.1:{proxy}", machines.folder / "secret", machines.folder / "ca.crt")
    with pytest.raises(ConfigurationError, match=r"refuses a request \(404\)"), runtime.submitted_run(link):
        pass
    trusted = ssl.create_default_context(cafile=machines.folder / "ca.crt")
    for path in ("/", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run"):
        assert httpx.post(f"https://127.0.0.1:{proxy}{path}", verify=trusted).status_code == 404, path
    piece = httpx.post(f"https://127.0.0.1:{proxy}/v1/fleet/push-object", content=b"x" * 9 * 2**20, verify=trusted)
    assert piece.status_code == 413


def test_strangers_are_refused(machines) -> None:
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
    for name in ("bundle", "bundle_digest"):  # packed anew, without what this process remembers
        monkeypatch.setattr(bundle, name, getattr(bundle, name).__wrapped__)
        monkeypatch.setattr(runtime, name, getattr(bundle, name))
    folder = machines.folder
    link = runtime.Address(f"127.0.0.1:{machines.port}", folder / "secret", folder / "ca.crt")
    before = len(messages(machines, "site_a"))
    with runtime.submitted_run(link) as grid, pytest.raises(ConfigurationError, match="site_a: Flower reports error 7"):
        Flower(grid, ["site_a"], {}, wait_seconds=60, timeout_seconds=60).hello("run")
    assert len(messages(machines, "site_a")) == before


def test_a_reply_above_its_limit_is_not_read(machines, monkeypatch) -> None:
    from pfedst.deployment import runtime
    from pfedst.errors import ConfigurationError
    from pfedst.transport import flower

    monkeypatch.setattr(flower, "most_bytes", lambda request: 100)
    folder = machines.folder
    link = runtime.Address(f"127.0.0.1:{machines.port}", folder / "secret", folder / "ca.crt")
    with (
        runtime.submitted_run(link) as grid,
        pytest.raises(ConfigurationError, match="site_a: a reply of more than 100 B"),
    ):
        flower.Flower(grid, ["site_a"], {}, wait_seconds=60, timeout_seconds=60).hello("run")


def test_a_hospital_with_another_study_refuses_with_the_differences(machines) -> None:
    line = machines.fit_command("other", "--method.rank 4", "--coordinator.rounds 1", "--coordinator.evaluate_every 1")
    said = machines.do(line, may_fail=True)
    assert "--method.init_args.rank is not set at this hospital, 4 at the centre" in said, said
    assert not (machines.folder / "runs" / "other").exists()
