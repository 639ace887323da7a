"""
What surrounds every call, whatever its shape, from the outside in:

1. A call id and the method are bound to the log context of the call; when it fails in a way nobody foresaw,
that id is the *incident* the caller is told, and finds the trace in the log. Most calls neither fail nor log, so
the id is made when somebody looks at it. 2. The request is parsed here,
not by grpc, so that broken bytes get a typed answer like everything else. 3. The request is checked against
its limits (`hopper_common.rpc.limits`), and the guard (`hopper_common.rpc.guard`), which has let the call in before it
was read, judges what it names. 4. The handler runs; a unary call that came without a deadline gets
one. 5. What it raises is answered through the one table (`hopper_common.rpc.errors`). What nobody foresaw
is logged, and answered with its incident id and nothing else: exceptions quote data.

Handlers are coroutines or async generators. Request streams are read by iterating over them
(`context.read()` would give raw bytes). All responses go through one coroutine per call, so that a
generator is closed with its call, and not whenever the garbage collector finds it.
"""

import asyncio
import contextlib
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from hopper_common.auth.model import Access
from hopper_common.errors import (
    HopperError,
    Internal,
    MalformedRequest,
    PermissionDenied,
    RequestTooLarge,
    ShuttingDown,
)
from hopper_common.rpc.access import access_of
from hopper_common.rpc.errors import DeadlineExceeded, MethodNotOffered, code_of, to_status
from hopper_common.rpc.guard import UNNOTICED, Door, Guard, NoGuard, Refusal, Visit
from hopper_common.rpc.limits import compile_limits
from hopper_common.rpc.named import Named, compile_names

log = structlog.get_logger(__name__)

