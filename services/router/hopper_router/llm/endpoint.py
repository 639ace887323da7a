"""
A model behind HTTP, asked within a deadline.

**What is trusted.** The host that the operator named, over TLS with its certificate checked, and nothing else: no
redirect is followed (the key and the task's text would go along), and of a response at most `MOST_BYTES` are read. What
a server says in an error is not repeated, as it may quote the task.

**What is tried again.** What may pass: 429, 5xx of overload and accident, timeouts, connections that break; after the
pause that the server asks for, or one that doubles and is spread by chance; never beyond the deadline or `attempts`. An
answer that cannot be used is not asked for again: it is paid for, and the next would be as well.

**What it costs.** The tokens that the response counts, times the prices. An attempt that may have been charged for, and
whose count never arrived, is taken to have cost the worst. A token is at least one byte of what the model is told.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import structlog

from hopper_common.clock import Clock
from hopper_router.llm import prompt
from hopper_router.llm.advisor import FREE, Advice, Cost, Question
from hopper_router.llm.dialect import Dialect, ReplyProblem, Usage
from hopper_router.llm.errors import LlmAnswerInvalid, LlmUnavailable

MOST_BYTES: Final = 256 * 1024
MOST_ERROR_BYTES: Final = 16 * 1024
CONNECT_TIMEOUT: Final = 5.0
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 8.0
OVERHEAD_TOKENS: Final = 1_000
"""What an endpoint adds to a request: marks of roles, and the words in which it tells the model of a tool."""

_AGAIN: Final = frozenset({429, 500, 502, 503, 504, 529})
_CHARGED: Final = frozenset({500, 502, 504})
"""After these the model may have answered, and only the answer been lost."""
_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is, and on what terms; prices are per million tokens."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    price_in: Decimal = Decimal(0)
    price_out: Decimal = Decimal(0)
    timeout: timedelta = timedelta(seconds=20)
    attempt_timeout: timedelta = timedelta(seconds=12)
    attempts: int = 3
    max_output_tokens: int = 2_000

    @property
    def host(self) -> str:
        """Name and port, for people."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    def cost(self, usage: Usage) -> Cost:
        """What so many tokens cost; a part of a millionth counts whole."""
        exact = usage.input_tokens * self.price_in + usage.output_tokens * self.price_out
        money = int(exact.to_integral_value(rounding=ROUND_CEILING))
        return Cost(usage.input_tokens, usage.output_tokens, money)


class _Refusal(NamedTuple):
    """A response that is no answer."""

    status: int
    retry_after: timedelta | None
    text: str


@dataclass(slots=True)
class _Asked:
    """One question on its way: until when, and what it has cost so far, the attempt that is under way at its worst."""

    question: Question
    prompt: prompt.Prompt
    end: float
    cost: Cost = FREE


class _Again(Exception):
    """This attempt failed, and another may not."""

    def __init__(self, error: LlmUnavailable, pause: timedelta | None = None) -> None:
        self.error = error
        self.pause = pause


