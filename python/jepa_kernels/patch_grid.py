"""How many patches fit along a side: all of it, or an error, so that no pixel is dropped unsaid."""

from __future__ import annotations


def patch_count(name: str, size: int, step_name: str, step: int) -> int:
    """Patches of `step` along a side of `size`.

    Raises:
        ValueError: `step` is below 1, or does not divide `size`.

    Example:
        >>> patch_count("height", 224, "patch_size", 16)
        14
    """
    if step < 1:
        raise ValueError(f"{step_name} must be at least 1; got {step}")
    if size % step:
        below = size - size % step
        nearest = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(f"{name} = {size} is not a multiple of {step_name} = {step}; make it one, such as {nearest}")
    return size // step


def clip_grid(num_frames: int, size: int | tuple[int, int], patch_size: int, tubelet_size: int) -> tuple[int, int, int]:
    """Tokens (T, H, W) of a clip of `num_frames` frames of `size` pixels (height, width, or one number for both).

    Raises:
        ValueError: as `patch_count`, naming num_frames, height or width.

    Example:
        >>> clip_grid(16, 224, 16, 2)
        (8, 14, 14)
    """
    height, width = (size, size) if isinstance(size, int) else size
    return (
        patch_count("num_frames", num_frames, "tubelet_size", tubelet_size),
        patch_count("height", height, "patch_size", patch_size),
        patch_count("width", width, "patch_size", patch_size),
    )
