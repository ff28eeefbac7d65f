"""Encoded images to pixels; what is no image costs its own row."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engine.scrub.features.image import _notes
from engine.types import Batch
from tests.scrub.conftest import photo
from tests.size import examples

Run = Callable[..., list[Batch]]


def pixels(batch: Batch, column: str = "x") -> NDArray[np.uint8]:
    return batch.frame[column].to_numpy()


def encoded(array: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours, so that decoders and filters may differ by little only."""
    y, x = np.mgrid[0 : np.pi : height * 1j, 0 : np.pi : width * 1j]
    waves = [np.sin(x) * np.sin(y), np.cos(x) ** 2, np.sin(y + x) ** 2]
    return (255 * np.stack(waves, axis=2)).round().astype(np.uint8)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def test_pixels_of_the_size_asked_for_are_the_images_own(run: Run) -> None:
    picture = scene(6, 9)
    (done,) = run("image", {"columns": ["x"], "size": [6, 9]}, {"x": [encoded(picture)] * 20})
    assert done.frame.schema["x"] == pl.Array(pl.UInt8(), (6, 9, 3))
    assert (pixels(done) == picture).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_formats(run: Run, kind: str) -> None:
    picture = scene(32, 48)
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    (done,) = run(
        "image", {"columns": ["x"], "size": [32, 48]}, {"x": [encoded(picture, kind, **options)]}
    )
    exact = kind in ("PNG", "BMP", "TIFF", "PPM")
    assert np.abs(pixels(done)[0].astype(int) - picture).mean() <= (0 if exact else 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("wanted", ["RGB", "L"])
def test_modes_become_the_one_asked_for(run: Run, mode: str, wanted: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8), (4, 2))
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF" if mode in ("CMYK", "LA") else "PNG")
    settings = {"columns": ["x"], "size": [4, 4], "mode": wanted}
    (done,) = run("image", settings, {"x": [file.getvalue()]})
    assert pixels(done).shape == (1, 4, 4, len(wanted))
    assert (pixels(done)[0] == grey[:, :, None]).all()


def test_crop_takes_the_middle_and_stretch_takes_all(run: Run) -> None:
    halves = np.zeros((8, 32, 3), np.uint8)
    halves[:, 12:20] = 200
    given = {"x": [encoded(halves)]}
    (crop,) = run("image", {"columns": ["x"], "size": [8, 8]}, given)
    (stretch,) = run("image", {"columns": ["x"], "size": [8, 32], "resize": "stretch"}, given)
    (small,) = run("image", {"columns": ["x"], "size": [4, 4], "resize": "stretch"}, given)
    assert (pixels(crop) == 200).all()
    assert (pixels(stretch)[0] == halves).all()
    assert 40 < pixels(small).mean() < 60


