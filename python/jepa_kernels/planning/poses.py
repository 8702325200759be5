"""Poses of an arm's end effector, composed and compared in closed form on the device, for a whole batch at once.

A pose is (x, y, z, a, b, c, gripper): metres, extrinsic x-y-z Euler angles in radians, opening 0..1. The rotation of (a, b, c)
is R = Rz(c) Ry(b) Rx(a).
"""

from __future__ import annotations

import torch
from torch import Tensor

POSE_SIZE = 7
# |sin b| beyond which a and c turn about one axis, as far as float32 can tell; then c is set to 0.
_LOCKED = 1.0 - 1e-7


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of extrinsic x-y-z Euler angles (..., 3).

    >>> euler_to_matrix(torch.tensor([0.0, 0.0, torch.pi / 2])).round().int().tolist()
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    (sa, sb, sc), (ca, cb, cc) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = (
        (cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa),
        (sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa),
        (-sb, cb * sa, cb * ca),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """Extrinsic x-y-z Euler angles (..., 3) of rotation matrices (..., 3, 3); the middle one in [-pi/2, pi/2].

    In gimbal lock, where only a - c or a + c is determined, c is 0.

    >>> matrix_to_euler(euler_to_matrix(torch.tensor([0.1, 0.2, 0.3]))).allclose(torch.tensor([0.1, 0.2, 0.3]))
    True
    """
    sine = -matrix[..., 2, 0]
    locked = sine.abs() > _LOCKED
    b = torch.atan2(sine, torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0]))
    free_a = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    locked_a = torch.atan2(-matrix[..., 1, 2], matrix[..., 1, 1])
    c = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([torch.where(locked, locked_a, free_a), b, torch.where(locked, torch.zeros_like(c), c)], dim=-1)


def compose_pose(pose: Tensor, action: Tensor) -> Tensor:
    """The pose after an action: positions add, the action's rotation is applied after the pose's, the gripper stays in 0..1.

    Shapes: both (..., 7) and broadcastable. Computed in float64 and rounded once to the dtype of `pose`, as the published
    planner does on the host, one pose at a time; here without leaving the device.

    Raises:
        ValueError: a last axis that is not 7.

    Source: V-JEPA 2 (Assran et al., 2025), `compute_new_pose`.

    >>> compose_pose(torch.zeros(7), torch.full((7,), 0.25))[6]
    tensor(0.2500)
    """
    _check(pose, action)
    old, change = pose.double(), action.double()
    rotation = euler_to_matrix(change[..., 3:6]) @ euler_to_matrix(old[..., 3:6])
    gripper = (old[..., 6:] + change[..., 6:]).clamp(0.0, 1.0)
    return torch.cat([old[..., :3] + change[..., :3], matrix_to_euler(rotation), gripper], dim=-1).to(pose.dtype)


def pose_difference(start: Tensor, end: Tensor) -> Tensor:
    """The action that leads from one pose to another: the inverse of `compose_pose`; both (..., 7).

    Raises:
        ValueError: a last axis that is not 7.

    >>> start, end = torch.zeros(7), torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0])
    >>> bool(compose_pose(start, pose_difference(start, end)).allclose(end))
    True
    """
    _check(start, end)
    old, new = start.double(), end.double()
    rotation = euler_to_matrix(new[..., 3:6]) @ euler_to_matrix(old[..., 3:6]).transpose(-2, -1)
    parts = [new[..., :3] - old[..., :3], matrix_to_euler(rotation), new[..., 6:] - old[..., 6:]]
    return torch.cat(parts, dim=-1).to(start.dtype)


def _check(*poses: Tensor) -> None:
    for pose in poses:
        if pose.shape[-1] != POSE_SIZE:
            raise ValueError(f"a pose has {POSE_SIZE} numbers (position, Euler angles, gripper); got {tuple(pose.shape)}")
