"""The server: weights, participation, what it sends and takes, and its state."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled
from pfedst_baselines.prototypes import Prototypes
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.errors import ConfigurationError, NotFiniteError, PfedstError, StateError
from pfedst.messages.payload import NET
from pfedst.messages.requests import ANCHORS, GENERIC, PROTOTYPES, Request
from pfedst.methods.criteria import CrossEntropy
from pfedst.methods.interface import Start
from pfedst.methods.pfedst import PFedST
from pfedst.server.server import Server
from pfedst.testing.small import federation

SAMPLES = {"b": 3, "a": 5, "c": 2}


def start(anchors=None) -> Start:
    return Start(
        state={"w": torch.arange(4.0), "n": torch.tensor(0)},
        parameter_keys=("w",),
        frozen={"f": torch.ones(2)},
        trains=True,
        adapter="None",
        anchors="prototypes",
        anchors_shape=(2, 3),
        parameters_trained=4,
        parameters_sent=5,
        loss=CrossEntropy(),
    )


def server(method=None, held_out=(), samples=SAMPLES, make_start=start, **options) -> Server:
    made = Server(method or FedAvg(), samples, make_start, 0, held_out, **options)
    made.begin()
    return made


# -- who takes part ----------------------------------------------------------------------------------------------------


def test_names_are_sorted_and_weights_are_of_images() -> None:
    made = server(FedAvg(weighting="samples"), held_out=["b"])
    assert made.sites == made.names == made.members == ["a", "b", "c"]
    assert made.weights == {"a": 5.0, "b": 3.0, "c": 2.0}
    assert made.drawable == ["a", "c"]
    assert server().weights == dict.fromkeys("abc", 1.0)


def test_a_pooled_method_has_one_client_that_trains() -> None:
    made = server(Pooled(), held_out=["b"])
    assert (made.names, made.drawable) == (["pooled"], ["pooled"])
    assert made.sites == ["a", "b", "c"]
    assert made.members == ["a", "b", "c", "pooled"]
    assert made.weights == {"pooled": 1.0}
    assert made.draw(1, 0.1) == ["pooled"]


@pytest.mark.parametrize(
    ("held_out", "words"),
    [(["d"], 'no site "d"'), (["aa"], 'Did you mean "a"'), (["a", "b", "c"], "all sites are held out")],
)
def test_sites_that_cannot_be_held_out(held_out, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        server(held_out=held_out)


@given(st.integers(1, 50), st.floats(0.01, 1.0), st.integers(2, 9))
def test_a_round_draws_a_share_of_the_clients(number, participation, clients) -> None:
    made = server(samples={f"s{index}": 1 for index in range(clients)}, held_out=["s1"])
    drawn = made.draw(number, participation)
    assert drawn == made.draw(number, participation) == sorted(set(drawn))
    assert len(drawn) == max(1, round(participation * (clients - 1)))
    assert "s1" not in drawn


def test_each_round_draws_anew_and_every_client_is_drawn() -> None:
    made = server()
    drawn = [tuple(made.draw(number, 0.34)) for number in range(1, 30)]
    assert set(drawn) == {("a",), ("b",), ("c",)}
    other = Server(FedAvg(), SAMPLES, start, 1)
    assert [tuple(other.draw(number, 0.34)) for number in range(1, 30)] != drawn


# -- messages ----------------------------------------------------------------------------------------------------------


def test_clients_get_one_copy_until_the_next_merge() -> None:
    made = server()
    one, other = made.message_to("a"), made.message_to("b")
    assert one[NET]["w"] is other[NET]["w"]
    assert one[NET]["w"] is not made.state[NET]["w"]
    one[NET]["w"].add_(1)
    assert made.state[NET]["w"].tolist() == [0, 1, 2, 3]
    made.merge({"a": {NET: {"w": torch.full((4,), 3.0), "n": torch.tensor(1)}}})
    assert made.message_to("a")[NET]["w"].tolist() == [3] * 4


def test_weighted_means_are_of_those_that_reported() -> None:
    made = server(FedAvg(weighting="samples"))
    values = {"c": 1.0, "a": 8.0}
    made.merge({name: {NET: {"w": torch.full((4,), value), "n": torch.tensor(1)}} for name, value in values.items()})
    assert made.state[NET]["w"][0].item() == pytest.approx((5 * 8.0 + 2 * 1.0) / 7)


def test_the_order_of_messages_changes_no_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    messages = {name: {NET: {"w": torch.randn(4, generator=draw), "n": torch.tensor(1)}} for name in "abc"}
    found = []
    for names in ("abc", "cab"):
        made = server()
        made.merge({name: messages[name] for name in names})
        found.append(made.state[NET]["w"])
    assert torch.equal(*found)


def test_requests_carry_anchors_once_they_are_known() -> None:
    made = server()
    assert set(made.parts_for("a")) == {NET}
    made.set_anchors(torch.eye(2, 3).double())
    parts = made.parts_for("a")
    assert set(parts) == {NET, ANCHORS}
    assert parts[ANCHORS]["classes"].dtype == torch.float32
    assert parts[ANCHORS]["classes"] is made.parts_for("b")[ANCHORS]["classes"]


class Own(FedAvg):
    """Sends one client a model of its own."""

    def broadcast(self, server, name):
        return super().broadcast(server, name) if name == "a" else {NET: server[name]}


def test_a_request_to_evaluate_carries_the_generic_model_where_the_message_is_another() -> None:
    made = server(Own())
    made.state["b"] = {key: tensor + 1 for key, tensor in made.state[NET].items()}
    assert set(made.parts_to_evaluate("a", True)) == {NET}
    parts = made.parts_to_evaluate("b", True)
    assert set(parts) == {NET, GENERIC}
    assert set(made.parts_for("b")) == {NET}, "it is needed in evaluations alone"
    for name, found in (("a", made.parts_to_evaluate("a", True)), ("b", parts)):
        request = Request("evaluate", "run", parts=found)
        assert torch.equal(request.generic["w"], made.state[NET]["w"])
        assert set(request.message) == {NET}
        assert torch.equal(request.message[NET]["w"], made.state[NET]["w"] + (name == "b"))


class Undeclared(FedAvg):
    def broadcast(self, server, name):
        return super().broadcast(server, name) | {"x": {}}


class TooLittle(FedAvg):
    def broadcast(self, server, name):
        return {NET: {}}


@pytest.mark.parametrize(("method", "words"), [(Undeclared, "extra_messages"), (TooLittle, "missing")])
def test_only_what_is_declared_is_sent(method, words) -> None:
    with pytest.raises(StateError, match=rf"the message to client a(.|\n)*{words}"):
        server(method()).message_to("a")


@pytest.mark.parametrize(
    ("net", "error"),
    [
        ({"w": torch.zeros(4)}, StateError),
        ({"w": torch.zeros(4), "n": torch.tensor(0), "x": torch.ones(1)}, StateError),
        ({"w": torch.zeros(3), "n": torch.tensor(0)}, StateError),
        ({"w": torch.zeros(4).double(), "n": torch.tensor(0)}, StateError),
        ({"w": torch.full((4,), float("inf")), "n": torch.tensor(0)}, NotFiniteError),
    ],
)
def test_only_what_is_declared_is_taken(net, error) -> None:
    server().check_upload("a", {NET: {"w": torch.ones(4), "n": torch.tensor(3)}})
    with pytest.raises(error, match="the message from client a"):
        server().check_upload("a", {NET: net})


@pytest.mark.parametrize("name", [ANCHORS, PROTOTYPES])
def test_a_method_may_not_take_the_names_of_others(name) -> None:
    class Takes(FedAvg):
        extra_messages = (name,)

    with pytest.raises(ConfigurationError, match=name):
        server(Takes())


class CannotMerge(FedAvg):
    def merge(self, server, uploads, weights) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"), [(KeyError("x"), "CannotMerge cannot merge.*a.*KeyError"), (PfedstError("rest"), "rest")]
)
def test_a_method_that_cannot_merge_ends_the_run_with_its_name(error, words) -> None:
    method = CannotMerge()
    method.error = error
    with pytest.raises(PfedstError, match=words):
        server(method).merge({"a": {NET: {}}})


# -- a limit on the number of images that a site claims ----------------------------------------------------------------


def test_a_site_counts_as_at_most_so_many_images() -> None:
    """By hand: a claims a million images. With a limit of 3, the weights are 3, 3 and 2 in place of 1e6, 3 and 2."""
    samples = SAMPLES | {"a": 1_000_000}
    limited, free = (server(FedAvg(weighting="samples"), samples=samples, **of) for of in ({"most_samples": 3}, {}))
    assert limited.weights == {"a": 3.0, "b": 3.0, "c": 2.0}
    values = {"a": 8.0, "b": 0.0, "c": -4.0}
    for made, expected in ((limited, (3 * 8 + 3 * 0 - 2 * 4) / 8), (free, (1e6 * 8 - 2 * 4) / (1e6 + 5))):
        made.merge(
            {name: {NET: {"w": torch.full((4,), value), "n": torch.tensor(0)}} for name, value in values.items()}
        )
        assert made.state[NET]["w"] == pytest.approx(torch.full((4,), expected))


def test_the_limit_holds_in_class_prototypes_with_equal_weights_too() -> None:
    """By hand: site a sends the direction (1, 0, 0) for 100 images, site b (0, 1, 0) for 3; they count as 6 and 3."""
    sums = [torch.tensor([[100.0, 0, 0], [0, 0, 0]]).double(), torch.tensor([[0, 3.0, 0], [0, 0, 0]]).double()]
    counts = [torch.tensor([100, 0]), torch.tensor([3, 0])]
    made = server(samples={"a": 100, "b": 3}, most_samples=6)
    made.merge_prototypes(sums, counts)
    assert made.anchors[0].tolist() == pytest.approx([6 / 45**0.5, 3 / 45**0.5, 0])
    assert made.anchors[1].tolist() == [0, 0, 0]
    # a limit that nobody reaches changes no bit
    anchors = []
    for limit in (None, 100):
        made = server(samples={"a": 100, "b": 3}, most_samples=limit)
        made.merge_prototypes(sums, counts)
        anchors.append(made.anchors)
    assert torch.equal(*anchors)


@pytest.mark.parametrize(
    "method",
    [
        FedAvg(weighting="uniform"),
        FedAvg(weighting="samples", merge_rule="median"),
        Local(weighting="samples"),
        Pooled(),
    ],
)
def test_a_limit_without_effect_is_an_error(method) -> None:
    def without_prototypes(anchors=None):
        return replace(start(anchors), anchors="text")

    with pytest.raises(ConfigurationError, match=r"--coordinator.most_samples 5 has no effect.*leave it out"):
        server(method, most_samples=5, make_start=without_prototypes)
    assert server(FedAvg(weighting="samples"), most_samples=5, make_start=without_prototypes)


# -- prototypes --------------------------------------------------------------------------------------------------------


def prototypes(images=5, scale=1.0):
    sums = torch.zeros(2, 3, dtype=torch.float64)
    sums[0, 0], sums[1, 1] = (images - 2) * scale, 2 * scale
    return {PROTOTYPES: {"sums": sums, "counts": torch.tensor([images - 2, 2])}}


def test_prototypes_are_means_over_all_images() -> None:
    made = server(held_out=["c"])
    parts = [
        made.check_prototypes(name, prototypes(images))[key]
        for key in ("sums", "counts")
        for name, images in (("a", 5), ("b", 3))
    ]
    made.merge_prototypes(parts[:2], parts[2:])
    assert made.anchors.shape == (2, 3)
    assert torch.allclose(made.anchors.norm(dim=1), torch.ones(2))
    assert made.setup_upload_bytes == 2 * (6 * 8 + 2 * 8)
    assert torch.equal(made.parts_for("c")[ANCHORS]["classes"], made.anchors)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        prototypes(4),
        prototypes(scale=1.1),
        prototypes(scale=float("nan")),
        prototypes() | {"x": {}},
        {PROTOTYPES: {"sums": torch.zeros(2, 3, dtype=torch.float64)}},
        {PROTOTYPES: prototypes()[PROTOTYPES] | {"counts": torch.tensor([6, -1])}},
        {PROTOTYPES: prototypes()[PROTOTYPES] | {"counts": torch.tensor([5, 0])[:1]}},
        {PROTOTYPES: prototypes()[PROTOTYPES] | {"sums": torch.zeros(2, 3)}},
        {PROTOTYPES: [1]},
        None,
    ],
    ids=str,
)
def test_prototypes_that_no_images_have_are_refused(parts) -> None:
    made = server()
    assert made.check_prototypes("a", prototypes())
    with pytest.raises(StateError, match="the class prototypes from site a"):
        made.check_prototypes("a", parts)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PFedST, SCAFFOLD, Local, Prototypes])
def test_the_state_comes_back(method) -> None:
    one, other = federation(method()).server, federation(method(), seed=1).server
    assert one.trains == (method is not Prototypes)
    other.load_state_parts(one.state_parts())
    assert {part: set(state) for part, state in other.state.items() if state} == {
        part: set(state) for part, state in one.state.items() if state
    }
    for part, state in one.state.items():
        assert all(torch.equal(tensor, other.state[part][key]) for key, tensor in state.items())
    assert torch.equal(one.anchors, other.anchors)
    assert all(
        torch.equal(*pair)
        for pair in zip(one.parts_for("site_a")[NET].values(), other.parts_for("site_a")[NET].values(), strict=True)
    )


def test_frozen_tensors_are_those_that_the_run_was_made_with() -> None:
    made = server()
    made.set_anchors(torch.eye(2, 3))
    parts = {"server": made.state_parts()["server"] | {"frozen": {"f": torch.full((2,), 7.0)}}}
    assert made.load_state_parts(parts)["f"].tolist() == [7, 7]
    assert made.state_parts()["server"]["frozen"]["f"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": {NET: {"w": torch.zeros(4)}}}, "shared tensors"),
        ({"method": {}}, "shared tensors"),
        ({"method": {NET: torch.zeros(4)}}, "saved server's state"),
        ({"method": torch.zeros(4)}, 'a tensor under "method"'),
        ({"frozen": {}}, "frozen tensors"),
        ({"frozen": {"f": torch.ones(3)}}, "frozen tensors"),
        ({"anchors": {}}, "class anchors"),
        ({"anchors": {"classes": torch.ones(3, 3)}}, "class anchors"),
        ({"anchors": {"classes": torch.full((2, 3), float("nan"))}}, "class anchors"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, words) -> None:
    made = server()
    made.set_anchors(torch.eye(2, 3))
    with pytest.raises(StateError, match=words):
        server().load_state_parts({"server": made.state_parts()["server"] | change})


@pytest.mark.parametrize("parts", [{}, {"client": {}}, {"server": {}, "client site a": {}}])
def test_a_state_of_other_parts_is_refused(parts) -> None:
    with pytest.raises(StateError, match="the saved state"):
        server().load_state_parts(parts)