UNARY_CAP = timedelta(seconds=60)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs only
_Context = grpc.aio.ServicerContext[Any, Any]
_Work = Callable[[Visit], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method before the first call. `path` is as on the wire:
    `/package.Service/Method`."""

    path: str
    service: str
    access: Access
    request_type: type[Message]
    check: Callable[[Message], None]
    names: Callable[[Message], Named]
    streams_in: bool
    streams_out: bool
    outlives_drain: bool

    @classmethod
    def of(cls, descriptor: MethodDescriptor) -> "Method":
        """
        Compile a method.

        Raises:
            ValueError: A field of its request declares a limit that does not fit its type.
        """
        service = descriptor.containing_service
        request, access = descriptor.input_type, access_of(descriptor)
        return cls(
            path=f"/{service.full_name}/{descriptor.name}",
            service=service.full_name,
            access=access,
            request_type=GetMessageClass(request),
            check=compile_limits(request),
            names=compile_names(request, access),
            streams_in=descriptor.client_streaming,
            streams_out=descriptor.server_streaming,
            outlives_drain=service.full_name == health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        )

    def parse(self, raw: bytes) -> Message:
        """
        Turn bytes into a request that keeps to its limits.

        Raises:
            RequestTooLarge: Before anything is parsed.
            MalformedRequest: Not this message, or its text is not UTF-8.
            UnknownField: See `hopper_common.rpc.limits`.
            InvalidArgument: See `hopper_common.rpc.limits`.
        """
        if len(raw) > self.access.max_request_bytes:
            raise RequestTooLarge(bytes=str(len(raw)), max_bytes=str(self.access.max_request_bytes))
        try:
            message = self.request_type.FromString(raw)
        except (DecodeError, UnicodeDecodeError) as error:
            raise MalformedRequest(method=self.path) from error
        self.check(message)
        return message


@dataclass(slots=True)
class _OpenStream:
    """A stream that a drain ends; not while it writes, because a call cannot be ended during a write."""

    writing: bool = False


class _Cap:
    """
    Ends calls that take longer than *seconds*.

    One timer for all of them: they come in the order in which they are due, so only the first has to be watched.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._watching = False

    async def keep(self, work: Awaitable[Any], method: Method) -> Any:
        """
        Wait for a call's work, in the call's own task.

        Raises:
            DeadlineExceeded: It was not done in time, and was cancelled.
        """
        task, loop = cast("asyncio.Task[Any]", asyncio.current_task()), asyncio.get_running_loop()
        self._due[task] = loop.time() + self._seconds
        if not self._watching:
            self._watching = True
            loop.call_later(self._seconds, self._end_overdue, loop)
        try:
            return await work
        except asyncio.CancelledError as error:
            # Who was cancelled besides, by the client or a stop, is no longer waited for.
            if task not in self._overdue or task.uncancel() > 0:
                raise
            raise DeadlineExceeded(method=method.path, seconds=f"{self._seconds:g}") from error
        finally:
            self._due.pop(task, None)
            self._overdue.discard(task)

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._due:
            task, due = next(iter(self._due.items()))
            if due > now:
                loop.call_at(due, self._end_overdue, loop)
                return
            del self._due[task]
            self._overdue.add(task)
            task.cancel()
        self._watching = False


class CallInterceptor:
    """
    What surrounds the handlers of a Hopper server, put around each when it is registered.

    No `grpc.aio.ServerInterceptor`: those are run for every call anew, though what they return never changes.

    Args:
        services: What the server offers. Calls of anything else are answered METHOD_NOT_OFFERED.
        unary_cap: How long a unary call without a deadline may take. Streams have no cap.
    """

    def __init__(self, services: Iterable[ServiceDescriptor], *, unary_cap: timedelta = UNARY_CAP) -> None:
        methods = (Method.of(method) for service in services for method in service.methods)
        self._methods: Mapping[str, Method] = {method.path: method for method in methods}
        self._cap = _Cap(unary_cap.total_seconds())
        self._streams: dict[asyncio.Task[Any], _OpenStream] = {}
        self._draining = False
        self._ended: dict[asyncio.Task[Any], HopperError] = {}

    def surround(
        self, service: str, handlers: Mapping[str, _Handler], guard: Guard | None = None
    ) -> dict[str, _Handler]:
        """
        The handlers of a service by method name, as they are to be registered.

        Args:
            guard: Who may come in. Default: everybody.
        """
        return {
            name: self._wrap(handler, f"/{service}/{name}", guard or NoGuard())
            for name, handler in handlers.items()
        }

    def end(self, task: asyncio.Task[Any], error: HopperError) -> None:
        """End one call under way, with that answer."""
        self._ended[task] = error
        stream = self._streams.get(task)
        if stream is None or not stream.writing:  # else it ends by itself when that is written
            task.cancel()

    def drain(self) -> None:
        """
        End all streams, now and from now on, with SHUTTING_DOWN. Unary calls in flight go on.

        A watcher stays connected for days: waiting for it would make every stop last its whole grace. Only one that
        has stopped reading, and so holds up a write, is waited for that long.
        """
        self._draining = True
        for task, stream in self._streams.items():
            if not stream.writing:  # those end by themselves when it is written
                task.cancel()

    # The four shapes.

    def _wrap(self, handler: _Handler, path: str, guard: Guard) -> _Handler:
        behaviour, method = _behaviour(handler), self._methods.get(path)
        written = inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)
        if method is None or not written:  # the generated base class: nobody has written this method
            return not_offered(path)
        entry = _Entry(method, guard, guard.door(method, self.end))
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
            if not handler.request_streaming:
                make = grpc.unary_stream_rpc_method_handler
            surrounded = self._streaming(behaviour, entry)
        else:
            make = grpc.stream_unary_rpc_method_handler
            if not handler.request_streaming:
                make = grpc.unary_unary_rpc_method_handler
            surrounded = self._single(behaviour, entry)
        # No deserializer: the wrapped behaviour is handed the raw bytes.
        return make(surrounded, response_serializer=_serializer(handler))

    def _single(self, behaviour: Callable[..., Any], entry: "_Entry") -> Any:
        """The shapes with one response."""
        method, guard, door = entry.method, entry.guard, entry.door
        parse = method.parse

        async def unary_unary(raw: bytes, context: _Context) -> Any:
            call = _Call(method)
            visit: Visit = UNNOTICED
            try:
                self._refuse_when_draining(method)
                visit = door(context)
                request = parse(raw)
                ticket = visit.about(request)
                if ticket:
                    await guard.recorded(ticket)
                if cast("float | None", context.time_remaining()) is None:
                    return await self._cap.keep(behaviour(request, context), method)
                # grpc cancels the call when the client's own deadline passes
                return await behaviour(request, context)
            except BaseException as error:
                await self._settle(error, call, context, entry, visit)
                raise
            finally:
                self._leave(visit)
                call.finish()

        async def stream_unary(raws: AsyncIterator[bytes], context: _Context) -> Any:
            async def work(visit: Visit) -> Any:
                return await behaviour(entry.parsed(raws, visit), context)

            with self._open_stream(method):
                return await self._surround(work, context, entry)

        return stream_unary if method.streams_in else unary_unary

    def _streaming(self, behaviour: Callable[..., Any], entry: "_Entry") -> Any:
        """The shapes with a stream of responses."""
        method = entry.method

        async def respond(incoming: Any, context: _Context) -> None:
            async def work(visit: Visit) -> None:
                request: Any
                if method.streams_in:
                    request = entry.parsed(incoming, visit)
                else:
                    request = await entry.judged(method.parse(incoming), visit)
                if inspect.iscoroutinefunction(behaviour):
                    await behaviour(request, context)
                    return
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        stream.writing = True
                        await context.write(response)
                        stream.writing = False
                        self._refuse_when_draining(method)
                        if self._ended:
                            self._refuse_when_ended()

            with self._open_stream(method) as stream:
                await self._surround(work, context, entry)

        return respond

    @contextlib.contextmanager
    def _open_stream(self, method: Method) -> Iterator["_OpenStream"]:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        stream = _OpenStream()
        if not method.outlives_drain:
            self._streams[task] = stream
        try:
            yield stream
        finally:
            self._streams.pop(task, None)

    def _refuse_when_draining(self, method: Method) -> None:
        if self._draining and not method.outlives_drain:
            raise ShuttingDown(service=method.service)

    def _refuse_when_ended(self) -> None:
        error = self._ended.pop(cast("asyncio.Task[Any]", asyncio.current_task()), None)
        if error is not None:
            raise error

    # Around the handler.

    async def _surround(self, work: _Work, context: _Context, entry: "_Entry") -> Any:
        call = _Call(entry.method)
        visit: Visit = UNNOTICED
        try:
            self._refuse_when_draining(entry.method)
            visit = entry.door(context)
            return await work(visit)
        except BaseException as error:
            await self._settle(error, call, context, entry, visit)
            raise
        finally:
            self._leave(visit)
            call.finish()

    def _leave(self, visit: Visit) -> None:
        visit.leave()
        if self._ended:  # a handler may have kept its end to itself
            self._ended.pop(cast("asyncio.Task[Any]", asyncio.current_task()), None)

    async def _settle(
        self, error: BaseException, call: "_Call", context: _Context, entry: "_Entry", visit: Visit
    ) -> None:
        """Answer what a call raised; returns where that is the caller's to raise again."""
        if isinstance(error, grpc.aio.AbortError):
            call.code = "ABORT"  # the handler has answered by itself
        elif isinstance(error, asyncio.CancelledError):
            call.code = "CANCELLED"
            answer = self._reason_to_end(call.method)
            if answer is not None:
                call.code = code_of(answer).name
                await context.abort_with_status(to_status(answer))
        elif isinstance(error, grpc.aio.BaseError):
            call.code = "BROKEN"  # the connection: there is nobody to answer
        elif isinstance(error, Exception):
            answer = _foreseen(await entry.refused(error, visit)) or _unforeseen(error, str(call.id))
            call.code = code_of(answer).name
            await context.abort_with_status(to_status(answer))

    def _reason_to_end(self, method: Method) -> HopperError | None:
        """What the call that runs here is to be answered, if it was this server that has cancelled it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        stream, error = self._streams.get(task), self._ended.pop(task, None)
        if error is None and self._draining and stream is not None and not stream.writing:
            error = ShuttingDown(service=method.service)
        if error is not None:
            task.uncancel()
        return error


class _Entry:
    """How calls of one method come in."""

    __slots__ = ("door", "guard", "method")

    def __init__(self, method: Method, guard: Guard, door: Door) -> None:
        self.method = method
        self.guard = guard
        self.door = door

    async def judged(self, request: Message, visit: Visit) -> Message:
        """The request, if what it names is for the caller."""
        ticket = visit.about(request)
        if ticket:
            await self.guard.recorded(ticket)
        return request

    async def parsed(self, raws: AsyncIterator[bytes], visit: Visit) -> AsyncIterator[Message]:
        """The requests of a stream, no faster than they may come."""
        first = True
        async for raw in raws:
            if not first:
                await _wait_for_turn(visit)
            first = False
            yield await self.judged(self.method.parse(raw), visit)

    async def refused(self, error: Exception, visit: Visit) -> Exception:
        """What to answer for a refusal, of the guard or of the handler, once it is written down; other errors as is."""
        if isinstance(error, Refusal):
            ticket, answer = error.ticket, error.error
        elif isinstance(error, PermissionDenied):
            ticket, answer = visit.denied(error), error
        else:
            return error
        if ticket:
            try:
                await self.guard.recorded(ticket)
            except HopperError as unwritten:
                return unwritten
        return answer


class _CallId:
    """What a call is known by in the log: 16 hexadecimal digits, made when they are first looked at."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def __str__(self) -> str:
        self._text = self._text or secrets.token_hex(8)
        return self._text

    __repr__ = __str__


