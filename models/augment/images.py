"""Augments images: mirrors, crops, rotates, changes colours, adds noise.

Every row draws for itself, as `torchvision.transforms.v2` would if it were called row by row; the
arithmetic is `models.augment.pixels`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from engine.types import Tensors
from engine.types.arrays import Floats, Ints
from models.augment import pixels
from models.augment.augmentation import Augment, AugmentSettings, Context
from models.augment.columns import chosen


class ImageSettings(AugmentSettings):
    """Settings of every kind that changes images.

    Attributes:
        columns: images, names or globs; those of a row are all changed alike.
        probability [share]: of a row to be changed.
    """

    columns: tuple[str, ...] = ("*",)
    probability: float = Field(1.0, ge=0, le=1)


class ImageAugment(Augment):
    """The base class of image augments: which rows, and a few random numbers for each."""

    DRAWS = 0
    """The random numbers that a row needs, each from 0 to 1."""

    _columns: tuple[str, ...] = ()

    def bind(self, context: Context) -> None:
        self._columns = chosen(self.settings.columns, context.features.images, where=self.where)

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        n = len(tensors)
        rows = rng.random(n) < self.settings.probability
        drawn = rng.random((n, self.DRAWS))
        at = np.flatnonzero(rows)
        if not len(at):
            return tensors, 0
        images = dict(tensors.images)
        for column in self._columns:
            images[column] = self._change_rows(images[column], at, drawn, rng)
        return dataclasses.replace(tensors, images=images), len(at)

    def _change_rows(
        self, images: torch.Tensor, at: Ints, drawn: Floats, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the images with these rows changed."""
        result = torch.empty_like(images) if len(at) == len(images) else images.clone()
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        for block in pixels.blocks(images, at):
            rows = pixels.row_index(block, images)
            result[rows] = self._changed(images[rows], drawn[block], torch_rng)
        return result

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        """Return all of these images changed, by the numbers of each, shape (n, DRAWS)."""
        raise NotImplementedError


class Flip(ImageAugment):
    """Mirrors images."""

    class Settings(ImageSettings):
        """``[augment.NAME]`` with ``kind = "flip"``

        Attributes:
            direction: horizontal changes left and right, vertical top and bottom.
        """

        direction: Literal["horizontal", "vertical"] = "horizontal"
        probability: float = Field(0.5, ge=0, le=1)

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        return pixels.flipped(images, vertical=self.settings.direction == "vertical")


class Crop(ImageAugment):
    """Enlarges a part of an image, of random size, proportions and place, to full size (v2's
    RandomResizedCrop; a side that would be too long gets the image's length)."""

    DRAWS = 4

    class Settings(ImageSettings):
        """``[augment.NAME]`` with ``kind = "crop"``

        Attributes:
            area [share]: smallest share of the image's area that the part may be; all shares from
                there to 1 are as likely.
            ratio: by how much width and height may be enlarged differently.
        """

        area: float = Field(0.5, gt=0, le=1)
        ratio: float = Field(4 / 3, ge=1, allow_inf_nan=False)

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        high, wide = images.shape[2:]
        share = self.settings.area + (1 - self.settings.area) * drawn[:, 0]
        ratio = np.exp((2 * drawn[:, 1] - 1) * math.log(self.settings.ratio))
        height = _whole(high * np.sqrt(share / ratio), high)
        width = _whole(wide * np.sqrt(share * ratio), wide)
        top = np.floor(drawn[:, 2] * (high - height + 1)).astype(np.int64)
        left = np.floor(drawn[:, 3] * (wide - width + 1)).astype(np.int64)
        return pixels.cropped(images, top, left, height, width)


class Rotate(ImageAugment):
    """Rotates images about their centre; outside pixels are 0 (v2's RandomRotation)."""

    DRAWS = 1

    class Settings(ImageSettings):
        """``[augment.NAME]`` with ``kind = "rotate"``

        Attributes:
            degrees [degrees]: most that an image is turned, either way; all angles are as likely.
        """

        degrees: float = Field(15.0, ge=0, le=180)

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        return pixels.rotated(images, (2 * drawn[:, 0] - 1) * self.settings.degrees)


class Colour(ImageAugment):
    """Changes brightness, contrast and saturation, in this order (v2's ColorJitter also draws
    the order, and changes the hue)."""

    DRAWS = 3

    class Settings(ImageSettings):
        """``[augment.NAME]`` with ``kind = "colour"``

        Attributes:
            brightness, contrast, saturation: x takes a factor from 1 - x to 1 + x, all as likely;
                0 leaves it. Only images of 3 channels have a saturation.
        """

        brightness: float = Field(0.2, ge=0, le=1)
        contrast: float = Field(0.2, ge=0, le=1)
        saturation: float = Field(0.2, ge=0, le=1)

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        settings = self.settings
        width = np.array([settings.brightness, settings.contrast, settings.saturation])
        return pixels.coloured(images, *(1 + (2 * drawn - 1) * width).T)


class PixelNoise(ImageAugment):
    """Adds normal noise to every value of an image (v2's GaussianNoise)."""

    class Settings(ImageSettings):
        """``[augment.NAME]`` with ``kind = "pixel_noise"``

        Attributes:
            scale [share]: standard deviation, as a share of the range of values (255 of bytes, 1 of
                floats).
        """

        scale: float = Field(0.05, ge=0, le=1)

    def _changed(
        self, images: torch.Tensor, drawn: Floats, torch_rng: torch.Generator
    ) -> torch.Tensor:
        return pixels.noised(images, np.full(len(images), self.settings.scale), torch_rng)


def _whole(side: Floats, most: int) -> Ints:
    """Return the pixels of a side, at least 1."""
    return np.clip(np.round(side), 1, most).astype(np.int64)


__all__ = ["Colour", "Crop", "Flip", "ImageAugment", "ImageSettings", "PixelNoise", "Rotate"]
