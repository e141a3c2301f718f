"""Write what is derived from code and recipes: the JSON schemas and `prefect.yaml`.

`python -m deployments.generate` writes; with `--check` it ends with 1 and names the stale files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from schemas.recipe import GenerationRecipe, Recipe, TeacherTrainingRecipe, load_recipe
from schemas.sweep import SweepRecipe

ROOT = Path(__file__).resolve().parent.parent
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def main() -> None:
    """Write the generated files, or with ``--check`` only compare them."""
    parser = argparse.ArgumentParser(prog="python -m deployments.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name stale files")
    is_check = parser.parse_args().check
    stale = [name for name, text in generated_files().items() if _read(ROOT / name) != text]
    if is_check and stale:
        print(f"stale: {', '.join(stale)}. Run `make schema` and commit them.", file=sys.stderr)
        sys.exit(1)
    if is_check:
        return
    for name in stale:
        (ROOT / name).write_text(generated_files()[name], encoding="utf-8")
        print(f"wrote {name}")


def generated_files() -> dict[str, str]:
    """Return the text of every generated file by its path from the repository root."""
    return {
        "recipes/recipe.schema.json": json_schema(Recipe, "Recipe of distill_student"),
        "recipes/generation.schema.json": json_schema(
            GenerationRecipe, "Recipe of generate_responses"
        ),
        "recipes/teacher.schema.json": json_schema(
            TeacherTrainingRecipe, "Recipe of train_teacher"
        ),
        "recipes/sweep.schema.json": json_schema(SweepRecipe, "Recipe of sweep_students"),
        "prefect.yaml": prefect_yaml(),
    }


def json_schema(kind: type[BaseModel], title: str) -> str:
    """Return the JSON schema by which editors complete and check a recipe."""
    schema = {"$schema": _DIALECT} | kind.model_json_schema() | {"title": title}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def prefect_yaml() -> str:
    """Return `prefect.yaml`: the commented template, filled with the recipes' parameters."""
    # Prefect's own placeholders are in double braces, so the template's are not.
    environment = Environment(
        loader=FileSystemLoader(ROOT / "deployments"),
        undefined=StrictUndefined,
        variable_start_string="[[",
        variable_end_string="]]",
        keep_trailing_newline=True,
        autoescape=False,
    )
    template = environment.get_template("prefect.yaml.jinja")
    return template.render(parameters_of=lambda recipe: _yaml_block(deployment_parameters(recipe)))


def deployment_parameters(recipe: str) -> dict[str, Any]:
    """Return a recipe's sections as parameters of a deployment of the spine, or of a sweep.

    Only what the recipe says: defaults stay in the code, so that a new default needs no deploy.
    """
    path = ROOT / recipe
    sections: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    load_recipe(path, [], SweepRecipe if "sweep" in sections else Recipe)
    return sections | {"execution": sections.get("execution", {}) | {"mode": "deployment"}}


def _yaml_block(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=92).rstrip()


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    main()