class _Call:
    """A call under way: its id, which is bound to the log context, and what came of it."""

    __slots__ = ("_started", "code", "id", "method")

    def __init__(self, method: Method) -> None:
        self.id = _CallId()
        self.method = method
        self.code = "OK"
        self._started = time.perf_counter()
        _CALL.set(self.id)
        _METHOD.set(method.path)

    def finish(self) -> None:
        """Log it, if such things are logged."""
        if _debugging():
            milliseconds = round((time.perf_counter() - self._started) * 1000, 3)
            log.debug("call finished", code=self.code, milliseconds=milliseconds)


def _log_variables() -> Iterator[ContextVar[Any]]:
    """The variables of the log context that calls bind; setting them is what `bind_contextvars` does, slower."""
    tokens = structlog.contextvars.bind_contextvars(call="", method="")
    structlog.contextvars.reset_contextvars(**tokens)
    return (tokens[name].var for name in ("call", "method"))


_CALL, _METHOD = _log_variables()
_shows_debug: dict[type, bool] = {}


def _debugging() -> bool:
    """Whether debug entries are logged, as structlog is configured now."""
    wrapper = structlog.get_config()["wrapper_class"]
    shows = _shows_debug.get(wrapper)
    if shows is None:
        enabled = getattr(log.bind(), "is_enabled_for", None)
        shows = _shows_debug[wrapper] = enabled is None or enabled(logging.DEBUG)
    return shows


