"""HTTP/2 over TLS by hand, frame by frame: for what no gRPC library would ever send."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import unquote

import h2.connection
import h2.events
import h2.settings

from hopper_common.identity.certificates import Leaf

CHUNK: Final = 65_536


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC puts it into a stream."""
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


def tls_of(leaf: Leaf | None) -> ssl.SSLContext:
    """A client's TLS that shows a leaf, or none, and verifies nothing: the server is what is tested."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if leaf is not None:
        with TemporaryDirectory() as directory:  # ssl reads certificates from files only
            path = Path(directory) / "leaf.pem"
            path.write_bytes(leaf.key_pem + leaf.chain_pem)
            context.load_cert_chain(path)
    return context


@dataclass
class Answer:
    """What has come back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    over: bool = False

    @property
    def status(self) -> int | None:
        """gRPC's status code; None: there was none."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    @property
    def message(self) -> str:
        """gRPC's status message."""
        return unquote(self.headers.get("grpc-message", ""))


class Wire:
    """
    One connection. Made by `connected`.

    Attributes:
        h2: The protocol's state; what is done with it goes out with `flush`.
        closed: Whether the server has ended the connection.
        went_away: The error code of its GOAWAY.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = h2.connection.H2Connection()
        self.closed = False
        self.went_away: int | None = None
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, Answer] = {}
        self._news = asyncio.Event()

    async def flush(self) -> None:
        """Send what has been prepared."""
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def send_raw(self, content: bytes) -> None:
        """Send bytes as they are, whatever state the protocol is in. Raises ConnectionResetError when it has ended."""
        if self._writer.is_closing() or self.closed:
            raise ConnectionResetError
        self._writer.write(content)
        await self._writer.drain()

    def start(self, path: str, *, end: bool = False, more: Mapping[str, str] | None = None) -> int:
        """Begin a call; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "https",
            ":path": path,
            ":authority": "peer",
            "content-type": "application/grpc",
            "te": "trailers",
            **(more or {}),
        }
        self.h2.send_headers(stream, list(headers.items()), end_stream=end)
        self._answers[stream] = Answer()
        return stream

    async def write(self, stream: int, content: bytes, *, end: bool = True) -> None:
        """Send content on a stream, as fast as the server lets it; what it no longer wants is not sent."""
        answer = self._answers[stream]
        if not content:
            self.h2.end_stream(stream)
            await self.flush()
        while content and not (self.closed or answer.over):
            room = min(
                self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(content)
            )
            if room <= 0:
                await self._more()
                continue
            self.h2.send_data(stream, content[:room], end_stream=end and room == len(content))
            content = content[room:]
            await self.flush()

    async def call(self, path: str, content: bytes, **more: str) -> Answer:
        """Make a call and wait for its end."""
        stream = self.start(path, more=more)
        await self.write(stream, content)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        """Wait for the end of a stream, or of the connection."""
        answer = self._answers[stream]
        while not (answer.over or self.closed):
            await self._more()
        return answer

    async def read(self) -> None:
        """Take what comes, until the connection ends."""
        try:
            while content := await self._reader.read(CHUNK):
                for event in self.h2.receive_data(content):
                    self._take(event)
                await self.flush()
                self._news.set()
        except OSError:
            pass  # a reset is an end too
        finally:
            self.closed = True
            self._news.set()

    async def _more(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.went_away = int(event.error_code or 0)
            return
        stream = getattr(event, "stream_id", None)
        answer = self._answers.get(stream) if stream else None
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            answer.headers |= {_text(name): _text(value) for name, value in event.headers or ()}
        elif isinstance(event, h2.events.DataReceived):
            answer.data += event.data or b""
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            answer.reset, answer.over = int(event.error_code or 0), True
        elif isinstance(event, h2.events.StreamEnded):
            answer.over = True


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


@asynccontextmanager
async def connected(
    address: str,
    leaf: Leaf | None = None,
    *,
    window: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Wire]:
    """
    A connection that has shaken hands.

    Args:
        leaf: The certificate to show. Default: none.
        tls: Instead of the newest, with that certificate.
        window: How much the server may send on a stream before it is asked for more.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=tls or tls_of(leaf), server_hostname=""
    )
    wire = Wire(reader, writer)
    wire.h2.initiate_connection()
    if window is not None:
        wire.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    await wire.flush()
    reading = asyncio.create_task(wire.read())
    try:
        yield wire
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.transport.abort()
