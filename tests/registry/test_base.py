"""What an alias points to, and what its history allows."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.registry.base import Decide, Registry, comes_back, rival_of, standing
from schemas.errors import RegistryError
from schemas.promotion import HistoryEntry
from tests.fixtures_registry import entry, student_ref


class MemoryRegistry(Registry):
    """Entries in a list: the rules without a backend."""

    name = "memory"

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], list[HistoryEntry]] = {}

    def check(self) -> None:
        pass

    def aliases(self) -> list[tuple[str, str]]:
        return sorted(self.entries)

    def history(self, task: str, alias: str) -> list[HistoryEntry]:
        return list(self.entries.get((task, alias), []))

    def append(self, task: str, alias: str, decide: Decide) -> HistoryEntry:
        entries = self.history(task, alias)
        new = decide(entries)
        self.entries[task, alias] = entries = [*entries, *([new] if new else [])]
        return entries[-1]

    def close(self) -> None:
        pass


def registry_of(*digits: str) -> MemoryRegistry:
    """Return a registry in which these students were promoted one after the other."""
    registry, before = MemoryRegistry(), None
    for digit in digits:
        registry.promote(entry(digit), expected=before)
        before = student_ref(digit).uri
    return registry


def digits(entries: Sequence[HistoryEntry]) -> str:
    return "".join(e.student.fingerprint[0] for e in entries)


def test_an_alias_stands_for_its_newest_entry() -> None:
    registry = registry_of("1", "2")
    champion = registry.champion("tickets", "champion")
    assert champion is not None and champion.student == student_ref("2")
    assert registry.champion("tickets", "other") is None
    assert digits(registry.history("tickets", "champion")) == "12"


def test_a_promotion_is_refused_when_the_alias_moved_since_the_comparison() -> None:
    registry = registry_of("1", "2")
    with pytest.raises(RegistryError, match=r"moved to 'train_student/2.* \(promotion by .*Run ag"):
        registry.promote(entry("3"), expected=student_ref("1").uri)
    with pytest.raises(RegistryError, match="moved to 'train_student/2"):
        registry.promote(entry("3"), expected=None)
    with pytest.raises(RegistryError, match="moved to nobody meanwhile"):
        registry.promote(entry("3", alias="canary"), expected=student_ref("1").uri)
    assert digits(registry.history("tickets", "champion")) == "12"


def test_an_entry_whose_commit_was_answered_by_nobody_is_added_once() -> None:
    registry = MemoryRegistry()
    first, second = entry("1"), entry("2")
    registry.promote(first, expected=None)
    assert registry.promote(first, expected=None) == first
    registry.promote(second, expected=student_ref("1").uri)
    assert registry.promote(first, expected=None) == second, "it was promoted, and replaced since"
    assert digits(registry.history("tickets", "champion")) == "12"


def test_the_champion_passing_again_adds_an_entry_only_with_news() -> None:
    registry = registry_of("1")
    registry.promote(entry("1"), expected=None)
    assert digits(registry.history("tickets", "champion")) == "1"
    registry.promote(entry("1", compared="f" * 64), expected=None)
    forms = {"gguf q8_0": student_ref("9")}
    registry.promote(entry("1", compared="f" * 64, forms=forms), expected=None)
    assert digits(registry.history("tickets", "champion")) == "111"
    assert digits(standing(registry.history("tickets", "champion"))) == "1"


def test_rollbacks_go_further_back_each_time_and_end_at_the_first() -> None:
    registry = registry_of("1", "2", "3")
    original = registry.history("tickets", "champion")[1]
    back = registry.rollback("tickets", "champion", "it is rude")
    assert (back.kind, back.reason, back.restores) == ("rollback", "it is rude", original.id)
    assert back.student == student_ref("2") and back.compared == original.compared
    assert registry.rollback("tickets", "champion", "rude, too").student == student_ref("1")
    with pytest.raises(RegistryError, match="has pointed to one student only"):
        registry.rollback("tickets", "champion", "and again")
    assert digits(registry.history("tickets", "champion")) == "12321"


def test_after_a_rollback_the_next_student_is_held_against_the_one_that_stands() -> None:
    registry = registry_of("1", "2")
    registry.rollback("tickets", "champion", "rude")
    entries = registry.history("tickets", "champion")
    assert rival_of(student_ref("3"), entries) == student_ref("1")
    registry.promote(entry("3"), expected=student_ref("1").uri)
    assert digits(standing(registry.history("tickets", "champion"))) == "31"


def test_the_gate_does_not_bring_back_whom_a_person_took_away() -> None:
    registry = registry_of("1", "2")
    registry.rollback("tickets", "champion", "rude")
    with pytest.raises(RegistryError, match=r"taken back on 20.*\(rude\), and the gate does not"):
        registry.promote(entry("2"), expected=student_ref("1").uri)
    registry.promote(entry("2", "manual"), expected=student_ref("1").uri)
    assert comes_back(student_ref("2"), registry.history("tickets", "champion")) is None
    registry.promote(entry("3"), expected=student_ref("2").uri)
    registry.rollback("tickets", "champion", "slow")
    registry.promote(entry("2", compared="f" * 64), expected=student_ref("1").uri)
    assert digits(registry.history("tickets", "champion")) == "1212322"


def test_a_student_whose_files_are_gone_is_not_gone_back_to() -> None:
    registry = registry_of("1", "2")
    with pytest.raises(RegistryError, match=r"before, 'train_student/1.*', is gone from"):
        registry.rollback("tickets", "champion", "rude", is_there=lambda _: False)
    assert digits(registry.history("tickets", "champion")) == "12"


def test_an_unknown_alias_is_named_with_the_nearest() -> None:
    registry = registry_of("1")
    with pytest.raises(RegistryError, match=r"no 'tikets/champion'\. Did you mean 'tickets/champ"):
        registry.rollback("tikets", "champion", "rude")
    with pytest.raises(RegistryError, match="registry 'memory' is empty"):
        MemoryRegistry().known_history("tickets", "champion")


def test_the_champion_itself_is_held_against_the_one_before_it() -> None:
    entries = registry_of("1", "2").history("tickets", "champion")
    assert rival_of(student_ref("2"), entries) == student_ref("1")
    assert rival_of(student_ref("1"), entries) == student_ref("2")
    assert rival_of(student_ref("1"), entries[:1]) is None
    assert rival_of(student_ref("1", attempt="b"), entries[:1]) == student_ref("1"), (
        "other weights may have the same fingerprint"
    )


def test_what_a_rollback_can_reach_is_needed_and_the_rest_is_not() -> None:
    registry = registry_of("1", "2", "3")
    forms = {"gguf q8_0": student_ref("9")}
    registry.promote(entry("4", forms=forms), expected=student_ref("3").uri)
    registry.rollback("tickets", "champion", "rude")
    assert registry.needed() == [student_ref(digit) for digit in "321"]
    registry.promote(entry("4", "manual", forms=forms), expected=student_ref("3").uri)
    needed = "".join(model.fingerprint[0] for model in registry.needed())
    assert needed == "49321"


@given(st.lists(st.sampled_from(["1", "2", "3", "rollback"]), max_size=12))
def test_an_alias_always_stands_for_its_newest_entry_and_history_only_grows(
    events: list[str],
) -> None:
    registry = MemoryRegistry()
    for event in events:
        before = registry.history("tickets", "champion")
        try:
            if event == "rollback":
                registry.rollback("tickets", "champion", "rude")
            else:
                expected = before[-1].student.uri if before else None
                registry.promote(entry(event), expected=expected)
        except RegistryError:
            assert registry.history("tickets", "champion") == before
        after = registry.history("tickets", "champion")
        assert after[: len(before)] == before
        assert standing(after)[:1] == after[-1:]
        uris = [e.student.uri for e in standing(after)]
        assert all(one != two for one, two in itertools.pairwise(uris))
