"""Decodes images to pixels of one size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, PositiveInt
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch.nn import functional as F

from engine import types
from engine.scrub.columns import expand_columns, replaced
from engine.system import environment
from engine.types import Batch, Name, Names, Schema, Stage, Transform, UserError, type_name
from engine.types.changes import Neutral

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The decoded formats; Pillow's other readers are never used."""
JPEG = b"\xff\xd8\xff"
READ = 64 << 20
"""The largest file read as a whole before its header is checked."""
PILLOW_MAX_PIXELS = 178_956_970
"""The most pixels of an image that Pillow opens."""
CHUNK = 8
"""The images a thread takes at a time."""
Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112
"""EXIF's tag for the orientation of the camera: 1 upright, 2 ... 8 as in `_turned`."""
SIDEWAYS = 5
"""From this orientation on, height and width are swapped."""
SEGMENTS = 100
"""The segments of a JPEG searched for EXIF notes, which come first."""


class UnusableImage(Exception):
    """A sentence for a row that has no image."""


class Images(Stage):
    """Replaces encoded images (bytes), or paths of image files (text), by their pixels: an array of
    UInt8 of shape (height, width, channels), as they lie in memory in decoders, in Pillow and in
    torch's ``channels_last``. The arrays of a batch are one block, which numpy and torch see
    without a copy.

    A row whose image cannot be had is rejected with reason ``image``: null or 0 bytes, no image or
    one of an unknown format, damaged or cut off, of more than `max_pixels` (looked up in the header
    before anything is decoded), a path that leads out of `root` or to no file.

    JPEGs are decoded at the smallest of their size, its half, quarter and eighth that is not below
    the one asked for.
    Resizing is bilinear with antialiasing. Of an animation the first frame is taken, alpha is
    dropped, 16 bits of grey become 8.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "image"``

        Attributes:
            columns: names or globs.
            size [pixels]: height and width of the result.
            mode: RGB, or L for grey: channels 3 or 1.
            resize: ``crop`` keeps the proportions: the short side is fitted and the middle taken;
                ``stretch`` fits both sides.
            orientation: turn an image upright by what its camera noted (EXIF); without, it is as it
                was stored, but for TIFF.
            root: the folder below which paths lie; needed where a column holds paths.
            max_pixels [pixels]: pixels of the largest encoded image that is decoded.
            threads: that decode a batch together; all cores unless given.
        """

        columns: Neutral[Names]
        size: tuple[PositiveInt, PositiveInt]
        mode: Literal["RGB", "L"] = "RGB"
        resize: Literal["crop", "stretch"] = "crop"
        orientation: bool = True
        root: Name | None = None
        max_pixels: int = Field(50_000_000, ge=1, le=PILLOW_MAX_PIXELS)
        threads: Neutral[int | None] = Field(None, ge=1, le=256)

    def __init__(self, name: str, settings: Images.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Images.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._shape = (*settings.size, len(settings.mode))
        self._root = None if settings.root is None else Path(settings.root).resolve()
        cores = environment.cores()
        self._threads = settings.threads or cores

    def bind(self, schema: Schema) -> Schema:
        self._columns = expand_columns(self.settings.columns, schema, where=self.where)
        for column in self._columns:
            if schema[column] == pl.String and self._root is None:
                raise UserError(
                    f"{self.where} needs the key 'root', the folder below which the paths in "
                    f"column '{column}' lie; where it holds images, declare it as bytes."
                )
            if schema[column] not in (pl.Binary, pl.String):
                raise UserError(
                    f"{self.where} expects bytes or paths in column '{column}', got "
                    f"{type_name(schema[column])}."
                )
        if self._root is not None and not self._root.is_dir():
            raise UserError(f"{self.where} root expects a folder, got '{self.settings.root}'.")
        return {**schema, **dict.fromkeys(self._columns, pl.Array(pl.UInt8(), self._shape))}

    def apply(self, batch: Batch) -> Batch:
        for name in self._columns:
            column = batch.frame.get_column(name)
            pixels, why = self._decoded(column)
            good = why.is_null()
            if not good.all():
                batch = batch.reject(good, stage=self.name, reason="image", detail=why)
                pixels = pixels[good.to_numpy()]
            # Flat first: polars takes that as it is, and a shape costs nothing.
            series = pl.Series(name, pixels.reshape(-1)).reshape(pixels.shape)
            batch = batch.with_frame(replaced(batch.frame, [series]))
        return batch

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: no model file can contain a decoder."""
        return None

    def _decoded(self, column: pl.Series) -> tuple[Pixels, pl.Series]:
        """Return all images of the column, shape (n, height, width, channels), and for each row
        null or why it has none."""
        values = column.to_list()
        pixels = np.empty((len(values), *self._shape), np.uint8)
        why: list[str | None] = [None] * len(values)

        def decode(start: int) -> None:
            for row in range(start, min(start + CHUNK, len(values))):
                try:
                    pixels[row] = self._pixels(values[row])
                except UnusableImage as refused:
                    pixels[row], why[row] = 0, str(refused)

        parts = range(0, len(values), CHUNK)
        threads = min(self._threads, len(parts))
        if threads < 2:
            list(map(decode, parts))
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix=self.name) as pool:
                list(pool.map(decode, parts))
        return pixels, pl.Series(why, dtype=pl.String)

    def _pixels(self, value: bytes | str | None) -> Pixels:
        """Return the pixels of one image. Raises: UnusableImage."""
        if value is None:
            raise UnusableImage("Expected an image, got null.")
        if isinstance(value, str):
            path = self._path(value)
            try:
                if path.stat().st_size > READ:
                    return self._sized(path, "a file that is")
                value = path.read_bytes()
            except OSError as error:
                raise UnusableImage(f"The file cannot be read: {error.strerror}.") from None
        if not value:
            raise UnusableImage("Expected an image, got 0 bytes.")
        if value[:3] == JPEG and (pixels := self._jpeg(value)) is not None:
            return pixels
        return self._sized(io.BytesIO(value), f"{len(value):,} bytes that are")

    def _jpeg(self, data: bytes) -> Pixels | None:
        """Return the pixels of a valid JPEG, decoded by libjpeg-turbo alone; None if Pillow must
        judge it. The pixels equal Pillow's, in two thirds of the time."""
        try:
            high, wide, space, _ = decode_jpeg_header(data)
            if high * wide > self.settings.max_pixels or space not in ("YCbCr", "RGB", "Gray"):
                return None
            noted = _noted(_notes(data)) if self.settings.orientation else 1
            want_high, want_wide = self._wanted(high, wide, noted)
            smaller = min(high // want_high, wide // want_wide, 8)
            half = 1 << max(0, smaller.bit_length() - 1)  # 1, 2, 4 or 8
            colours = "RGB" if self.settings.mode == "RGB" else "GRAY"
            pixels: Pixels = decode_jpeg(
                data, colours, min_height=-(-high // half), min_width=-(-wide // half)
            )
        except (ValueError, MemoryError):
            return None
        return self._fitted(_turned(pixels, noted))

    def _path(self, value: str) -> Path:
        """Return the file, which must be below the root after resolving links. Raises:
        UnusableImage."""
        assert self._root is not None
        try:
            path = (self._root / value).resolve()
            inside, exists = path.is_relative_to(self._root), path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnusableImage(f"Expected a path, got one that leads nowhere: {error}.") from None
        if not inside:
            raise UnusableImage(
                f"Expected a path below '{self.settings.root}', got one that leads out."
            )
        if not exists:
            raise UnusableImage(f"There is no such file below '{self.settings.root}'.")
        return path

    def _sized(self, content: io.BytesIO | Path, got: str) -> Pixels:
        """Return the resized pixels of one encoded image. Raises: UnusableImage."""
        format = "image"
        try:
            with Image.open(content, formats=FORMATS) as image:
                format = image.format or format
                if image.width * image.height > self.settings.max_pixels:
                    raise UnusableImage(
                        f"Expected an image of at most {self.settings.max_pixels:,} pixels, got "
                        f"{image.width:,} x {image.height:,}: raise 'max_pixels'."
                    )
                if image.format == "JPEG":
                    wanted = self._wanted(image.height, image.width, self._noted(image))
                    image.draft(self.settings.mode, wanted[::-1])
                pixels = _channels(image, self.settings.mode)
                return self._fitted(_turned(pixels, self._noted(image)))
        except UnusableImage:
            raise
        except UnidentifiedImageError:
            known = ", ".join(FORMATS)
            raise UnusableImage(f"Expected an image of {known}; got {got} none of these.") from None
        except Exception as error:  # noqa: BLE001 - whatever a hostile file does to a decoder
            if isinstance(error, OSError) and error.strerror:
                raise UnusableImage(f"The file cannot be read: {error.strerror}.") from None
            message = str(error).rstrip(".") or type(error).__name__
            raise UnusableImage(f"The {format} is damaged or hostile: {message}.") from None

    def _noted(self, image: Image.Image) -> int:
        """Return the orientation; for all but a JPEG, after decoding."""
        turned = image.format == "TIFF"  # by Pillow
        return 1 if turned or not self.settings.orientation else _noted(image.info.get("exif"))

    def _wanted(self, high: int, wide: int, noted: int) -> tuple[int, int]:
        """Return the stored height and width of an image with these bounds, if it were only
        resized."""
        height, width = self._shape[:2]
        if noted >= SIDEWAYS:
            height, width = width, height
        if self.settings.resize == "stretch":
            return height, width
        scale = max(height / high, width / wide)
        return round(high * scale), round(wide * scale)

    def _fitted(self, pixels: Pixels) -> Pixels:
        """Fit a decoded image, (height, width, channels), to the requested size."""
        height, width = self._shape[:2]
        if self.settings.resize == "crop":
            pixels = _middle(pixels, height, width)
        if pixels.shape[:2] == (height, width):
            return pixels
        # Bytes in channels_last, copied to lie side by side: then torch is six times as fast as
        # Pillow, on this thread alone, and leaves the interpreter to others.
        tensor = torch.from_numpy(np.array(pixels, order="C")).unsqueeze(0).permute(0, 3, 1, 2)
        resized_batch = F.interpolate(
            tensor, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        resized: Pixels = resized_batch[0].permute(1, 2, 0).numpy()
        return resized


def _channels(image: Image.Image, mode: str) -> Pixels:
    """Return the decoded pixels, shape (height, width, channels). Raises: UnusableImage."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], len(mode), axis=2)
    if image.mode in ("I", "F"):
        raise UnusableImage(
            f"Expected 8 or 16 bits a channel, got 32 (mode {image.mode}): convert it."
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _noted(notes: bytes | None) -> int:
    """Return the orientation in EXIF notes, 1 to 8; 1 if there is none."""
    exif = Image.Exif()
    try:
        exif.load(notes or b"")
        noted = exif.get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - the pixels may be good although the notes are damaged
        return 1
    return noted if noted in range(2, 9) else 1


def _notes(data: bytes) -> bytes | None:
    """Return the EXIF notes of a JPEG."""
    at = 2
    for _ in range(SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":  # what fills up
            at += 1
        if data[at : at + 1] != b"\xff" or data[at + 1 : at + 2] == b"\xda":
            break
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1 : at + 2] == b"\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 4 : at + 2 + size]
        at += 2 + size
    return None


def _turned(pixels: Pixels, noted: int) -> Pixels:
    """Return the image upright, sharing memory."""
    if noted >= SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if noted in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if noted in (2, 3, 6, 7) else pixels


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the largest centred part with the requested proportions."""
    high, wide = pixels.shape[:2]
    scale = max(height / high, width / wide)
    tall = max(1, min(high, round(height / scale)))
    broad = max(1, min(wide, round(width / scale)))
    top, left = (high - tall) // 2, (wide - broad) // 2
    return pixels[top : top + tall, left : left + broad]


__all__ = ["FORMATS", "Images"]
