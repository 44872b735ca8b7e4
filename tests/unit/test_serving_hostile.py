"""Bodies that mean no good: each is refused in the API's form, and the gateway lives on."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from tests.fixtures_gateway import OLD, claim, in_one_loop, over_http, png
from tests.fixtures_serving import gateway_process

from intonaco.codec import encode
from intonaco.errors import ConfigError
from intonaco.serving.gateway.intake import Receiving
from intonaco.serving.gateway.problems import Refused
from intonaco.types import Arm, ArmRole, Json, RoutingTable
from intonaco.workspace import Workspace

GENERATIONS, EDITS, FEEDBACK = "/v1/images/generations", "/v1/images/edits", "/v1/feedback"
JSON = {"content-type": "application/json"}
BOUNDARY = "----b"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
PROMPT = part("prompt", b"a cat")
PICTURE = part("image", png((8, 8)), "a.png")
BAD_MASK = part("mask", png((8, 8)), "m.png")  # decoded, then found to have no transparency


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(50 * 2**20))
    return out.getvalue()


def inflating_png(side: int) -> bytes:
    """One colour, ``side`` squared pixels of 8 bits: three orders of magnitude larger inside."""
    head = side.to_bytes(4) * 2 + b"\x08\0\0\0\0"
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def generations() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "no JSON", b"hello"
    yield "cut short", b'{"prompt": "a c'
    yield "two values", b'{"prompt": "x"} {}'
    yield "wrong top", b'["prompt"]'
    yield "null", b"null"
    yield "no UTF-8", b'{"prompt": "\xff\xfe"}'
    yield "UTF-16", '{"prompt": "x"}'.encode("utf-16")
    yield "lone surrogate", b'{"prompt": "\\ud800"}'
    yield "NUL", b'{"prompt": "a\\u0000b"}'
    yield "NUL bytes", bytes(100)
    yield "deep in the prompt", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "deep, not closed", b"[" * 1_000_000
    yield "deep objects", b'{"a":' * 100_000
    yield "many shallow lists", b'{"prompt": [' + b"[]," * 300_000 + b"[]]}"
    yield "quotes to confuse", b'{"prompt": ' + b'\\"' * 400_000
    yield "an endless number", b'{"prompt": "x", "seed": ' + b"9" * 500_000 + b"}"
    yield "an endless exponent", b'{"prompt": "x", "guidance_scale": 1e999999999}'
    yield "infinity", b'{"prompt": "x", "guidance_scale": Infinity}'
    yield "huge key", b'{"prompt": "x", "' + b"k" * 900_000 + b'": 1}'
    wrong = {
        "prompt": ["x"],
        "n": "1",
        "seed": 1.5,
        "steps": 10**30,
        "size": {"w": 1},
        "stream": "yes",
        "user": 5,
        "model": ["m"],
        "image": "https://example.com/cat.png",
        "mask": "data:image/png;base64,AAAA",
        "output_format": "svg",
        "partial_images": -1,
        "__proto__": {},
    }
    for name, value in wrong.items():
        yield f"wrong {name}", json.dumps({"prompt": "x"} | {name: value}).encode()


def edits() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "no end", PROMPT + PICTURE
    yield "cut in the picture", (PROMPT + PICTURE + END)[:-60]
    yield "no picture", PROMPT + END
    yield "no prompt", PICTURE + END
    yield "another boundary", (PROMPT + PICTURE + END).replace(b"----b", b"----c")
    yield "JSON", b'{"prompt": "x", "image": "https://example.com/cat.png"}'
    yield "a part without a name", PICTURE.replace(b'name="image"; ', b"") + PROMPT + END
    yield "a part without headers", f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END
    yield "header too long", PICTURE.replace(b"a.png", b"a" * 9000) + PROMPT + END
    yield "headers without end", f"--{BOUNDARY}\r\n".encode() + b"a: b\r\n" * 100 + END
    yield "many parts", PICTURE + PROMPT + part("user", b"u") * 1000 + END
    yield "a field twice", PICTURE + PROMPT + PROMPT + END
    yield "two pictures", PICTURE + PICTURE + PROMPT + END
    yield "picture as address", part("image", b"https://example.com/cat.png") + PROMPT + END
    yield "mask as address", PICTURE + part("mask", b"file:///etc/passwd") + PROMPT + END
    yield "address field", PICTURE + PROMPT + part("image_url", b"http://127.0.0.1/") + END
    yield "unknown file", PICTURE + PROMPT + part("markup", png((8, 8)), "m.png") + END
    yield "no UTF-8", PICTURE + part("prompt", b"\xff\xfe") + END
    yield "surrogate", PICTURE + part("prompt", b"\xed\xa0\x80") + END
    yield "NUL", PICTURE + part("prompt", b"a\0b") + END
    yield "NUL in a name", PICTURE + PROMPT + part("us\0er", b"u") + END
    yield "no number", PICTURE + PROMPT + part("n", b"many") + END
    yield "no share", PICTURE + PROMPT + part("strength", b"nan") + END
    yield "text too long", PICTURE + part("prompt", b"x" * 2**21) + END
    for name, raw in (
        ("zip", zipped()),
        ("gzip", gzip.compress(bytes(2**20))),
        ("inflating PNG", inflating_png(5000)),
        *((f"claiming {k}", claim(k, 16_000, 16_000)) for k in ("PNG", "JPEG", "WEBP")),
        ("empty", b""),
        ("zeros", bytes(1000)),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
    ):
        yield f"picture: {name}", part("image", raw, "a.png") + PROMPT + END
        yield f"mask: {name}", PICTURE + part("mask", raw, "m.png") + PROMPT + END


GENERATION_BODIES = dict(generations())
EDIT_BODIES = dict(edits())


def refused(answer: httpx.Response, name: str = "") -> None:
    assert 400 <= answer.status_code < 500, f"{name}: {answer.text}"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(answer.content) < 1000, "errors do not throw back what was sent"
    assert answer.headers["x-request-id"].startswith("req_")


async def all_refused(
    root: Path, path: str, bodies: dict[str, bytes], headers: dict[str, str]
) -> None:
    async with in_one_loop(root) as stage:
        stage.route()
        for name, body in bodies.items():
            answer = await stage.http.post(path, content=body, headers=headers)
            refused(answer, name)
        assert stage.old.asked == []
        assert (await stage.ask()).status_code == 200


async def test_generations(tmp_path: Path) -> None:
    await all_refused(tmp_path, GENERATIONS, GENERATION_BODIES, JSON)


async def test_edits(tmp_path: Path) -> None:
    await all_refused(tmp_path, EDITS, EDIT_BODIES, FORM)


async def test_feedback(tmp_path: Path) -> None:
    bodies = {n: b for n, b in GENERATION_BODIES.items() if len(b) < 8000}
    await all_refused(tmp_path, FEEDBACK, bodies, JSON)


HEADERS: list[tuple[str, dict[str, str], int]] = [
    (GENERATIONS, {"content-type": "text/plain"}, 415),
    (GENERATIONS, {"content-type": "application/x-www-form-urlencoded"}, 415),
    (GENERATIONS, FORM, 415),
    (GENERATIONS, JSON | {"content-encoding": "gzip"}, 415),
    (GENERATIONS, JSON | {"content-length": "99999999999"}, 413),
    (GENERATIONS, JSON | {"content-length": "9" * 50}, 413),
    (EDITS, JSON, 415),
    (EDITS, {}, 415),
    (EDITS, {"content-type": "multipart/form-data"}, 400),
    (EDITS, {"content-type": "multipart/form-data; boundary="}, 400),
    (EDITS, {"content-type": f"multipart/form-data; boundary={'x' * 300}"}, 400),
    (EDITS, {"content-type": "multipart/mixed; boundary=----b"}, 415),
    (EDITS, FORM | {"content-encoding": "deflate"}, 415),
    (EDITS, FORM | {"content-length": "99999999999"}, 413),
    (FEEDBACK, JSON | {"content-encoding": "gzip"}, 415),
    (FEEDBACK, {"content-type": "text/plain"}, 415),
]


async def test_headers(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        for path, headers, status in HEADERS:
            answer = await stage.http.post(path, content=b"{}", headers=headers)
            refused(answer, str(headers))
            assert answer.status_code == status, headers


async def test_bodies_longer_than_they_say(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10**6):
            yield b"x" * 2**16

    async with in_one_loop(tmp_path, "limits: {json_bytes: 1000, upload_bytes: 5000}") as stage:
        stage.route()
        for path, headers in ((GENERATIONS, JSON), (EDITS, FORM), (FEEDBACK, JSON)):
            answer = await stage.http.post(path, content=endless(), headers=headers)
            assert answer.status_code == 413
            refused(answer)
        body = PROMPT + part("image", bytes(6000), "a.png") + END
        answer = await stage.http.post(EDITS, content=body, headers=FORM)
        assert answer.status_code == 413


class Listening(asyncio.Protocol):
    """All that came before the connection ended, be it by a reset, which is what a byte gets that
    reaches a closed socket."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.begun: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._came = b""

    def data_received(self, data: bytes) -> None:
        self._came += data
        if not self.begun.done():
            self.begun.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_result(self._came)


