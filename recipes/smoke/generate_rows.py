"""Write the rows of the recipes in this folder: small tasks of every type, in wording of our own.

    python recipes/smoke/generate_rows.py [--out .distillery/smoke]

Each type gets NAME-train.jsonl and NAME-test.jsonl, in the layouts of well-known data sets; no row
occurs twice. Together with the tickets of recipes/demo that is all that the recipes read.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_ROWS = {"train": 80, "test": 30}
Row = dict[str, Any]

_PEOPLE = (
    *("A woman", "A man", "A girl", "A boy", "A nurse", "A farmer", "A student", "A tall guide"),
    *("An old sailor", "A young baker"),
)
_SCENES = (
    # What is seen, what follows from it, what may be, what cannot be.
    ("is cutting bread", "is holding a knife", "is making lunch for a friend", "is fast asleep"),
    ("is riding a bicycle", "is moving", "is riding home from work", "is sitting in a car"),
    ("is reading a letter", "is reading", "is reading good news", "is swimming"),
    ("is painting a fence", "is using paint", "is paid for the work", "is watching television"),
    ("is running in the rain", "is getting wet", "is late for a train", "is standing still"),
    ("is playing the violin", "is making music", "is playing for money", "is eating soup"),
    (
        "is feeding two dogs",
        "is near animals",
        "owns the dogs",
        "is all alone",
    ),
    ("is carrying a red umbrella", "is carrying something", "expects rain", "has empty hands"),
)
_PLACES = ("in a kitchen", "near a bridge", "on a quiet road", "behind a school", "at a market")

_TOWNS = ("Ardel", "Brenning", "Corvale", "Dunmere", "Elsby", "Farholt", "Gresham", "Holm")
_BUILDINGS = ("town hall", "library", "lighthouse", "theatre", "mill", "museum")
_NAMES = ("Ada Brook", "Ben Calloway", "Cora Dunn", "Ines Falk", "Jon Mercer", "Lena Ott")
_RIVERS = ("the Arn", "the Blythe", "the Corra", "the Dane")

_GOODS = ("pencils", "apples", "marbles", "stamps", "cookies", "tickets", "nails", "buttons")

_PRODUCTS = ("router", "kettle", "camera", "printer", "speaker", "heater", "lamp", "vacuum")
_FAULTS = (
    # What the customer says, what the agent asks, the answer to that, what helps.
    (
        "does not turn on",
        "Is the light beside its plug on?",
        "No, it stays dark.",
        "Please try another socket and hold the power button for ten seconds.",
    ),
    (
        "switches itself off after a minute",
        "Does it feel hot when that happens?",
        "Yes, quite hot.",
        "Please clean the vents and leave a hand's width of air around it.",
    ),
    (
        "makes a loud noise",
        "Did the noise begin after it was moved?",
        "Yes, we moved house last week.",
        "Please take out the transport screw at the bottom; the manual shows it on page three.",
    ),
    (
        "shows error E4",
        "Which version stands on the label at the back?",
        "It says version 2.",
        "Please hold reset until the light blinks twice: version 2 then repairs itself.",
    ),
)
_THANKS = ("That worked, thanks!", "Great, it is fine now.", "Perfect, thank you.")
_CLOSINGS = ("Glad to hear it. Is there anything else?", "You are welcome. Have a good day!")


def make_nli(rng: random.Random) -> Row:
    """Return a pair in the layout of SNLI, with its label as a word."""
    seen, *others = rng.choice(_SCENES)
    who, kind = rng.choice(_PEOPLE), rng.randrange(3)
    label = ("entailment", "neutral", "contradiction")[kind]
    premise = f"{who} {seen} {rng.choice(_PLACES)}."
    return {"premise": premise, "hypothesis": f"{who} {others[kind]}.", "label": label}


def make_qa(rng: random.Random) -> Row:
    """Return a question in the layout of SQuAD 2: answers with places, none if unanswerable."""
    town, building = rng.choice(_TOWNS), rng.choice(_BUILDINGS)
    builder, river = rng.choice(_NAMES), rng.choice(_RIVERS)
    year, rooms = str(rng.randrange(1700, 1950)), str(rng.randrange(5, 90))
    context = (
        f"The {building} of {town} was built in {year} by {builder}. It has {rooms} rooms and "
        f"stands beside {river}."
    )
    question, answers = rng.choice(
        (
            (f"When was the {building} of {town} built?", [year, f"in {year}"]),
            (f"Who built the {building} of {town}?", [builder]),
            (f"How many rooms does the {building} of {town} have?", [rooms, f"{rooms} rooms"]),
            (f"Beside which river does the {building} of {town} stand?", [river]),
            (f"Who paid for the {building} of {town}?", []),
        )
    )
    places = [context.index(answer) for answer in answers]
    return {
        "context": context,
        "question": question,
        "answers": {"text": answers, "answer_start": places},
    }


def make_math(rng: random.Random) -> Row:
    """Return a problem with its worked solution in the layout of GSM8K."""
    name, goods = rng.choice(_NAMES).split()[0], rng.choice(_GOODS)
    boxes, each = rng.randrange(2, 12), rng.randrange(3, 25)
    given = rng.randrange(1, boxes * each)
    question = (
        f"{name} buys {boxes} boxes with {each} {goods} each and gives {given} of them away. How "
        f"many {goods} does {name} have left?"
    )
    answer = (
        f"{boxes} boxes hold {boxes} * {each} = {boxes * each} {goods}.\n"
        f"{boxes * each} - {given} = {boxes * each - given} are left.\n"
        f"#### {boxes * each - given}"
    )
    return {"question": question, "answer": answer}


def make_summarization(rng: random.Random) -> Row:
    """Return a ticket with its summary, sometimes two of them, in the layout of SciTLDR."""
    product, (fault, _, _, advice) = rng.choice(_PRODUCTS), rng.choice(_FAULTS)
    name, order = rng.choice(_NAMES), rng.randrange(1000, 10_000)
    ticket = [
        f"Hello, this is {name}.",
        f"I bought a {product} from you last month, order {order}.",
        f"Since yesterday it {fault}.",
        f"A friend said: {advice}",
        "I have not tried that yet.",
        "What should I do?",
    ]
    summaries = [f"The {product} of order {order} {fault}."]
    if rng.random() < 0.4:
        summaries.append(f"{name} reports that the {product} {fault}.")
    return {"source": ticket, "target": summaries}


def make_conversation(rng: random.Random) -> Row:
    """Return a support conversation of two or three exchanges as chat messages."""
    product, (fault, question, detail, advice) = rng.choice(_PRODUCTS), rng.choice(_FAULTS)
    name, order = rng.choice(_NAMES).split()[0], rng.randrange(1000, 10_000)
    turns = [
        f"Hi, my {product} {fault}. My order is {order}.",
        f"Sorry to hear that, {name}. {question}" if rng.random() < 0.5 else question,
        detail,
        advice,
    ]
    if rng.random() < 0.6:
        turns += [rng.choice(_THANKS), rng.choice(_CLOSINGS)]
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


TASKS: dict[str, Callable[[random.Random], Row]] = {
    "nli": make_nli,
    "qa": make_qa,
    "math": make_math,
    "summarization": make_summarization,
    "conversation": make_conversation,
}


def make_splits(make: Callable[[random.Random], Row], seed: str) -> dict[str, list[Row]]:
    """Return the rows of each split; the same seed gives the same rows, and none comes twice."""
    rng = random.Random(seed)
    lines: dict[str, Row] = {}
    while len(lines) < sum(NUM_ROWS.values()):
        row = make(rng)
        lines[json.dumps(row)] = row
    rows = iter(lines.values())
    return {split: [next(rows) for _ in range(num)] for split, num in NUM_ROWS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(".distillery/smoke"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, make in TASKS.items():
        for split, rows in make_splits(make, name).items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (out / f"{name}-{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
