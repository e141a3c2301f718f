import time
from collections.abc import Sequence

from distillery.evaluation.peak_memory import MemoryWatch
from distillery.evaluation.protocol import Answered, Conversation, Opened
from schemas.comparison import Size

MIB = 2**20
ROWS: list[Conversation] = [[{"role": "user", "content": "a row"}]] * 8


def opened(
    extra_bytes: int, weight_bytes: int = 0, max_concurrency: int | None = None
) -> tuple[Opened, list[int]]:
    """Return a model that holds so much while it answers several; and what it is given."""
    given = []

    def answer(rows: Sequence[Conversation], concurrency: int) -> list[Answered]:
        given.append(concurrency)
        held = bytearray(extra_bytes if concurrency > 1 else 0)
        for page in range(0, len(held), 4096):
            held[page] = 1
        time.sleep(0.05)  # while nobody holds the interpreter, as in a model's arithmetic
        return [Answered("yes", False, 1, 1) for _ in rows]

    size = Size(num_parameters=1, weight_bytes=weight_bytes, kv_cache_bytes=0)
    return Opened(answer, size, max_concurrency), given


def test_what_answering_holds_comes_on_top_of_the_weights() -> None:
    model, given = opened(200 * MIB, weight_bytes=64 * MIB)
    peak = MemoryWatch().peak_bytes(model, ROWS)
    assert peak is not None
    assert 240 * MIB < peak < 400 * MIB
    assert given == [1, 8]


def test_weights_that_another_one_has_loaded_count_all_the_same() -> None:
    peak = MemoryWatch().peak_bytes(opened(0, weight_bytes=64 * MIB)[0], ROWS)
    assert peak is not None and peak >= 64 * MIB


def test_what_was_loaded_counts_where_it_is_more_than_the_weights() -> None:
    watch = MemoryWatch()
    arena = bytearray(b"\1") * (128 * MIB)
    peak = watch.peak_bytes(opened(0, weight_bytes=MIB)[0], ROWS)
    assert peak is not None and peak > 100 * MIB and len(arena)


def test_room_that_another_one_left_does_not_hide_what_is_taken() -> None:
    def take(num_bytes: int) -> list[bytes]:
        return [b"\1" * 50_000 for _ in range(num_bytes // 50_000)]  # from the heap

    def answer(rows: Sequence[Conversation], concurrency: int) -> list[Answered]:
        taken = take(64 * MIB if concurrency > 1 else 0)
        time.sleep(0.05)
        return [Answered("yes", False, 1, len(taken)) for _ in rows]

    left, above = take(256 * MIB), take(1 * MIB)
    del left
    peak = MemoryWatch().peak_bytes(Opened(answer), ROWS)
    assert peak is not None and peak > 48 * MIB and above


def test_a_model_is_given_no_more_at_once_than_it_takes() -> None:
    model, given = opened(0, max_concurrency=2)
    MemoryWatch().peak_bytes(model, ROWS)
    assert given == [1, 2]


def test_the_memory_of_a_served_model_is_not_known_and_nothing_is_paid_for_it() -> None:
    model, given = opened(0)
    served = Opened(model.answer, is_served=True)
    assert MemoryWatch().peak_bytes(served, ROWS) is None
    assert given == []
