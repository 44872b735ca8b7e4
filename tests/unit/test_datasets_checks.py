"""Broken, wrong and hostile images and captions, each found by its name, and none a failure."""

import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from intonaco.config import KINDS, CheckBounds, Data
from intonaco.datasets.alike import earlier_alike
from intonaco.datasets.looking import look
from intonaco.datasets.validation import HeldOut, Report, Rules, held_out, validate
from intonaco.errors import ConfigError
from intonaco.monitoring.pictures import bits_between, perceptual_hash

MOST = 2**16  # pixels


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture with something on it, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bytes_of(image: Image.Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def folder_of(root: Path, files: dict[str, bytes], captions: dict[str, Any] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, raw in files.items():
        (root / name).write_bytes(raw)
        lines.append(json.dumps({"file_name": name, "text": (captions or {}).get(name, "text")}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def found(report: Report) -> dict[str, set[str]]:
    """Kinds by file."""
    of: dict[str, set[str]] = {}
    for problem in (*report.problems, *report.warnings):
        of.setdefault(problem.file, set()).add(problem.kind)
    return of


def rules(**data: Any) -> Rules:
    return Rules(data=Data.model_validate(data), min_side=16)


def cmyk() -> bytes:
    return bytes_of(picture().convert("CMYK"), "JPEG")


def see_through() -> bytes:
    image = picture().convert("RGBA")
    image.putpixel((0, 0), (9, 9, 9, 0))
    return bytes_of(image, "PNG")


def deep() -> bytes:
    return bytes_of(Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)), "PNG")


def deep_colour() -> bytes:
    """16-bit RGB, which Pillow reads but cannot write."""
    rows = b"".join(b"\0" + os.urandom(40 * 6) for _ in range(40))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes_of(picture(), "JPEG", exif=exif)


def moving(kind: str) -> bytes:
    more = [picture(s) for s in (1, 2)]
    return bytes_of(picture(), kind, save_all=True, append_images=more)


WRONG: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "cmyk": ("x.jpg", cmyk, "cmyk"),
    "alpha": ("x.png", see_through, "alpha"),
    "alpha of webp": ("x.webp", lambda: bytes_of(_ghost(), "WEBP", lossless=True), "alpha"),
    "palette": ("x.png", lambda: bytes_of(picture().convert("P"), "PNG"), "palette"),
    "16 bits grey": ("x.png", deep, "deep"),
    "16 bits colour": ("x.png", deep_colour, "deep"),
    "rotated": ("x.jpg", turned, "rotated"),
    "animated png": ("x.png", lambda: moving("PNG"), "animated"),
    "animated webp": ("x.webp", lambda: moving("WEBP"), "animated"),
    "suffix": ("x.png", lambda: bytes_of(picture(), "JPEG"), "suffix"),
    "small": ("x.png", lambda: bytes_of(picture(size=(15, 40)), "PNG"), "small"),
    "aspect": ("x.png", lambda: bytes_of(picture(size=(20, 90)), "PNG"), "aspect"),
    "gif by another name": ("x.png", lambda: bytes_of(picture(), "GIF"), "unreadable"),
    "eps by another name": ("x.png", lambda: bytes_of(picture(), "EPS"), "unreadable"),
    "too many pixels": ("x.png", lambda: bytes_of(Image.new("1", (900, 900)), "PNG"), "bomb"),
    "too many bytes": ("x.png", lambda: bytes(MOST * 8 + 2**20 + 1), "bomb"),
}


def _ghost() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(100)
    return image


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_image_is_named(name: str, tmp_path: Path) -> None:
    file, make, kind = WRONG[name]
    folder = folder_of(tmp_path, {"good.png": bytes_of(picture(9), "PNG"), file: make()})
    bounds = {"max_pixels": MOST}
    report = validate(folder, rules(bounds=bounds))
    assert found(report) == {file: {kind}}
    policy = Data().policy(kind)  # type: ignore[arg-type]
    names = [e["file_name"] for e in report.entries]
    assert names == (["good.png", file] if policy == "warn" else ["good.png"])
    for asked in ("drop", "fail"):
        report = validate(folder, rules(bounds=bounds, checks={kind: asked}))
        assert [e["file_name"] for e in report.entries] == ["good.png"]
        assert bool(report.failures) == (asked == "fail")


@pytest.mark.parametrize(
    "image",
    [
        picture(),
        picture().convert("L"),
        picture().convert("1"),
        picture().convert("RGBA"),  # wholly opaque
    ],
)
def test_what_converts_without_loss_is_well(image: Image.Image, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a.png": bytes_of(image, "PNG")})
    report = validate(folder, rules())
    assert (report.problems, report.warnings, report.items) == ((), (), 1)


def test_a_bomb_is_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG of 2.5 gigapixels in 12 kB of zeros, and one of a terapixel with no data at all."""
    for n, side in enumerate((50_000, 1_000_000)):
        head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(2**20), 9)), (b"IEND", b""))
        raw = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(b)) + c + b + struct.pack(">I", zlib.crc32(c + b))
            for c, b in chunks
        )
        (tmp_path / f"{n}.png").write_bytes(raw)
    monkeypatch.setattr(Image.Image, "load", pytest.fail)
    for n in (0, 1):
        (kind, _), *rest = look(tmp_path / f"{n}.png", 2**26).found
        assert (kind, rest) == ("bomb", [])


def test_a_text_chunk_that_blows_up_is_refused(tmp_path: Path) -> None:
    raw = bytes_of(picture(), "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(80 * 2**20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    (tmp_path / "x.png").write_bytes(raw[:33] + chunk + raw[33:])
    assert [k for k, _ in look(tmp_path / "x.png", MOST).found] == ["unreadable"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_cut_image_passes(kind: str, tmp_path: Path) -> None:
    """Cut at any byte: found, or the very same pixels."""
    raw = bytes_of(picture(), kind)
    rng = random.Random(3)
    cuts = {0, 1, len(raw) - 1, len(raw) - 2, *(rng.randrange(len(raw)) for _ in range(120))}
    file = tmp_path / f"x.{kind.lower()}"
    for cut in cuts:
        file.write_bytes(raw[:cut])
        assert [k for k, _ in look(file, MOST).found] == ["unreadable"], cut


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_images_never_fail_the_check(kind: str, tmp_path: Path) -> None:
    """Bytes changed at random: a look comes back whatever the decoder makes of them."""
    exif = Image.Exif()
    exif[0x0112] = 1
    raw = bytes_of(picture(), kind, exif=exif)
    rng = random.Random(4)
    file = tmp_path / f"x.{kind.lower()}"
    unreadable = 0
    for _ in range(250):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(min(len(raw), rng.choice((64, len(raw)))))] = rng.randrange(256)
        file.write_bytes(damaged)
        kinds = {k for k, _ in look(file, MOST).found}
        assert kinds <= set(KINDS)
        unreadable += bool(kinds & {"unreadable", "bomb"})
    assert unreadable > 50


def test_metadata_in_any_bytes_is_told_line_by_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"good.png": bytes_of(picture(), "PNG")})
    good = (folder / "metadata.jsonl").read_bytes()
    rng = random.Random(5)
    lines = [rng.randbytes(rng.randrange(1, 60)).replace(b"\n", b"") for _ in range(200)]
    lines += [b'{"file_name": "caf\xe9.png", "text": "latin one"}', b"[" * 100_000]
    (folder / "metadata.jsonl").write_bytes(good + b"\n" + b"\n".join(lines))
    report = validate(folder, rules())
    assert [e["file_name"] for e in report.entries] == ["good.png"]
    assert set(report.counts) == {"encoding", "metadata"}
    assert sum(report.counts.values()) == sum(bool(line.strip()) for line in lines)
    assert any("byte 19 is 0xe9" in p.detail for p in report.problems)


@pytest.mark.parametrize(
    "name",
    ["a\0b.png", "\ud800.png", "x" * 300 + ".png", "x/" * 3000 + "y.png", "good.png/x.png", ".png"],
)
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"good.png": bytes_of(picture(), "PNG")})
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": name, "text": "a text"}))
    report = validate(folder, rules())
    assert [e["file_name"] for e in report.entries] == ["good.png"]
    assert len(report.problems) == 1


def test_captions(tmp_path: Path) -> None:
    captions = {
        "a.png": "x" * 41,
        "b.png": ["short", "y" * 41],
        "c.png": "x" * 40,
        "d.png": "\ud800",
    }
    files = {name: bytes_of(picture(n), "PNG") for n, name in enumerate(captions)}
    folder = folder_of(tmp_path, files, captions)
    report = validate(folder, Rules(min_side=16, most=40))
    assert found(report) == {
        "a.png": {"caption_long"},
        "b.png": {"caption_long"},
        "d.png": {"encoding"},
    }
    words = Rules(min_side=16, most=2, count=lambda text: len(text.split()), unit="words")
    assert "caption_long" not in {p.kind for p in validate(folder, words).warnings}


def test_forbidden_files_are_told_by_what_they_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", {"good.png": bytes_of(picture(), "PNG")})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "b")
    for name, raw in {
        "run.py": b"print()",
        "data.zip": out.getvalue(),
        "notes": out.getvalue(),
        "weights": b"\x80\x04\x95",
        "go": b"#!/bin/sh",
        "README.txt": b"hello",
    }.items():
        (folder / name).write_bytes(raw)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.png").write_bytes(bytes_of(picture(1), "PNG"))
    (folder / "sub").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": "sub/s.png", "text": "from elsewhere"}))
    report = validate(folder, rules(on_invalid="drop"))
    said = {
        p.file: p.detail.removesuffix(": it does not belong into a dataset")
        for p in report.problems
    }
    assert said == {
        "run.py": "is a script",
        "data.zip": "is an archive",
        "notes": "is an archive",
        "weights": "is a pickle",
        "go": "is a script",
        "README.txt": "is neither an image nor the metadata",
        "sub": "is a link",
        "sub/s.png": "is a link",
        "pipe.png": "is neither an image nor the metadata",
    }
    assert {p.kind for p in report.problems} == {"forbidden"}
    assert [e["file_name"] for e in report.entries] == ["good.png"]


def test_near_duplicates_across_sizes_and_formats(tmp_path: Path) -> None:
    one, other = picture(1, (96, 80)), picture(2, (96, 80))
    files = {
        "a.png": bytes_of(one, "PNG"),
        "b.jpg": bytes_of(one.resize((60, 50)), "JPEG", quality=80),
        "c.png": bytes_of(other, "PNG"),
        "d.webp": bytes_of(other, "WEBP"),
        "e.png": bytes_of(one, "PNG"),
        "f.png": bytes_of(picture(3), "PNG"),
        "white.png": bytes_of(Image.new("RGB", (40, 40), "white"), "PNG"),
        "black.png": bytes_of(Image.new("RGB", (40, 40), "black"), "PNG"),
    }
    folder = folder_of(tmp_path, files)
    report = validate(folder, rules(checks={"near_duplicate": "drop", "duplicate": "drop"}))
    assert {(p.file, p.kind, p.other) for p in report.problems} == {
        ("b.jpg", "near_duplicate", "a.png"),
        ("d.webp", "near_duplicate", "c.png"),
        ("e.png", "duplicate", "a.png"),
    }
    kept = {str(e["file_name"]) for e in report.entries}
    assert kept == {"a.png", "c.png", "f.png", "white.png", "black.png"}


def test_one_that_is_dropped_for_another_reason_stands_for_nobody(tmp_path: Path) -> None:
    files = {"a.png": turned(), "b.jpg": bytes_of(picture(), "JPEG"), "c.png": turned()}
    report = validate(folder_of(tmp_path, files), rules(on_invalid="drop"))
    assert [e["file_name"] for e in report.entries] == ["b.jpg"]
    assert set(report.counts) == {"rotated"}


def test_leaks_from_what_is_held_out(tmp_path: Path) -> None:
    held, again, own = picture(1, (64, 64)), picture(1, (64, 64)), picture(2, (64, 64))
    reference = folder_of(tmp_path / "reference", {"r.png": bytes_of(held, "PNG")})
    (reference / "notes.txt").write_text("no image")
    files = {
        "same.png": bytes_of(held, "PNG"),
        "near.jpg": bytes_of(again.resize((50, 50)), "JPEG"),
        "own.png": bytes_of(own, "PNG"),
    }
    captions = {"own.png": ["another", " A  Cat on\ta mat"]}
    held_back = held_out(reference, ["a cat on a mat"], max_pixels=MOST)
    assert held_back.files == ("r.png",)
    given = Rules(min_side=16, held_out=held_back)
    report = validate(folder_of(tmp_path / "data", files, captions), given)
    assert {(p.file, p.kind, p.other) for p in (*report.problems, *report.warnings)} == {
        ("same.png", "leak", "r.png"),
        ("near.jpg", "near_leak", "r.png"),
        ("own.png", "prompt_leak", ""),
    }
    with pytest.raises(ConfigError, match=r"same\.png: is the held-out image r\.png"):
        report.raise_if_invalid()


def brute_force(hashes: list[str], bits: int, held: int) -> dict[int, int]:
    """By the definition: in order, each against all that stand."""
    standing, result = list(range(held)), {}
    for i, h in enumerate(hashes):
        if i < held or not int(h or "0", 16):
            continue
        near = [
            s for s in standing if int(hashes[s] or "0", 16) and bits_between(hashes[s], h) <= bits
        ]
        if near:
            result[i] = min(near)
        else:
            standing.append(i)
    return result


@pytest.mark.parametrize("bits", [0, 1, 4, 7, 12])
@pytest.mark.parametrize("held", [0, 25])
def test_alike_agrees_with_comparing_everything(
    bits: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intonaco.datasets.alike.AT_ONCE", 300)
    rng = random.Random(bits)
    centres = [rng.getrandbits(64) for _ in range(12)] + [0]
    hashes = []
    for _ in range(400):
        word = rng.choice(centres)
        for _ in range(rng.randrange(2 * bits + 2)):
            word ^= 1 << rng.randrange(64)
        hashes.append(f"{word:016x}")
    hashes[7] = hashes[30] = ""
    ours, theirs = earlier_alike(hashes, bits, held=held), brute_force(hashes, bits, held)
    assert set(ours) == set(theirs)
    for place, other in ours.items():
        assert other in set(range(held)) | (set(range(400)) - set(theirs))
        assert bits_between(hashes[place], hashes[other]) <= bits or hashes[place] in {
            hashes[p] for p in theirs
        }


def test_many_images_are_compared_without_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work done grows with what is found alike, not with the square of the images."""
    from intonaco.datasets import alike

    done = 0
    real = alike._distance

    def counting(a: Any, b: Any) -> Any:
        nonlocal done
        done += len(a)
        return real(a, b)

    monkeypatch.setattr(alike, "_distance", counting)
    rng = np.random.default_rng(0)
    hashes = [f"{int(w):016x}" for w in rng.integers(1, 2**63, 20_000)]
    hashes[15_000] = f"{int(hashes[3], 16) ^ 0b1011:016x}"
    assert earlier_alike(hashes, 4) == {15_000: 3}
    assert done < 20_000**2 / 100


def test_similar_pictures_are_near_and_others_are_not() -> None:
    """The default bound against what it is for."""
    bits = CheckBounds().near_bits
    pictures = [picture(n, (120, 100)) for n in range(60)]
    hashes = [perceptual_hash(p) for p in pictures]
    assert earlier_alike(hashes, bits) == {}
    for n, image in enumerate(pictures):
        changed = image.resize((90, 75)).point(lambda v: min(255, int(v * 1.06)))
        assert bits_between(hashes[n], perceptual_hash(changed)) <= bits


def test_only_what_can_be_used_may_be_let_through() -> None:
    for kind in ("unreadable", "missing", "forbidden", "caption"):
        with pytest.raises(ValidationError, match=f"checks.{kind}"):
            Data(checks={kind: "warn"})
    with pytest.raises(ValidationError, match="checks"):
        Data.model_validate({"checks": {"ugly": "drop"}})
    data = Data(on_invalid="drop", checks={"leak": "fail", "near_duplicate": "drop"})
    assert [data.policy(k) for k in ("alpha", "leak", "near_duplicate", "near_leak")] == [
        *("drop", "fail", "drop", "warn"),
    ]


def test_nothing_held_out_leaks_nothing(tmp_path: Path) -> None:
    assert held_out(None, ["A  b"]) == HeldOut(prompts=frozenset({"a b"}))
