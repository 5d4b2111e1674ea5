"""Every key is exactly one kind; a rule that decides nothing is an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import ConfigurationError
from pfedst.methods.partition import Partition

KEYS = ["side.down.0.weight", "side.down.0.lora_A", "side.down.0.lora_B", "head.weight"]


def test_first_matching_rule_decides() -> None:
    partition = Partition([("*.lora_[AB]", "personal"), ("head.*", "frozen"), ("*", "shared")], KEYS, "M")
    assert partition.keys("personal") == ("side.down.0.lora_A", "side.down.0.lora_B")
    assert partition.keys("frozen") == ("head.weight",)
    assert partition.keys("shared") == ("side.down.0.weight",)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([("side.*", "shared")], ["no rule", "head.weight", "end the rules with one for all other tensors"]),
        ([("*", "share")], ["('*', 'share') is no pair of a glob and one of shared, personal, frozen"]),
        ([("side.*", "private"), ("*", "shared")], ["is no pair"]),
        (["shared"], ["'shared' is no pair"]),
        ([("hed.*", "personal"), ("*", "shared")], ["hed.*", "matches nothing", "head.*", "side.*"]),
        ([("*", "shared"), ("head.*", "personal")], ["head.*", "matches nothing"]),
    ],
)
def test_partial_and_idle_rules_are_refused(rules, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Partition(rules, KEYS, "method M")
    assert all(word in str(caught.value) for word in ["method M", *words])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.permutations("abc"))
def test_total_and_disjoint(letters, order) -> None:
    keys = [f"{letter}.{index}" for index, letter in enumerate(letters)]
    rules = [(f"{letter}.*", kind) for letter, kind in zip(order, ("shared", "personal", "frozen"), strict=True)]
    rules = [rule for rule in rules if rule[0][0] in letters]
    partition = Partition(rules, keys, "M")
    kinds = [partition.keys(kind) for kind in ("shared", "personal", "frozen")]
    assert sorted(sum(kinds, ())) == sorted(keys)
