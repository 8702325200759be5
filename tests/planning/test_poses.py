"""Pose composition in closed form against scipy, sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jepa_kernels.planning import compose_pose, euler_to_matrix, matrix_to_euler, pose_difference

from . import published

angles = st.tuples(*(st.floats(-3.1, 3.1) for _ in range(3)))


@given(angles)
def test_matrices_are_those_of_scipy(xyz: tuple[float, ...]) -> None:
    expected = Rotation.from_euler("xyz", xyz).as_matrix()
    np.testing.assert_allclose(euler_to_matrix(torch.tensor(xyz, dtype=torch.float64)).numpy(), expected, atol=1e-12)


@given(angles)
def test_angles_give_their_matrix_back(xyz: tuple[float, ...]) -> None:
    matrix = euler_to_matrix(torch.tensor(xyz, dtype=torch.float64))
    found = matrix_to_euler(matrix)
    torch.testing.assert_close(euler_to_matrix(found), matrix, rtol=0, atol=1e-7)
    assert abs(found[1]) <= math.pi / 2


@pytest.mark.parametrize("b", [math.pi / 2, -math.pi / 2])
def test_gimbal_lock_keeps_the_rotation(b: float) -> None:
    matrix = euler_to_matrix(torch.tensor([0.4, b, -1.1], dtype=torch.float64))
    found = matrix_to_euler(matrix)
    assert found[2] == 0.0
    torch.testing.assert_close(euler_to_matrix(found), matrix, rtol=0, atol=1e-7)


def test_composition_equals_the_published_host_loop() -> None:
    pose = torch.cat([torch.randn(64, 6), torch.rand(64, 1)], -1)
    action = torch.cat([0.3 * torch.randn(64, 6), torch.randn(64, 1)], -1)
    torch.testing.assert_close(compose_pose(pose, action), published.compute_new_pose(pose, action), rtol=0, atol=1e-6)


def test_difference_undoes_composition() -> None:
    start, end = (torch.cat([torch.randn(16, 6), torch.rand(16, 1)], -1).double() for _ in range(2))
    again = compose_pose(start, pose_difference(start, end))
    torch.testing.assert_close(euler_to_matrix(again[:, 3:6]), euler_to_matrix(end[:, 3:6]), rtol=0, atol=1e-7)
    torch.testing.assert_close(again[:, [0, 1, 2, 6]], end[:, [0, 1, 2, 6]])


def test_a_pose_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="7 numbers"):
        compose_pose(torch.zeros(2, 6), torch.zeros(2, 7))