async def test_a_body_that_trickles_is_refused_and_its_connection_closed(tmp_path: Path) -> None:
    """A byte now and then, for ever."""
    async with over_http(tmp_path, "limits: {body_seconds: 0.3}") as stage:
        stage.route()
        address = stage.url.removeprefix("http://").split(":")

        async def trickle(path: str, headers: dict[str, str], begin: bytes) -> bytes:
            loop = asyncio.get_running_loop()
            line, answer = await loop.create_connection(Listening, address[0], int(address[1]))
            lines = [f"POST {path} HTTP/1.1", "host: x", "content-length: 4000"]
            lines += [f"{k}: {v}" for k, v in headers.items()]
            line.write("\r\n".join([*lines, "", ""]).encode() + begin)

            async def more() -> None:
                while True:
                    line.write(b" ")
                    await asyncio.sleep(0.01)

            sending = asyncio.create_task(more())
            try:
                return await asyncio.wait_for(answer.whole, 20)
            finally:
                sending.cancel()
                line.close()

        answers = await asyncio.gather(
            trickle(GENERATIONS, JSON, b'{"prompt": '),
            trickle(EDITS, FORM, PROMPT),
            trickle(FEEDBACK, JSON, b""),
        )
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"body_too_slow"' in answer
        assert (await stage.ask()).status_code == 200


