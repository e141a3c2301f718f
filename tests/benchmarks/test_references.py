"""An endpoint that answers with the references knows each row, whatever is laid around it."""

import json
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from benchmarks.references import MODEL, read_references, serve
from schemas.recipe import Recipe
from tests.fixtures_recipe import SHORTEST


def test_it_answers_train_and_test_rows_with_their_references(tmp_path: Path) -> None:
    rows = [{"text": f"question {n}", "answer": f"Answer {n}"} for n in range(4)]
    for name, part in (("train", rows[:3]), ("test", rows[3:])):
        text = "\n".join(json.dumps(row) for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text + "\n", "utf-8")
    columns = {"reference": "answer"}
    data = {
        name: {"kind": "file", "path": str(tmp_path / f"{name}.jsonl"), "columns": columns}
        for name in ("train", "test")
    }
    recipe = Recipe.model_validate(SHORTEST | {"data": data})
    server = serve(read_references(recipe))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"

    def ask(text: str) -> str:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        body = json.dumps({"model": MODEL, "messages": turns}).encode()
        with urlopen(Request(url, body)) as reply:
            said: str = json.load(reply)["choices"][0]["message"]["content"]
        return said

    try:
        assert [ask("question 0"), ask("question 3")] == ["Answer 0", "Answer 3"]
        with pytest.raises(HTTPError, match="404"):
            ask("question 4")
    finally:
        server.shutdown()
        server.server_close()
