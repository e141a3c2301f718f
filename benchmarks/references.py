"""A chat endpoint that answers the prompts of a recipe with their references.

    python -m benchmarks.references RECIPE    prints {"base_url": "http://127.0.0.1:PORT/v1"}

A teacher that is always right, where no strong one can be had: what a student keeps of it is what
it learnt of the data set. It knows every labelled row of `data.train` and `data.test`.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distillery.data.chat import Message, content_hash, load_messages
from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.recipe import Recipe, load_recipe

MODEL = "references"


def read_references(recipe: Recipe) -> dict[str, str]:
    """Return what a right response to each prompt is, by the hash of its turns."""
    kind, execution = task_type(recipe.task), ExecutionSpec()
    found: dict[str, str] = {}
    for source in (recipe.data.train, recipe.data.test):
        if source is None:
            continue
        labelled = {"train": None, "validation": None, "gold": None, "test": source}
        data = recipe.data.model_copy(update=labelled | {"max_invalid_fraction": 1.0})
        with tempfile.TemporaryDirectory() as folder:
            store = StoreSpec(root=folder)
            loaded = load_prompts(recipe.task, data, store, execution).dataset("prompts")
            valid = validate_prompts(loaded, recipe.task, data, store, execution)
            for batch in Store(folder).batches(valid.dataset("prompts")):
                for row in batch.to_pylist():
                    key = content_hash(load_messages(row["messages"]))
                    found[key] = kind.target(json.loads(row["references"]))
    return found


def find_response(turns: Sequence[Message], references: Mapping[str, str]) -> str | None:
    """Return the right response to a request; None when it ends in no known prompt.

    What stands before the prompt, such as a teacher's examples, does not matter.

    >>> asked = [Message(role="user", content="6 * 7?")]
    >>> shown = [Message(role="user", content="1 + 1?"), Message(role="assistant", content="2")]
    >>> find_response(shown + asked, {content_hash(asked): "42"})
    '42'
    """
    keys = (content_hash(list(turns[start:])) for start in range(len(turns)))
    return next((references[key] for key in keys if key in references), None)


def serve(references: dict[str, str]) -> ThreadingHTTPServer:
    """Return a server on a free port of this machine; it answers once `serve_forever` runs."""

    class Endpoint(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: sent apart, the body waits 40 ms for an ACK

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            turns = [Message(role=m["role"], content=m["content"]) for m in body["messages"]]
            text = find_response(turns, references)
            if text is None:
                told = f"there is no reference for {turns[-1]['content']!r:.200}"
                self._send(404, {"error": {"message": told}})
                return
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {  # in words, as there is no tokenizer
                "prompt_tokens": sum(len(turn["content"].split()) for turn in turns),
                "completion_tokens": len(text.split()),
            }
            said = {"object": "chat.completion", "model": MODEL, "choices": [choice]}
            self._send(200, said | {"id": "reference", "usage": usage})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512  # of 5, the system's retries make 64 at once wait for seconds

    return Server(("127.0.0.1", 0), Endpoint)


if __name__ == "__main__":
    server = serve(read_references(load_recipe(sys.argv[1], sys.argv[2:], Recipe)))
    print(json.dumps({"base_url": f"http://127.0.0.1:{server.server_port}/v1"}), flush=True)
    server.serve_forever()
