"""A chat endpoint on this machine with latency, a limit and faults; a process of its own.

    python -m benchmarks.stub --latency-ms 50    prints {"base_url": "http://127.0.0.1:PORT/v1"}
    GET  /stats    what it was asked since the last reset
    POST /reset    forget that; a JSON object sets all settings anew

The seed, the prompt and how often it was asked decide what meets a request, so a run is
reproducible in whatever order it asks, and asking again can succeed.
"""

import argparse
import asyncio
import collections
import dataclasses
import hashlib
import json
import math
import socket
import statistics
import struct
import time
from typing import Any

_MAX_HEADER_BYTES = 65_536
_STATUS = {"limited": 429, "error_500": 500, "ok": 200}
_REASON = {200: "OK", 400: "Bad Request", 404: "Not Found", 411: "Length Required"} | {
    429: "Too Many Requests",
    500: "Internal Server Error",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the endpoint behaves."""

    latency_ms: float = 0.0
    """Median time to an answer, ms."""
    p99_ms: float | None = None
    """99th percentile of a lognormal time to an answer, ms. None: always the median."""
    max_ms: float | None = None
    """Longest time to an answer, ms. None: as long as the lognormal tail goes."""
    rate_per_s: float | None = None
    """Requests per second that a token bucket lets through. None: all."""
    burst: float = 100.0
    """Tokens that the bucket holds; it starts full."""
    retry_after: str = "seconds"
    """What a 429 says: whole seconds, rounded up, as HTTP has it; or their fraction."""
    error_500: float = 0.0
    """Fraction of requests met with status 500."""
    reset: float = 0.0
    """Fraction whose connection is reset."""
    stall: float = 0.0
    """Fraction that gets no answer until the client goes away."""
    malformed: float = 0.0
    """Fraction whose body is half a JSON text."""
    empty: float = 0.0
    """Fraction answered with an empty text."""
    truncated: float = 0.0
    """Fraction answered with half the text and finish_reason length."""
    seed: int = 0
    """Seed of latencies and faults."""

    def __post_init__(self) -> None:
        if self.retry_after not in ("seconds", "fraction"):
            raise ValueError(f"retry_after is {self.retry_after!r}. Use 'seconds' or 'fraction'.")


FAULTS = ("error_500", "reset", "stall", "malformed", "empty", "truncated")


def answer_to(prompt: str) -> str:
    """Return the one right answer to ``prompt``, so that a mixed-up response is found out."""
    return "label " + hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=6).hexdigest()


def draw(settings: Settings, prompt: str, times_asked: int) -> tuple[str, float]:
    """Return what meets a request, `ok` or a fault, and after how many seconds."""
    key = f"{settings.seed}\0{times_asked}\0{prompt}".encode("utf-8", "replace")
    digest = hashlib.blake2b(key, digest_size=16).digest()
    # 52 bits and a half: never 0 nor 1, which have no normal quantile.
    fault, latency = (
        ((int.from_bytes(part) >> 12) + 0.5) / 2**52 for part in (digest[:8], digest[8:])
    )
    outcome = "ok"
    for name in FAULTS:
        fault -= getattr(settings, name)
        if fault < 0:
            outcome = name
            break
    seconds = settings.latency_ms / 1000
    if settings.p99_ms is not None:
        normal = statistics.NormalDist()
        sigma = math.log(settings.p99_ms / settings.latency_ms) / normal.inv_cdf(0.99)
        seconds *= math.exp(sigma * normal.inv_cdf(latency))
    if settings.max_ms is not None:
        seconds = min(seconds, settings.max_ms / 1000)
    return outcome, seconds


class Run:
    """What was asked since a reset, and what is left in the token bucket."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.num_requests = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.asked: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.first_latencies_s = self.longest_latency_s = 0.0
        self.in_flight = self.max_in_flight = 0
        self.first_request_s = self.last_request_s = self.last_response_s = 0.0
        self._tokens, self._filled_at = settings.burst, time.monotonic()
        self._cpu_s = time.process_time()

    def wait_for_token(self, now: float) -> float | None:
        """Take a token and return None; or return the seconds until there is one."""
        rate = self.settings.rate_per_s
        if rate is None:
            return None
        gained = (now - self._filled_at) * rate
        self._tokens, self._filled_at = min(self.settings.burst, self._tokens + gained), now
        if self._tokens < 1:
            return (1 - self._tokens) / rate
        self._tokens -= 1
        return None

    def stats(self) -> dict[str, Any]:
        """Return the counts since the reset; times are of one monotonic clock, seconds."""
        by_status: collections.Counter[str] = collections.Counter()
        for outcome, count in self.outcomes.items():
            silent = outcome in ("reset", "stall", "abandoned")
            by_status["none" if silent else str(_STATUS.get(outcome, 200))] += count
        return {
            "requests": self.num_requests,
            "by_outcome": dict(self.outcomes),
            "by_status": dict(by_status),
            "distinct_prompts": len(self.asked),
            "answered_prompts": len(self.answered),
            "answered_again": sum(times > 1 for times in self.answered.values()),
            "asked_times": _histogram(self.asked),
            "answered_times": _histogram(self.answered),
            "first_latencies_s": self.first_latencies_s,
            "longest_latency_s": self.longest_latency_s,
            "first_request_s": self.first_request_s,
            "last_request_s": self.last_request_s,
            "last_response_s": self.last_response_s,
            "max_in_flight": self.max_in_flight,
            "stub_cpu_s": time.process_time() - self._cpu_s,
            "settings": dataclasses.asdict(self.settings),
        }


def _histogram(counts: collections.Counter[str]) -> dict[str, int]:
    """Return how many prompts had each count."""
    return {str(times): n for times, n in sorted(collections.Counter(counts.values()).items())}


class _Connection(asyncio.Protocol):
    """One keep-alive connection: requests one after the other, bodies by Content-Length."""

    def __init__(self, server: "_Server") -> None:
        self._server = server
        self._buffer = bytearray()
        self._run: Run | None = None  # of the request that is being answered
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = self._told_to_continue = self._last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._run is not None:
            self._run.in_flight -= 1
            if not self._stalled:
                self._run.outcomes["abandoned"] += 1
        if self._timer is not None:
            self._timer.cancel()
        self._run = self._timer = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take_requests()

    def _take_requests(self) -> None:
        """Answer what the buffer holds, one request at a time."""
        while self._run is None and not self._transport.is_closing():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEADER_BYTES:
                    self._refuse(400, "the headers are too long")
                return
            request_line = self._buffer[:end].split(b"\r\n", 1)[0].split(b" ")
            head = self._buffer[:end].lower()
            if len(request_line) != 3:
                return self._refuse(400, "this is no HTTP request")
            if b"\r\ntransfer-encoding:" in head:
                return self._refuse(411, "send a Content-Length")
            _, found, rest = head.partition(b"\r\ncontent-length:")
            length = rest.split(b"\r\n", 1)[0].strip() if found else b"0"
            if not length.isdigit():
                return self._refuse(400, "Content-Length is not a number")
            stop = end + 4 + int(length)
            if len(self._buffer) < stop:
                if b"100-continue" in head and not self._told_to_continue:
                    self._told_to_continue = True
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._buffer[end + 4 : stop])
            del self._buffer[:stop]
            self._told_to_continue = False
            self._last = b"\r\nconnection: close" in head
            self._answer(bytes(request_line[0]), bytes(request_line[1]), body)

    def _answer(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path.endswith(b"/chat/completions"):
            self._complete(body)
        elif method == b"GET" and path == b"/stats":
            self._send(200, self._server.run.stats())
        elif method == b"POST" and path == b"/reset":
            try:
                self._server.reset(json.loads(body) if body else None)
            except (TypeError, ValueError) as error:
                return self._send(400, {"error": {"message": str(error)}})
            self._send(200, dataclasses.asdict(self._server.run.settings))
        elif method == b"GET" and path.endswith(b"/models"):
            self._send(200, {"object": "list", "data": [{"id": "stub", "object": "model"}]})
        else:
            self._send(404, {"error": {"message": "there is nothing here"}})

    def _complete(self, body: bytes) -> None:
        try:
            request = json.loads(body)
            prompt, model = request["messages"][-1]["content"], request["model"]
        except (ValueError, TypeError, LookupError):
            return self._send(400, {"error": {"message": "this is no chat completion request"}})
        if not isinstance(prompt, str):  # a list of parts
            prompt = json.dumps(prompt)
        run, now = self._server.run, time.monotonic()
        run.num_requests += 1
        run.first_request_s = run.first_request_s or now
        run.last_request_s = now
        if (wait_s := run.wait_for_token(now)) is not None:
            run.outcomes["limited"] += 1
            whole = run.settings.retry_after == "seconds"
            header = str(math.ceil(wait_s)) if whole else f"{wait_s:.3f}"
            error = {"error": {"message": "too many requests"}}
            return self._send(429, error, f"Retry-After: {header}\r\n")
        outcome, latency_s = draw(run.settings, prompt, run.asked[prompt])
        run.asked[prompt] += 1
        if run.asked[prompt] == 1:
            run.first_latencies_s += latency_s
            run.longest_latency_s = max(run.longest_latency_s, latency_s)
        run.in_flight += 1
        run.max_in_flight = max(run.max_in_flight, run.in_flight)
        self._run, self._stalled = run, outcome == "stall"
        if self._stalled:
            run.outcomes["stall"] += 1
        elif latency_s > 0:
            loop = self._server.loop
            self._timer = loop.call_later(latency_s, self._wake, prompt, model, outcome)
        else:
            self._finish(prompt, model, outcome)

    def _wake(self, prompt: str, model: str, outcome: str) -> None:
        self._finish(prompt, model, outcome)
        self._take_requests()

    def _finish(self, prompt: str, model: str, outcome: str) -> None:
        """Send what ``outcome`` says."""
        run, self._run, self._timer = self._run, None, None
        assert run is not None
        run.in_flight -= 1
        run.outcomes[outcome] += 1
        run.last_response_s = time.monotonic()
        if outcome == "reset":
            # With a linger time of 0 the kernel sends RST, not FIN.
            raw: socket.socket = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self._transport.abort()
        if outcome == "error_500":
            self._send(500, {"error": {"message": "scripted failure"}})
        else:
            if outcome == "ok":
                run.answered[prompt] += 1
            self._send(200, _completion(prompt, model, outcome), cut=outcome == "malformed")

    def _send(self, status: int, content: Any, headers: str = "", *, cut: bool = False) -> None:
        body = json.dumps(content).encode()
        if cut:
            body = body[: len(body) // 2]
        head = (
            f"HTTP/1.1 {status} {_REASON[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n"
        )
        self._transport.write(head.encode() + body)
        if self._last:
            self._transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be parsed, and close: where the next request begins is unknown."""
        self._last = True
        self._send(status, {"error": {"message": message}})


def _completion(prompt: str, model: str, outcome: str) -> dict[str, Any]:
    """Return the body of a chat completion."""
    text = answer_to(prompt)
    text = {"empty": "", "truncated": text[: len(text) // 2]}.get(outcome, text)
    return {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if outcome == "truncated" else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt) // 4 + 1,
            "completion_tokens": len(text) // 4,
            "total_tokens": len(prompt) // 4 + 1 + len(text) // 4,
        },
    }


class _Server:
    """The settings of all connections and the run that they count in."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.get_running_loop()
        self.run = Run(settings)

    def reset(self, settings: dict[str, Any] | None) -> None:
        """Count anew; what is in flight still counts in the run that it belongs to."""
        self.run = Run(self.run.settings if settings is None else Settings(**settings))


async def _serve(settings: Settings, port: int) -> None:
    server = _Server(settings)
    listener = await server.loop.create_server(
        lambda: _Connection(server), "127.0.0.1", port, backlog=4096
    )
    bound = listener.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{bound}/v1"}), flush=True)
    await listener.serve_forever()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stub", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    for field in dataclasses.fields(Settings):
        kind = str if field.name == "retry_after" else int if field.name == "seed" else float
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=kind, default=field.default)
    arguments = vars(parser.parse_args())
    asyncio.run(_serve(port=arguments.pop("port"), settings=Settings(**arguments)))


if __name__ == "__main__":
    main()
