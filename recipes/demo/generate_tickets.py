"""Write the demo task: messy customer-support tickets, each with a structured JSON answer.

All wording is our own. Every field of the answer is decided by one local phrase (the intent by a
paraphrase, the product by an alias, the priority by a cue), so a one-layer student can learn the
task. There are many phrases, so a few hundred gold rows leave most of them unseen.

Run without arguments it writes the four committed files beside itself; with `--teacher-rows
[N] --out DIR` it writes only DIR/teacher_gold.jsonl, with `--intents [N] --out DIR` only
DIR/train.csv and DIR/test.csv: tickets and their intents, for the recipes in recipes/smoke.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

SEED = 20_240
NUM_ROWS = {"test": 1_000, "gold": 240, "validation": 300, "train": 3_000, "selection": 400}
"""Rows per committed split, in the order in which they are drawn."""
LABELLED_SPLITS = frozenset({"test", "gold", "selection", "teacher_gold"})
NUM_TEACHER_ROWS = 20_000
TYPO_PROBABILITY = 0.02  # per word of four letters or more


def _phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a `;`-separated block, with line breaks folded away."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(";") if phrase.strip())


INTENTS: Mapping[str, tuple[str, ...]] = {
    "refund": _phrases("""i want my money back for the {p}; please refund the {p}; reimburse me
        for the {p}; the {p} was a waste, return my cash; i expect full repayment for the {p};
        give me back what i spent on the {p}; when do i get the credit for the {p}; the {p}
        disappointed me, i demand compensation; send the funds for the {p} to my card; i posted
        the {p} back, still no payout; i regret buying the {p}, undo the payment; hand over the
        sum i paid for the {p}; i am owed the full price of the {p}; the {p} is rubbish, pay me
        out; reverse the purchase of the {p}; let me have my euros returned for the {p}; claim
        the cost of the {p} back"""),
    "exchange": _phrases("""can i swap the {p} for another; i need a different size of the {p};
        the {p} came in the wrong colour; exchange the {p} please; i would rather have the
        larger {p}; trade the {p} for a newer model; you sent the {p} in green, i chose black;
        the {p} does not match what i picked; replace the {p} with a smaller version;
        substitute the {p} with the silver edition; i got someone elses {p}; the {p} is not the
        variant i selected; switch my {p} to the premium type; the {p} is too tight, get me a
        wider one; the {p} you shipped is an older generation; the shade of the {p} is off; i
        would prefer the matte {p}"""),
    "delivery": _phrases("""where is my {p}; the {p} has not arrived; tracking for the {p} is
        stuck; the courier never came with the {p}; when will the {p} get here; the parcel with
        the {p} is late; my {p} is lost in transit; the driver left the {p} with nobody; no
        sign of the {p} at the depot; the {p} was due last monday; shipping of the {p} takes
        forever; the van drove past without dropping the {p}; customs is holding the {p}; has
        the {p} been dispatched; the package for the {p} vanished; still waiting on the {p} to
        land; postman says there is no {p}"""),
    "cancel": _phrases("""cancel my order of the {p}; i no longer want the {p}; stop the {p}
        purchase; i changed my mind about the {p}; call off the {p}; do not send the {p}; scrap
        the {p} from my basket; i ordered the {p} by mistake; withdraw my {p} request; please
        drop the {p} reservation; my kid clicked buy on the {p}; forget about the {p}; void the
        {p} booking; i found the {p} elsewhere, abort it; halt the {p} before it leaves; annul
        the contract for the {p}; take the {p} off my list"""),
    "billing": _phrases("""i was charged twice for the {p}; the {p} shows up double on my
        statement; my bank lists an extra fee for the {p}; you billed too much for the {p}; the
        discount was not applied to the {p}; unknown debit next to the {p}; the voucher failed
        on the {p}; the total for the {p} is incorrect; paypal took two amounts for the {p}; i
        see a surcharge on the {p}; the coupon code for the {p} was ignored; tax on the {p}
        looks miscalculated; the instalment for the {p} went through again; overcharged for the
        {p}; the {p} cost more at checkout than advertised; duplicate transaction for the {p};
        my visa got hit repeatedly over the {p}"""),
    "repair": _phrases("""the {p} stopped working; my {p} is broken; the {p} will not turn on;
        the {p} makes a grinding noise; smoke came out of the {p}; the {p} overheats; can a
        technician fix the {p}; the {p} keeps crashing; there is a crack in the {p}; the {p}
        leaks; a button on the {p} jammed; the {p} shuts down randomly; the {p} is dead; my {p}
        flickers; the {p} smells burnt; the hinge of the {p} snapped; the {p} has a faulty
        motor"""),
    "setup": _phrases("""how do i install the {p}; the manual for the {p} is confusing; help me
        connect the {p}; i cannot pair the {p} with my phone; guide me to configure the {p};
        which plug does the {p} need; first time using the {p}, steps please; how to assemble
        the {p}; where is the reset switch on the {p}; mount the {p} on a wall how; the {p} app
        asks for a wizard; how do i calibrate the {p}; what do the lights on the {p} mean; the
        {p} wants firmware, what now; need instructions for the {p}; how do i change the
        language of the {p}; the {p} menu puzzles me"""),
    "login": _phrases("""i cannot sign in to register the {p}; forgot my password for the {p}
        portal; my profile with the {p} is locked; the {p} site rejects my username; no
        verification code for the {p}; the {p} page logs me out; reset my credentials for the
        {p}; someone hacked my {p} account; the captcha blocks me on the {p} page; my pin for
        the {p} is refused; the {p} forum banned me; access denied when i open my {p} page; i
        lost the authenticator for the {p}; unlock my {p} membership; my email is not
        recognised for the {p}; the {p} dashboard throws me out; activation link of the {p}
        expired"""),
    "warranty": _phrases("""is my {p} still under warranty; how long is the guarantee on the
        {p}; does coverage include the {p}; extend the protection plan of the {p}; is water
        damage insured for the {p}; when does the {p} policy end; register the {p} serial for
        cover; is the {p} eligible for aftercare; how many years do you back the {p}; does
        opening the {p} void my rights; is the battery of the {p} covered; what are the terms
        for the {p}; i want the care package for the {p}; does the seller or maker vouch for
        the {p}; is wear on the {p} excluded; transfer the {p} certificate to the new owner; i
        lost the warranty card of the {p}"""),
    "invoice": _phrases("""send me the invoice for the {p}; i need a receipt for the {p}; my
        accountant wants papers on the {p}; email the pdf bill of the {p}; put my company name
        on the {p} document; the vat number is absent for the {p}; i need proof of purchase of
        the {p}; print a copy of the {p} slip; the {p} must go on expenses, need paperwork;
        bookkeeping asks about the {p}; the tax office wants the {p} record; please itemise the
        {p}; where do i download the {p} voucher sheet; reissue the {p} statement for my firm;
        our auditor needs the {p} file; i deleted the {p} confirmation mail; a signed quote for
        the {p} is required"""),
    "address": _phrases("""i moved, ship the {p} to my new house; wrong street on the {p}
        label; deliver the {p} to my office instead; change the postcode for the {p}; send the
        {p} to my sister; update the flat number for the {p}; redirect the {p} to a pickup
        locker; i mistyped the city for the {p}; please reroute the {p} to my hotel; the {p}
        should go to number nine; edit the recipient of the {p}; leave the {p} at the
        neighbours door; the {p} is headed to my old apartment; correct the destination of the
        {p}; forward the {p} abroad; the county on the {p} form is outdated; bring the {p} to
        the back entrance"""),
    "parts": _phrases("""the {p} came without screws; a cable is missing from the {p}; no
        charger with the {p}; i need a spare lid for the {p}; where can i buy a filter for the
        {p}; the box of the {p} lacked a bracket; order an adapter for the {p}; one leg of the
        {p} was not in the carton; the {p} set is incomplete; do you sell knobs for the {p}; i
        lost the remote of the {p}; need an extra handle for the {p}; the {p} bag had no bolts;
        the {p} arrived minus its stand; do you stock gaskets for the {p}; the strap of the {p}
        is absent; looking for a cartridge for my {p}"""),
}
PRODUCTS: Mapping[str, tuple[str, ...]] = {
    "router": _phrases("router; wifi box; modem; mesh hub; internet gateway"),
    "kettle": _phrases("kettle; water boiler; tea maker; hot jug; teapot"),
    "laptop": _phrases("laptop; notebook; macbook; chromebook; ultrabook"),
    "camera": _phrases("camera; webcam; dslr; photo cam; camcorder"),
    "vacuum": _phrases("vacuum; hoover; robot cleaner; dust sucker; carpet sweeper"),
    "printer": _phrases("printer; inkjet; laserjet; scanner combo; copier"),
    "speaker": _phrases("speaker; soundbar; boombox; subwoofer; stereo"),
    "watch": _phrases("watch; fitness band; smartwatch; step tracker; chronograph"),
    "monitor": _phrases("monitor; screen; display; flat panel; widescreen"),
    "heater": _phrases("heater; radiator; fan oven; warm blower; convector"),
    "lamp": _phrases("lamp; desk light; lantern; led strip; chandelier"),
    "bike": _phrases("bike; ebike; cycle; roadster; tandem"),
}
PRIORITIES: Mapping[str, tuple[str, ...]] = {
    "high": _phrases("""this is urgent; asap; i need it by tomorrow; right now please; it
        cannot wait; emergency; my business is losing customers; i will call a lawyer; third
        time i write; immediately; i am furious; drop everything; today or never; it is
        critical; top speed please; the deadline is tonight; this is dangerous; final warning"""),
    "normal": _phrases("""within the week is fine; a reply in some days works; please handle it
        as usual; looking forward to your response; sometime soon would be nice; next week is
        ok; let me know how to proceed; in the ordinary course; standard handling is good;
        before the month ends; by regular mail is alright; at a reasonable pace; thursday suits
        me; kindly get to it; keep me posted; i await news; in the coming days; do what you
        normally do"""),
    "low": _phrases("""no rush; whenever you have time; not important; just curious; take it
        easy; it can wait; no hurry at all; only a small matter; for later; low priority; i am
        on holiday till autumn; no pressure; someday; at your leisure; merely wondering; it
        barely bothers me; put it at the bottom of the pile; eventually"""),
}
GREETINGS = _phrases("""hi; hello; hey there; good morning; dear team; hi support; to whom it
    may concern; evening; hello again; greetings; yo; sorry to bother you""")
BACKGROUND = _phrases("""i have been a client since 2012; my dog says hi; the weather here is
    awful; i like your new logo; we met at the fair; i am writing from the train; my cousin
    told me of you; the shop downtown was shut; i tried the chat; nice music on the hotline; it
    was a birthday gift; my english is not great; we live on a farm; the kids are asleep
    finally; i read your blog""")
FILLERS = _phrases("so; well; um; ok; basically; anyway; look; honestly; you know")
SIGN_OFFS = _phrases("""thanks; thx; cheers; best, anna; regards, tom; many thanks; bye; kind
    regards, lee; ta; yours, maria; br jo; greetings from sam""")
ORDER_MENTIONS = _phrases("order {n}; order no {n}; ref {n}; my number is {n}; nr {n}; #{n}")


def with_typo(word: str, rng: random.Random) -> str:
    """Return `word` with one inner letter dropped, doubled or swapped with its neighbour."""
    at = rng.randrange(1, len(word) - 1)
    head, letter, after, tail = word[:at], word[at], word[at + 1], word[at + 2 :]
    return head + rng.choice((after, letter + letter + after, after + letter)) + tail


def make_ticket(rng: random.Random) -> tuple[str, str]:
    """Return one ticket as (text, answer); the answer is compact JSON text."""
    intent, product, priority = (rng.choice([*group]) for group in (INTENTS, PRODUCTS, PRIORITIES))
    request = rng.choice(INTENTS[intent]).replace("{p}", rng.choice(PRODUCTS[product]))
    if rng.random() < 0.3:
        request = f"{rng.choice(FILLERS)} {request}"
    number = f"{rng.choice('ABCD')}{rng.randrange(100, 1000)}"
    core = [request, rng.choice(PRIORITIES[priority])]
    if rng.random() < 0.5:
        core.append(rng.choice(ORDER_MENTIONS).replace("{n}", number))
    if rng.random() < 0.6:
        core.append(rng.choice(BACKGROUND))
    rng.shuffle(core)
    if rng.random() < 0.7:
        core.insert(0, rng.choice(GREETINGS))
    if rng.random() < 0.6:
        core.append(rng.choice(SIGN_OFFS))
    marks = [rng.choice((". ", ", ", " ", "! ", ".. ", " - ")) for _ in core[1:]] + [""]
    if rng.random() < 0.3:
        core = [sentence[0].upper() + sentence[1:] for sentence in core]
    text = "".join(sentence + mark for sentence, mark in zip(core, marks, strict=True))
    words = text.split(" ")
    for at, word in enumerate(words):
        if len(word) >= 4 and word.isalpha() and rng.random() < TYPO_PROBABILITY:
            words[at] = with_typo(word, rng)
    answer = {"intent": intent, "product": product, "priority": priority}
    return " ".join(words), json.dumps(answer, separators=(",", ":"))


def make_splits(
    num_rows: Mapping[str, int], *, seed: int = SEED
) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each split; the same seed and counts give the same rows.

    No text occurs twice, within a split or across splits. Each split has its own random stream,
    so a split appended to `num_rows` leaves the earlier ones as they were.
    """
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, num in num_rows.items():
        rng = random.Random(f"{seed}/{split}")
        rows = splits[split] = []
        while len(rows) < num:
            text, answer = make_ticket(rng)
            if text not in seen:
                seen.add(text)
                row = {"id": f"{split}-{len(rows) + 1:05d}", "text": text}
                rows.append(row | {"answer": answer} if split in LABELLED_SPLITS else row)
    return splits


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write one compact JSON object per line, UTF-8, with line feeds on every platform."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_intents(folder: Path, num_rows: int) -> None:
    """Write `num_rows` tickets to train.csv and a quarter of that to test.csv: text, category."""
    splits = make_splits({"test": num_rows // 4, "teacher_gold": num_rows})
    for name, split in (("train", "teacher_gold"), ("test", "test")):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            for row in splits[split]:
                writer.writerow([row["text"], json.loads(row["answer"])["intent"]])


def main() -> None:
    """Write the demo files, or what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder to write to; default: beside this file")
    parser.add_argument("--teacher-rows", type=int, nargs="?", const=NUM_TEACHER_ROWS, metavar="N")
    parser.add_argument("--intents", type=int, nargs="?", const=400, metavar="N")
    args = parser.parse_args()
    if (args.teacher_rows is not None or args.intents is not None) and args.out is None:
        parser.error("without --out these files would lie beside the demo data. Name a folder")
    out: Path = args.out or Path(__file__).parent
    out.mkdir(parents=True, exist_ok=True)
    if args.intents is not None:
        write_intents(out, args.intents)
    elif args.teacher_rows is None:
        for split, rows in make_splits(NUM_ROWS).items():
            write_jsonl(out / f"{split}.jsonl", rows)
    else:
        rows = make_splits(NUM_ROWS | {"teacher_gold": args.teacher_rows})["teacher_gold"]
        write_jsonl(out / "teacher_gold.jsonl", rows)


if __name__ == "__main__":
    main()