class HttpAdvisor:
    """
    An `Advisor` behind an HTTP endpoint. Close it when nobody asks any more.

    Args:
        clock: For dates in `Retry-After`.
        tls: Whose certificates to trust, and how to show our own. Default: the system's usual authorities.
        pause: How to wait between attempts, for so many seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialect: Dialect,
        clock: Clock,
        *,
        tls: SSLContext | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._dialect = dialect
        self._clock = clock
        self._pause = pause
        self._http = httpx.AsyncClient(
            verify=True if tls is None else tls,
            follow_redirects=False,
            # A proxy that the environment names may stand between us and the world, not between us and ourselves.
            trust_env=not endpoint.local,
            timeout=httpx.Timeout(endpoint.attempt_timeout.total_seconds(), connect=CONNECT_TIMEOUT),
            # Compressed, a small response could be a large one.
            headers={"content-type": "application/json", "accept-encoding": "identity"},
        )

    async def __aenter__(self) -> HttpAdvisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    def worst_case(self, question: Question) -> Cost:
        """The most that asking this can cost: every attempt, at its worst."""
        one = self._worst_attempt(prompt.write(question))
        most = self._endpoint.attempts
        return Cost(one.input_tokens * most, one.output_tokens * most, one.money * most)

    async def advise(self, question: Question, *, timeout: timedelta | None = None) -> Advice:
        """See `Advisor`."""
        limit = min(timeout or self._endpoint.timeout, self._endpoint.timeout).total_seconds()
        asked = _Asked(question, prompt.write(question), asyncio.get_running_loop().time() + limit)
        try:
            async with asyncio.timeout_at(asked.end):
                return await self._try_all(asked)
        except TimeoutError:
            error: LlmUnavailable | LlmAnswerInvalid = self._late()
        except (LlmUnavailable, LlmAnswerInvalid) as failed:
            error = failed
        error.cost = asked.cost
        # Without its cause, which has the request in it, and that the key.
        raise error from None

    async def _try_all(self, asked: _Asked) -> Advice:
        attempt = 1
        while True:
            try:
                return await self._try(asked)
            except _Again as again:
                pause = _pause(attempt) if again.pause is None else again.pause.total_seconds()
                left = asked.end - asyncio.get_running_loop().time()
                if attempt >= self._endpoint.attempts or pause >= left:
                    raise again.error from None
                _log.info("the LLM fails, trying again", attempt=attempt, **again.error.metadata)
            await self._pause(pause)
            attempt += 1

    async def _try(self, asked: _Asked) -> Advice:
        """One attempt, and as many more as it takes to put the question as the endpoint wants it: those are free."""
        while True:
            sent, content = self._content(asked.prompt)
            before = asked.cost
            asked.cost = before + self._worst_attempt(asked.prompt)
            try:
                response = await self._exchange(content)
            except _UNSENT as error:
                asked.cost = before
                raise _Again(self._broken(error)) from None
            except httpx.TransportError as error:
                raise _Again(self._broken(error)) from None
            except TimeoutError:
                raise _Again(self._late()) from None
            if isinstance(response, bytes):
                return self._advice(asked, before, response)
            if response.status not in _CHARGED:
                asked.cost = before
            if not self._dialect.adapt(sent, response.status, response.text):
                raise self._refused(response)

    def _content(self, written: prompt.Prompt) -> tuple[dict[str, Any], bytes]:
        endpoint = self._endpoint
        body = self._dialect.body(written, model=endpoint.model, max_tokens=endpoint.max_output_tokens)
        return body, json.dumps(body, ensure_ascii=False).encode()

    def _worst_attempt(self, written: prompt.Prompt) -> Cost:
        # The schema is laid out for the model in the endpoint's own way, so that it counts double.
        told = len(f"{written.system}{written.user}".encode()) + 2 * len(json.dumps(written.schema))
        return self._endpoint.cost(Usage(told + OVERHEAD_TOKENS, self._endpoint.max_output_tokens))

    async def _exchange(self, content: bytes) -> bytes | _Refusal:
        endpoint = self._endpoint
        async with (
            asyncio.timeout(endpoint.attempt_timeout.total_seconds()),
            self._http.stream(
                "POST",
                endpoint.url.rstrip("/") + self._dialect.path,
                content=content,
                headers=dict(self._dialect.headers(endpoint.key)),
            ) as response,
        ):
            if response.status_code == HTTPStatus.OK:
                return await self._read(response)
            # Cut where it is long: it is only searched for the names of fields.
            text = await _some(response, MOST_ERROR_BYTES)
            wait = retry_after(response.headers, self._clock.now())
            return _Refusal(response.status_code, wait, text.decode(errors="replace"))

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._invalid("compressed, though that was not asked for")
        content = await _some(response, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise self._invalid(f"larger than {MOST_BYTES} bytes")
        return content

    def _advice(self, asked: _Asked, before: Cost, content: bytes) -> Advice:
        usage = self._dialect.usage(content)
        if usage is not None:
            asked.cost = before + self._endpoint.cost(usage)
        try:
            reply = self._dialect.reply(content)
            model = prompt.line(reply.model, prompt.WORD) or self._endpoint.model
            return prompt.read(reply.answer, asked.question, cost=asked.cost, model=model)
        except (ReplyProblem, prompt.AnswerProblem) as problem:
            raise self._invalid(str(problem)) from None

    # What went wrong, in words.

    def _refused(self, refusal: _Refusal) -> _Again | LlmUnavailable:
        host, status = self._endpoint.host, refusal.status
        error = LlmUnavailable(_words(host, status), host=host, cause=_cause(status), status=str(status))
        if refusal.retry_after is not None:
            error.retry_after = refusal.retry_after
        if status in _AGAIN:
            return _Again(error, refusal.retry_after)
        # Trying again cannot help: somebody has to change something first.
        error.retry_after = None
        return error

    def _late(self) -> LlmUnavailable:
        host = self._endpoint.host
        return LlmUnavailable(f"the LLM at {host} does not answer in time", host=host, cause="timeout")

    def _broken(self, error: httpx.TransportError) -> LlmUnavailable:
        if isinstance(error, httpx.TimeoutException):
            return self._late()
        host = self._endpoint.host
        return LlmUnavailable(
            f"the connection to the LLM at {host} fails ({type(error).__name__})",
            host=host,
            cause="connection",
        )

    def _invalid(self, problem: str) -> LlmAnswerInvalid:
        host = self._endpoint.host
        return LlmAnswerInvalid(
            f"the LLM at {host} answers what cannot be used: {problem}", host=host, problem=problem
        )


def retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """How long a response asks to wait: `Retry-After` in seconds or as a date, or in milliseconds as some write it."""
    try:
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]) / 1000)
        said = headers.get("retry-after", "")
        if said.strip().replace(".", "", 1).isdigit():
            return _bounded(float(said))
        when = parsedate_to_datetime(said)
        return _bounded((when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> timedelta:
    return timedelta(seconds=min(max(seconds, 0.0), 86_400.0))


def _pause(attempt: int) -> float:
    longest = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
    return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, keeps no secret


async def _some(response: httpx.Response, most: int) -> bytes:
    """At most that much of a response; the rest is never read."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) >= most:
            break
    return bytes(content[:most])


def _cause(status: int) -> str:
    if 300 <= status < 400:
        return "redirect"
    return "status" if status in _AGAIN else "refused"


def _words(host: str, status: int) -> str:
    if 300 <= status < 400:
        return f"the LLM at {host} redirects elsewhere: set HOPPER_LLM_URL to where its API really is"
    if status in (401, 403):
        return f"the LLM at {host} refuses the key: check HOPPER_LLM_API_KEY"
    if status == 404:
        return f"the LLM at {host} does not know the path or the model: check HOPPER_LLM_URL and HOPPER_LLM_MODEL"
    return f"the LLM at {host} answers with status {status}"
