"""Plays the interpreter of an environment with vLLM; a program of its own, standard library only.

    stub_vllm_python.py SETTINGS -c CODE                   is vLLM there?
    stub_vllm_python.py SETTINGS -m ... serve MODEL ...    a server

SETTINGS is a JSON file: see `StubPython` in `fixtures_vllm.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTEXT_LENGTH = 1000
_LEAVES_ITS_GROUP = "import time, os; os.setsid(); time.sleep(600)"


def main(settings_file: str, *arguments: str) -> int:
    settings = json.loads(Path(settings_file).read_text())
    if arguments[0] == "-c":
        return 0 if settings["has_vllm"] else 1
    if settings["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("(APIServer pid=1) INFO 11-27 07:56:45 [model.py:7] Loading the weights", flush=True)
    if settings["dies"]:
        print("torch.OutOfMemoryError: CUDA out of memory.\n\x1b[31mRuntimeError: no\x1b[0m")
        return 3
    children = [subprocess.Popen([sys.executable, "-c", _LEAVES_ITS_GROUP])]
    note = {"pids": [os.getpid(), *(child.pid for child in children)], "arguments": arguments}
    with Path(settings["log"]).open("a") as log:
        log.write(json.dumps(note) + "\n")
    time.sleep(settings["load_s"])
    if settings["is_never_healthy"]:
        time.sleep(600)
    name = arguments[arguments.index("--served-model-name") + 1]
    port = int(arguments[arguments.index("--port") + 1])
    _Server(("127.0.0.1", port), _handler(name, settings)).serve_forever()
    return 0


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024  # connections that wait; the default of 5 drops those of a client


def _handler(name: str, settings: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    num_asked = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # head and body go together

        def do_GET(self) -> None:
            self._reply(200, {"data": [{"id": name}]} if self.path == "/v1/models" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][-1]["content"]
            with Path(settings["log"]).open("a") as log:
                log.write(json.dumps({"asked": asked, "body": body}) + "\n")
            if next(num_asked) == settings["ends_after"]:
                print("RuntimeError: the engine is dead", flush=True)
                os._exit(1)
            time.sleep(settings["answer_s"])
            if len(asked) > CONTEXT_LENGTH:
                said = f"This model's maximum context length is {CONTEXT_LENGTH} tokens."
                self._reply(400, {"error": {"message": said, "code": 400}})
                return
            message = {"role": "assistant", "content": f"answer to {asked}"}
            self._reply(
                200,
                {
                    "model": name,
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": len(asked), "completion_tokens": 3},
                },
            )

        def _reply(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    return Handler


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
