"""Planning in latent space: rollouts of an action-conditioned world model, CEM and MPPI over them, poses in closed form."""

from .actions import ActionSpace
from .cem import CEMConfig, Plan, PlanningError, cem
from .mppi import MPPIConfig, mppi
from .poses import compose_pose, euler_to_matrix, matrix_to_euler, pose_difference
from .rollout import LatentRollout
from .world_model import WorldConfig, WorldModel, build_world_model, load_world_model, save_world_model

__all__ = [
    "ActionSpace",
    "CEMConfig",
    "LatentRollout",
    "MPPIConfig",
    "Plan",
    "PlanningError",
    "WorldConfig",
    "WorldModel",
    "build_world_model",
    "cem",
    "compose_pose",
    "euler_to_matrix",
    "load_world_model",
    "matrix_to_euler",
    "mppi",
    "pose_difference",
    "save_world_model",
]
