"""The least that can ask an endpoint: plain sockets, one connection per worker, no ledger.

    python -m benchmarks.bare_client BASE_URL PROMPTS.jsonl RESPONSES.jsonl

What it does not do is its point: it takes any text for an answer and keeps nothing until the end.
A failed attempt is tried again at once, a 429 after what Retry-After says.
"""

import argparse
import asyncio
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_ATTEMPTS = 6
_FIELDS = {"model": "stub", "max_tokens": 16}


class _Worker:
    """Asks one prompt after the other on a connection of its own."""

    def __init__(self, base_url: str, timeout_s: float, fields: Mapping[str, Any]) -> None:
        url = urllib.parse.urlsplit(base_url)
        assert url.hostname is not None and url.port is not None
        self._host, self._port = url.hostname, url.port
        self._head = (
            f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self._timeout_s, self._fields = timeout_s, fields
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def work(self, rows: Iterator[dict[str, Any]], texts: dict[str, str]) -> None:
        """Answer what ``rows``, shared by all workers, still yields."""
        for row in rows:
            text = await self._answer(row["text"])
            if text is not None:
                texts[row["id"]] = text
        self._close()

    async def _answer(self, prompt: str) -> str | None:
        """Return the text of the answer, or None after so many failed attempts."""
        attempts = 0
        while attempts < MAX_ATTEMPTS:
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, headers, body = await self._ask(prompt)
                if status == 429:
                    await asyncio.sleep(float(headers["retry-after"]))
                    continue
                if status == 200:
                    return str(json.loads(body)["choices"][0]["message"]["content"])
            except (OSError, EOFError, TimeoutError, ValueError):
                self._close()  # what is left in the connection belongs to no request
            attempts += 1
        return None

    async def _ask(self, prompt: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the response to one request."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        message = {"role": "user", "content": prompt}
        content = {**self._fields, "messages": [message]}
        body = json.dumps(content).encode()
        writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        named = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in named}
        return (
            int(lines[0].split(" ")[1]),
            headers,
            await reader.readexactly(int(headers["content-length"])),
        )

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def answer(
    base_url: str,
    rows: list[dict[str, Any]],
    *,
    workers: int,
    timeout_s: float,
    fields: Mapping[str, Any] = _FIELDS,
) -> dict[str, str]:
    """Return the answers by id; rows that were given up are not among them.

    ``fields`` are those of each request beside its messages.
    """
    left, texts = iter(rows), dict[str, str]()
    at_work = (_Worker(base_url, timeout_s, fields).work(left, texts) for _ in range(workers))
    await asyncio.gather(*at_work)
    return texts


def main() -> None:
    """Answer a file of prompts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_client", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base_url")
    parser.add_argument("prompts", type=Path, help="JSONL of {id, text}")
    parser.add_argument("responses", type=Path, help="JSONL of {id, text} to write")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--timeout-s", type=float, default=10.0)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.prompts.read_text("utf-8").splitlines()]
    found = answer(
        arguments.base_url, rows, workers=arguments.workers, timeout_s=arguments.timeout_s
    )
    lines = (json.dumps({"id": key, "text": text}) for key, text in asyncio.run(found).items())
    arguments.responses.write_text("".join(line + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
