"""The verbs of the command `distillery`, with their options and help texts.

Only what is needed to parse a command line is imported here: `--help` has to come at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import clear_errors

app = typer.Typer(
    name="distillery",
    help="Rows of prompts in, a small student model out, measured against its teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
gate = typer.Typer(help="Look at the gate of a recipe.", no_args_is_help=True)
ledger = typer.Typer(help="Look after the ledger of teacher responses.", no_args_is_help=True)
store = typer.Typer(help="Look after the store of results.", no_args_is_help=True)
registry = typer.Typer(
    help="Look up which student is in production, and change it.", no_args_is_help=True
)
data = typer.Typer(help="Look at the rows of a recipe.", no_args_is_help=True)
app.add_typer(gate, name="gate")
app.add_typer(data, name="data")
app.add_typer(ledger, name="ledger")
app.add_typer(store, name="store")
app.add_typer(registry, name="registry")

RecipeFile = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, such as recipes/demo.yaml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value",
        help="laid over the recipe, deeply; the value is YAML (training.epochs=3)",
        show_default=False,
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan", help="ask nothing; print what the teacher would be asked, its cost and its time"
    ),
]
Root = Annotated[str, typer.Option(help="root of the store", metavar="URL")]
LedgerUrl = Annotated[
    str | None,
    typer.Option(help="SQLAlchemy URL of the ledger; write a password as ${NAME}", metavar="URL"),
]
StoreRecipe = Annotated[
    str | None, typer.Option("--recipe", help="recipe that names store and ledger", metavar="FILE")
]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="task.name of the recipe")]
Alias = Annotated[str, typer.Option(help="gate.alias of the recipe", metavar="NAME")]
Reason = Annotated[str, typer.Option(help="why; it is kept in the history", metavar="TEXT")]


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, plan: Plan = False) -> None:
    """Distil the teacher of a recipe into its student; print the comparison and the verdict."""
    from cli.runs import run_distillation

    with clear_errors():
        run_distillation(recipe, overrides or [], plan=plan)


@app.command()
def sweep(recipe: RecipeFile, overrides: Overrides = None, plan: Plan = False) -> None:
    """Try many students of one teacher, then run the spine on the recipe of the best one."""
    from cli.sweep import run_sweep

    with clear_errors():
        run_sweep(recipe, overrides or [], plan=plan)


@app.command()
def generate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    plan: Plan = False,
    jsonl: Annotated[
        Path | None, typer.Option(help="write the responses there too", metavar="FILE")
    ] = None,
) -> None:
    """Have the prompts of a recipe answered by its teacher; train nothing."""
    from cli.runs import run_generation

    with clear_errors():
        run_generation(recipe, overrides or [], plan=plan, jsonl=jsonl)


@app.command()
def train_teacher(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Train a model on the gold rows of a recipe, to be the teacher of later runs."""
    from cli.runs import run_teacher_training

    with clear_errors():
        run_teacher_training(recipe, overrides or [])


@gate.command()
def simulate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(help="test rows; may be repeated", min=10, show_default=False),
    ] = None,
    teacher: Annotated[
        float, typer.Option(help="share that the teacher gets right", min=0.01, max=0.99)
    ] = 0.9,
    correlation: Annotated[
        float, typer.Option(help="between the mistakes of two models", min=0.0, max=0.95)
    ] = 0.5,
    champion: Annotated[
        float | None,
        typer.Option(
            help="share of the teacher's accuracy that the champion keeps; midway between "
            "gate.min_retention and 1 if not given",
            show_default=False,
        ),
    ] = None,
    simulations: Annotated[int, typer.Option(help="comparisons per cell", min=100)] = 1000,
) -> None:
    """Print how often the gate of a recipe promotes a worse student and holds back a good one."""
    from cli.gate import simulate_gate

    with clear_errors():
        simulate_gate(
            recipe,
            overrides or [],
            rows=rows,
            teacher=teacher,
            correlation=correlation,
            champion=champion,
            num_simulations=simulations,
        )