async def test_slow_uploads_hold_no_more_than_the_bound_together(tmp_path: Path) -> None:
    """Sixty real connections begin to send what each of them may, and never go on."""
    limits = "{upload_bytes: 1000000, json_bytes: 100000, receiving_bytes: 1000000}"
    async with over_http(tmp_path, f"limits: {limits}") as stage:
        stage.route()
        desk = stage.gateway.images
        host, port = stage.url.removeprefix("http://").split(":")
        begin = PROMPT + part("image", bytes(100_000), "a.png")[:-2]
        fields = {"host": "x", "content-length": "900000"} | FORM
        lines = [f"POST {EDITS} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        open_: list[asyncio.Transport] = []

        async def send() -> Listening:
            loop = asyncio.get_running_loop()
            line, heard = await loop.create_connection(Listening, host, int(port))
            line.write("\r\n".join(lines).encode() + begin)
            open_.append(line)
            return heard

        def held(count: int) -> bool:
            return desk.receiving_bytes == count * len(begin)

        for count in range(1, 10):
            await send()
            await until(partial(held, count))
        for heard in await asyncio.gather(*(send() for _ in range(51))):
            answer = await asyncio.wait_for(heard.begun, 20)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1\r\n" in answer
        assert desk.receiving_bytes == 9 * len(begin)
        assert f"receiving_bytes {9 * len(begin)}\n" in await stage.metrics()
        assert (await stage.ask()).status_code == 200, "what has no upload goes on"
        assert (await stage.edit(png((8, 8)))).status_code == 200, "there is room for a small one"
        assert (await stage.edit(bytes(200_000))).status_code == 429
        for line in open_:
            line.close()
        await until(lambda: desk.receiving_bytes == 0)
        assert (await stage.edit(bytes(200_000))).json()["error"]["code"] == "invalid_image"
        assert desk.receiving_bytes == 0


async def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in 20 s")


async def test_one_body_must_fit_into_what_may_be_received(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="receiving_bytes is 1000, less than a body may have"):
        async with in_one_loop(tmp_path, "limits: {receiving_bytes: 1000}"):
            pass


def test_room_is_refused_before_a_byte_is_read() -> None:
    receiving = Receiving(10)
    with receiving.room() as take:
        take(10)
        with pytest.raises(Refused, match="rate_limit"), receiving.room():
            pass
        with pytest.raises(Refused), receiving.room() as other:
            other(0)
    with receiving.room() as take, receiving.room() as other:
        take(6)
        with pytest.raises(Refused) as caught:
            other(5)
        assert (caught.value.status, receiving.held) == (429, 6)
        other(4)
    assert receiving.held == 0


async def test_limits_come_from_the_configuration(tmp_path: Path) -> None:
    limits = "{prompt_chars: 5, images: 2, area_factor: 1, steps_factor: 0.5, upload_pixels: 99}"
    async with in_one_loop(tmp_path, f"limits: {limits}") as stage:
        stage.route()
        for name, value in (("prompt", "x" * 6), ("n", 3), ("size", "128x64"), ("steps", 6)):
            fields: dict[str, Json] = {"prompt": "x", name: value}
            answer = await stage.ask(None, **fields)
            assert answer.json()["error"]["param"] == name
        assert (await stage.ask(prompt="xxxxx", n=2, size="64x64", steps=5)).status_code == 200
        assert (await stage.edit(png((10, 10)))).json()["error"]["code"] == "image_too_large"
    async with in_one_loop(tmp_path / "deep", "limits: {json_depth: 2}") as stage:
        nested: dict[str, Json] = {"string": [], "nested over 2 deep": [[]]}
        for says, prompt in nested.items():
            assert says in (await stage.ask(prompt=prompt)).json()["error"]["message"]


async def test_brackets_in_strings_nest_nothing(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        for prompt in ("[" * 100, 'a "[[[[[[[[[[[[[[[[[[[[[[[[[" \\', "{[" * 50 + '\\"]'):
            assert (await stage.ask(prompt=prompt)).status_code == 200


def memory(pid: int) -> int:
    """The most bytes that a process has held so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(s.split()[1]) for s in lines if s.startswith("VmHWM")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_nothing_is_inflated(tmp_path: Path) -> None:
    """A real process takes all of it, a picture of 100 MB in 100 kB among it, and holds no more
    memory than the bodies themselves."""
    workspace = Workspace(tmp_path)
    config = "service: tiny\nserving: {gateway: {port: 0}}\n"
    workspace.config_file.write_text(config)
    champion = Arm(
        name="champion",
        role=ArmRole.CHAMPION,
        release=OLD,
        urls=("http://127.0.0.1:9",),
        weight=1.0,
    )
    table = RoutingTable(service_id="tiny", epoch=1, salt="s", arms=(champion,))
    workspace.run.mkdir()
    (workspace.run / "routing.json").write_text(encode(table))
    bomb = inflating_png(10_000)
    assert len(bomb) < 200_000
    bombs = [
        part("image", bomb, "a.png") + PROMPT + END,
        PICTURE + part("mask", bomb, "m.png") + PROMPT + END,
    ]
    with (
        gateway_process(workspace) as info,
        httpx.Client(base_url=info.url or "", timeout=60, trust_env=False) as http,
    ):
        http.post(GENERATIONS, content=b"{}", headers=JSON)
        # Decoders are loaded with the first picture.
        http.post(EDITS, content=PICTURE + PROMPT + part("size", b"8") + END, headers=FORM)
        http.post(EDITS, content=PICTURE + BAD_MASK + PROMPT + END, headers=FORM)
        before = memory(info.pid)
        for body in GENERATION_BODIES.values():
            refused(http.post(GENERATIONS, content=body, headers=JSON))
        for body in (*EDIT_BODIES.values(), *bombs):
            refused(http.post(EDITS, content=body, headers=FORM))
        grown = memory(info.pid) - before
        assert grown < 48 * 2**20, f"{grown / 2**20:.0f} MiB"
        assert http.get("/livez").status_code == 200