def _serializer(handler: _Handler) -> Callable[[Any], bytes]:
    """Handlers may answer with the bytes of their message: what was stored as bytes need not be parsed."""
    serialize = cast("Callable[[Any], bytes]", handler.response_serializer)
    return lambda response: response if type(response) is bytes else serialize(response)


def _behaviour(handler: _Handler) -> Callable[..., Any]:
    shapes = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return cast("Callable[..., Any]", next(shape for shape in shapes if shape is not None))


async def _wait_for_turn(visit: Visit) -> None:
    wait = visit.another()
    while wait:
        await asyncio.sleep(wait)
        wait = visit.another()


def not_offered(path: str) -> _Handler:
    """What answers calls of a method that nobody has written."""

    async def answer(requests: AsyncIterator[bytes], context: _Context) -> None:
        await context.abort_with_status(to_status(MethodNotOffered(method=path)))

    # On the wire all shapes look the same, and this one reads nothing before it answers.
    return grpc.stream_stream_rpc_method_handler(answer)


def _foreseen(error: Exception) -> HopperError | None:
    """
    The domain error that *error* is, if it is one.

    A handler with a task group raises a group around it; a group of which all members are domain errors is
    its first.
    """
    if isinstance(error, ExceptionGroup):
        foreseen, rest = error.split(HopperError)
        if foreseen is None or rest is not None:
            return None
        return _foreseen(foreseen.exceptions[0])
    return error if isinstance(error, HopperError) and not isinstance(error, Internal) else None


def _unforeseen(error: Exception, call: str) -> HopperError:
    log.error("call failed: this is a defect", incident=call, exc_info=error)
    return Internal(
        f"internal error, incident {call}: the server's log tells more under that id", incident=call
    )
