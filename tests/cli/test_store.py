"""`distillery store gc`: what nothing names goes, and a dry run only names it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

ATTEMPT = "train_student/" + "a" * 64 + "/deadbeef"


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """A store with one attempt that was never sealed."""
    folder = tmp_path / "store" / ATTEMPT
    folder.mkdir(parents=True)
    (folder / "half.safetensors").write_bytes(b"0" * 500_000)
    return folder


def gc(folder: Path, *options: str) -> str:
    root = str(folder.parents[2])
    done = CliRunner().invoke(app, ["store", "gc", "--root", root, *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_young_is_spared(abandoned: Path) -> None:
    assert gc(abandoned) == "deleted 0 folders, 0.0 MB\n"
    assert abandoned.is_dir()


def test_a_dry_run_names_what_would_go_and_leaves_it(abandoned: Path) -> None:
    assert gc(abandoned, "--older-than", "0h", "--dry-run") == (
        f"      0.5 MB  {ATTEMPT}\nwould delete 1 folder, 0.5 MB\n"
    )
    assert abandoned.is_dir()


def test_an_attempt_that_no_manifest_names_goes(abandoned: Path) -> None:
    assert (
        gc(abandoned, "--older-than", "0h")
        == f"      0.5 MB  {ATTEMPT}\ndeleted 1 folder, 0.5 MB\n"
    )
    assert not abandoned.exists()