def noting(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_a_camera_noted_turns_the_image(run: Run, kind: str, orientation: int) -> None:
    raw = encoded(scene(24, 40), kind, exif=noting(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))))
    size = expected.shape[:2]
    assert size == ((40, 24) if orientation >= 5 else (24, 40))
    (done,) = run("image", {"columns": ["x"], "size": size}, {"x": [raw]})
    assert (pixels(done)[0] == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_turned_and_resized_is_resized_and_turned(run: Run, orientation: int, resize: str) -> None:
    noted = encoded(scene(400, 640), "JPEG", quality=95, exif=noting(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(noted)))
    size = (60, 30)
    (done,) = run("image", {"columns": ["x"], "size": size, "resize": resize}, {"x": [noted]})
    (same,) = run(
        "image",
        {"columns": ["x"], "size": size, "resize": resize},
        {"x": [encoded(np.asarray(upright))]},
    )
    assert np.abs(pixels(done)[0].astype(int) - pixels(same)[0]).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_may_be_left(run: Run, kind: str) -> None:
    raw = encoded(scene(24, 40), kind, exif=noting(6))
    settings = {"columns": ["x"], "size": [24, 40], "orientation": False}
    (done,) = run("image", settings, {"x": [raw]})
    assert (pixels(done)[0] == np.asarray(Image.open(io.BytesIO(raw)))).all()


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_image_stays_one_whatever_it_notes(run: Run, kind: str, noted: bool) -> None:
    rng = np.random.default_rng(2)
    raw = encoded(
        rng.integers(0, 256, (40, 24, 3), dtype=np.uint8), kind,
        **({"exif": noting(3)} if noted else {}),
    )  # fmt: skip
    broken = []
    for at in range(20, len(raw), max(1, len(raw) // 60)):
        broken += [raw[:at], raw[:at] + bytes([raw[at] ^ 0x5A]) + raw[at + 1 :]]
    settings = {"columns": ["x"], "size": [40, 24]}
    (turned,) = run("image", settings, {"x": broken})
    (stored,) = run("image", {**settings, "orientation": False}, {"x": broken})
    assert turned.frame["_position"].to_list() == stored.frame["_position"].to_list()
    assert len(stored) < len(broken)


def test_what_fills_up_before_a_marker_is_passed(run: Run) -> None:
    raw = encoded(scene(24, 40), "JPEG", exif=noting(6))
    at = raw.index(b"\xff\xe1")
    filled = raw[:at] + b"\xff" * 3 + raw[at:]
    (done,) = run("image", {"columns": ["x"], "size": [40, 24]}, {"x": [raw, filled]})
    assert (pixels(done)[0] == pixels(done)[1]).all()


def test_notes_come_first_or_are_not_looked_for() -> None:
    raw = encoded(scene(24, 40), "JPEG", exif=noting(6))
    at = raw.index(b"\xff\xe1")
    assert _notes(raw) is not None
    assert _notes(raw[:at] + b"\xff\xfe\x00\x02" * 200 + raw[at:]) is None
    assert _notes(b"\xff\xd8") is None


@pytest.mark.parametrize(
    "notes", [b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"what?"]
)
@pytest.mark.parametrize("claimed", [0, 400, 60_000])
def test_damaged_notes_cost_nothing(run: Run, notes: bytes, claimed: int) -> None:
    plain = encoded(scene(24, 40), "JPEG")
    body = b"Exif\0\0" + notes
    part = b"\xff\xe1" + struct.pack(">H", min(2 + len(body) + claimed, 65_535)) + body
    (fine,) = run(
        "image", {"columns": ["x"], "size": [24, 40]}, {"x": [plain[:2] + part + plain[2:], plain]}
    )
    if not claimed:
        assert not fine.rejects
        assert (pixels(fine)[0] == pixels(fine)[1]).all()
    assert len(fine) + sum(len(reject.rows) for reject in fine.rejects) == 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_resizing_is_what_pillow_does(run: Run, kind: str, resize: str) -> None:
    picture = scene(375, 500)
    raw = encoded(picture, kind, **({"quality": 95} if kind == "JPEG" else {}))
    (done,) = run("image", {"columns": ["x"], "size": [60, 60], "resize": resize}, {"x": [raw]})
    box = (62.5, 0, 437.5, 375) if resize == "crop" else None
    image = Image.fromarray(picture)
    expected = np.asarray(image.resize((60, 60), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert np.abs(pixels(done)[0] - expected).mean() < 2


@pytest.mark.parametrize("size", [(64, 64), (375, 500), (501, 1003), (90, 1_200)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_the_quick_way_for_jpegs_gives_pillows_pixels(
    stage: Any, size: tuple[int, int], mode: str, resize: str, options: dict[str, Any]
) -> None:
    made = stage("image", columns=["x"], size=[64, 64], mode=mode, resize=resize)
    for picture in (scene(*size), scene(*size)[:, :, 0]):
        raw = encoded(picture, "JPEG", **options)
        quick, whole = made._jpeg(raw), made._sized(io.BytesIO(raw), "")
        assert quick is not None
        assert (quick == whole).all()


def test_jpegs_of_other_colours_are_pillows(stage: Any) -> None:
    made = stage("image", columns=["x"], size=[8, 8])
    file = io.BytesIO()
    Image.fromarray(scene(8, 8)).convert("CMYK").save(file, "JPEG")
    assert made._jpeg(file.getvalue()) is None
    assert made._pixels(file.getvalue()).shape == (8, 8, 3)


def test_the_block_is_seen_without_a_copy(run: Run) -> None:
    (done,) = run("image", {"columns": ["x"], "size": [4, 5]}, {"x": [photo()] * 30})
    column = done.frame["x"]
    assert column.n_chunks() == 1
    assert np.shares_memory(column.to_numpy(), column.to_numpy())
    assert pixels(done).flags.c_contiguous


def test_threads_change_nothing(run: Run) -> None:
    given = {"x": [encoded(scene(10 + i, 30 - i)) for i in range(20)]}
    one, many = (
        run("image", {"columns": ["x"], "size": [9, 9], "threads": n}, given)[0] for n in (1, 5)
    )
    assert one.frame.equals(many.frame)


JPEG = encoded(scene(64, 64), "JPEG")
HOSTILE = {
    "null": (None, "Expected an image, got null."),
    "nothing": (b"", "Expected an image, got 0 bytes."),
    "text": (b"GIF is no image", "Expected an image of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP; got"),
    "another format": (b"8BPS\x00\x01" + bytes(50), "got 56 bytes that are none of these."),
    "cut JPEG": (JPEG[:-100], "The JPEG is damaged or hostile: image file is truncated"),
    "cut header": (JPEG[:20], "got 20 bytes that are none of these"),
    "cut PNG": (photo(90, 90)[:-40], "The PNG is damaged or hostile: "),
    "bomb": (bomb(12_000, 11_000), "at most 1,000,000 pixels, got 12,000 x 11,000: raise"),
    "large bomb": (bomb(60_000, 60_000), "limit of"),
    "empty PNG": (bomb(0, 10), "bytes that are none of these"),
    "short PNG": (bomb(900, 900), "damaged or hostile"),
    "32 bits": (encoded(np.zeros((2, 2), np.float32), "TIFF"), "got 32 (mode F): convert it."),
}


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_image_costs_its_own_row(run: Run, case: str) -> None:
    raw, sentence = HOSTILE[case]
    settings = {"columns": ["x"], "size": [4, 4], "max_pixels": 1_000_000}
    (done,) = run("image", settings, {"x": [photo(), raw, photo()]})
    assert done.frame["_position"].to_list() == [0, 2]
    (reject,) = done.rejects
    assert (reject.stage, reject.reason) == ("s", "image")
    assert reject.rows["_position"].to_list() == [1]
    assert sentence in reject.rows["detail"][0]
    assert "\n" not in reject.rows["detail"][0]


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_no_bytes_end_the_run(run: Run, data: st.DataObject) -> None:
    """Damaged at random: the row goes on or is rejected, its neighbours go on."""
    whole = data.draw(
        st.sampled_from(
            [photo(9, 9, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]
        )
    )
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    (done,) = run(
        "image", {"columns": ["x"], "size": [4, 4]}, {"x": [photo(), bytes(raw), photo()]}
    )
    assert len(done) + sum(map(len, done.rejects)) == 3
    assert {0, 2} <= set(done.frame["_position"].to_list())


@settings(max_examples=examples(60), deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4), st.sampled_from(["crop", "stretch"]), st.booleans())
def test_every_size_becomes_the_one_asked_for(
    run: Run, sizes: tuple[int, int, int, int], resize: str, jpeg: bool
) -> None:
    height, width, high, wide = sizes
    raw = photo(height, width, "JPEG" if jpeg else "PNG")
    given = {"columns": ["x"], "size": [high, wide], "resize": resize}
    (done,) = run("image", given, {"x": [raw]})
    assert pixels(done).shape == (1, high, wide, 3)


def test_paths_lead_nowhere_but_below_the_root(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.png").write_bytes(photo())
    (root / "text.png").write_bytes(b"text")
    (tmp_path / "secret.png").write_bytes(photo())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "good.png").symlink_to(root / "in" / "a.png")
    paths = {
        "in/a.png": None,
        "good.png": None,
        str(root / "in" / "a.png"): None,
        "in/../in/a.png": None,
        "../secret.png": "below",
        str(tmp_path / "secret.png"): "got one that leads out.",
        "link.png": "got one that leads out.",
        "loop.png": "",
        "in": "There is no such file below",
        "none.png": "There is no such file below",
        "a\0b": "leads nowhere",
        "": "There is no such file below",
        "x" * 5_000: "leads nowhere",
        "text.png": "got 4 bytes that are none of these",
    }
    settings = {"columns": ["x"], "size": [6, 9], "root": str(root)}
    (done,) = run("image", settings, {"x": [*paths, None]})
    assert done.frame["_position"].to_list() == [0, 1, 2, 3]
    (reject,) = done.rejects
    sentences = [sentence for sentence in paths.values() if sentence is not None]
    for got, expected in zip(reject.rows["detail"], [*sentences, "got null"], strict=True):
        assert expected in got


def test_several_columns(run: Run) -> None:
    given = {"a": [photo(), b"", photo(), photo()], "b": [photo(), photo(), photo(), b"x"]}
    (done,) = run("image", {"columns": ["*"], "size": [2, 2]}, given)
    assert done.frame["_position"].to_list() == [0, 2]
    assert (pixels(done, "a") == pixels(done, "b")).all()
    assert [len(reject) for reject in done.rejects] == [1, 1]


def test_pixels_of_a_row_that_is_rejected_later_are_not_written_out(run: Run) -> None:
    small, large = (
        run("image", {"columns": ["x"], "size": size}, {"x": [photo()]})[0]
        for size in ([1, 1], [64, 64])
    )
    told = [
        batch.reject(pl.lit(False), stage="s", reason="r").rejects[0].rows["value"][0]
        for batch in (small, large)
    ]
    assert told == ['{"x":[[[111,111,111]]]}', '{"x":"Array(UInt8, shape=(64, 64, 3))"}']
