"""The README tells the truth: its code is the code, its commands exist, its recipe validates."""

import re
import subprocess
from pathlib import Path

import yaml

from schemas.recipe import Recipe, load_recipe, validate_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", README, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def test_the_spine_is_the_code_verbatim() -> None:
    taught, verdict = blocks("python")
    for shown, file in ((taught, "teach_student.py"), (verdict, "distill_student.py")):
        text = (ROOT / "flows" / file).read_text(encoding="utf-8")
        for function in shown.split("\n\n\n"):
            assert function.split("):\n", 1)[1].rstrip() in text


def test_every_make_target_exists() -> None:
    targets = {m for line in commands() for m in re.findall(r"\bmake ([a-z]+)", line)}
    assert {"quickstart", "test", "check", "up"} <= targets
    for target in sorted(targets):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_override_of_a_command_is_accepted() -> None:
    lines = [line for line in commands() if "distillery run" in line]
    assert len(lines) >= 2
    for line in lines:
        words = line.split("  #")[0].replace("'", "").split("distillery run ", 1)[1].split()
        recipe, *overrides = words
        load_recipe(ROOT / recipe, overrides, Recipe)


def test_the_recipe_of_the_served_teacher_validates() -> None:
    [snippet] = blocks("yaml")
    changed = yaml.safe_load(snippet.replace("<commit hash>", "a" * 40))
    demo = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    recipe = validate_recipe(demo | changed, Recipe, source="README.md")
    assert recipe.teacher.kind == "openai" and recipe.student.kind == "pretrained"


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert "://" in link or (ROOT / link).exists(), link


def test_the_demo_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    import sys

    script = ROOT / "recipes" / "demo" / "generate_tickets.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True)
    made = sorted(tmp_path.glob("*.jsonl"))
    assert [file.stem for file in made] == ["gold", "selection", "test", "train", "validation"]
    for file in made:
        assert file.read_bytes() == (script.parent / file.name).read_bytes(), file.name