@data.command()
def rejected(
    target: Annotated[
        str,
        typer.Argument(metavar="RECIPE|STORE", help="recipe that was run, or root of a store"),
    ],
    overrides: Overrides = None,
    reason: Annotated[
        str | None, typer.Option(help="dropped for this reason", metavar="REASON")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(help="dropped by this filter", metavar="FILTER")
    ] = None,
    limit: Annotated[int, typer.Option(help="rows shown", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per row")] = False,
    restore: Annotated[
        list[str] | None,
        typer.Option(help="print what lets the row of this id pass; may be repeated", metavar="ID"),
    ] = None,
) -> None:
    """Print the prompts and responses that filters dropped, with what was seen; restore some."""
    from cli.data import print_rejected, print_restored

    with clear_errors():
        if restore:
            print_restored(target, overrides or [], restore)
        else:
            print_rejected(
                target,
                overrides or [],
                reason=reason,
                filter=filter,
                limit=limit,
                as_json=as_json,
            )


@ledger.command()
def stats(
    root: Root = ".distillery", ledger_url: LedgerUrl = None, recipe: StoreRecipe = None
) -> None:
    """Print rows, tokens and cost by teacher."""
    from cli.ledger import print_stats
    from cli.places import store_spec

    with clear_errors():
        print_stats(store_spec(root, ledger_url, recipe))


@ledger.command()
def batches(
    forget: Annotated[
        str | None,
        typer.Option(help="have the requests of this batch asked again", metavar="ID"),
    ] = None,
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Print the batches at providers whose responses are not read yet."""
    from cli.ledger import print_batches
    from cli.places import store_spec

    with clear_errors():
        print_batches(store_spec(root, ledger_url, recipe), forget=forget)


@ledger.command()
def purge(
    teacher: Annotated[
        str | None, typer.Option(help="of this model name, or start of a teacher id")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="such as 12h, 30d or 8w", metavar="AGE")
    ] = None,
    prompt_hash: Annotated[
        list[str] | None, typer.Option(help="of this prompt; may be repeated", metavar="HASH")
    ] = None,
    contains: Annotated[
        str | None, typer.Option(help="in a message or its response", metavar="TEXT")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove them, instead of counting")] = False,
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Remove the rows that meet all criteria, for good."""
    from cli.ledger import purge_rows
    from cli.places import seconds, store_spec

    with clear_errors():
        purge_rows(
            store_spec(root, ledger_url, recipe),
            teacher=teacher,
            older_than_s=seconds(older_than) if older_than else None,
            prompt_hashes=prompt_hash,
            contains=contains,
            yes=yes,
        )


@store.command()
def gc(
    older_than: Annotated[
        str, typer.Option(help="spare what is younger: 12h, 30d, 8w", metavar="AGE")
    ] = "7d",
    results_older_than: Annotated[
        str | None,
        typer.Option(help="delete finished results as old as that, too", metavar="AGE"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print it and delete nothing")] = False,
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Delete what lost or died: attempts and checkpoints that no manifest and no alias names."""
    from cli.places import seconds, store_spec
    from cli.store import collect_garbage

    with clear_errors():
        results_s = seconds(results_older_than) if results_older_than else None
        spec = store_spec(root, ledger_url, recipe)
        collect_garbage(spec, seconds(older_than), results_s, dry_run=dry_run)


@registry.command("list")
def list_aliases(
    root: Root = ".distillery", ledger_url: LedgerUrl = None, recipe: StoreRecipe = None
) -> None:
    """Print which student each alias points to."""
    from cli.places import store_spec
    from cli.registry import print_aliases

    with clear_errors():
        print_aliases(store_spec(root, ledger_url, recipe))


@registry.command()
def show(
    task: TaskName,
    alias: Alias = "champion",
    path: Annotated[
        bool, typer.Option("--path", help="print nothing but where the model's files are")
    ] = False,
    form: Annotated[
        str | None,
        typer.Option(
            help="with --path: of this exported form, such as 'gguf q8_0'", metavar="NAME"
        ),
    ] = None,
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Print which student an alias points to, where its files are, and its history."""
    from cli.places import store_spec
    from cli.registry import print_alias, print_path

    with clear_errors():
        spec = store_spec(root, ledger_url, recipe)
        if path or form:
            print_path(spec, task, alias, form)
        else:
            print_alias(spec, task, alias)


@registry.command()
def rollback(
    task: TaskName,
    reason: Reason,
    alias: Alias = "champion",
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Point an alias back to the previous student."""
    from cli.places import store_spec
    from cli.registry import go_back

    with clear_errors():
        go_back(store_spec(root, ledger_url, recipe), task, alias, reason)


@registry.command()
def promote(
    task: TaskName,
    fingerprint: Annotated[
        str, typer.Argument(metavar="FINGERPRINT", help="of the student; its beginning is enough")
    ],
    reason: Reason,
    alias: Alias = "champion",
    root: Root = ".distillery",
    ledger_url: LedgerUrl = None,
    recipe: StoreRecipe = None,
) -> None:
    """Promote a student manually, bypassing the gate."""
    from cli.places import store_spec
    from cli.registry import promote as promote_student

    with clear_errors():
        spec = store_spec(root, ledger_url, recipe)
        promote_student(spec, task, alias, fingerprint, reason)


def main() -> None:
    """Run the command line."""
    app()
