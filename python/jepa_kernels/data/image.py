"""Image files to uint8 tensors, through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, require


def read_image(path: str | Path, size: int | None = 256) -> Tensor:
    """Reads one image, turned as its EXIF orientation says.

    Shapes: returns a uint8 CPU tensor (height, width, 3), RGB 0..255. With `size` the shorter side is resized to it (bicubic)
    and the centre square is cut out; None keeps the image as it is.

    Raises:
        DataError: Pillow is missing, or the file is missing, damaged or no image.
        ValueError: a size below 1.

    Deterministic: yes.

    Example:
        >>> from pathlib import Path
        >>> import skimage
        >>> read_image(Path(skimage.__file__).parent / "data" / "coffee.png", size=64).shape
        torch.Size([64, 64, 3])
    """
    require("PIL", "reading images")
    from PIL import Image, ImageOps

    if size is not None and size < 1:
        raise ValueError(f"size must be None or at least 1; got {size}")
    if not Path(path).is_file():
        raise DataError(f"{path} is not a file; give the path of an image")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's three ways to refuse a file
        raise DataError(
            f"{path} cannot be read as an image ({error}); it is damaged or no image: copy or download it again"
        ) from None
    if size is not None:
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))
