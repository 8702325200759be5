"""Small environments with Gymnasium's interface, without Gymnasium: what a world model can be trained and tried on in minutes."""

from .point_walls import PointWalls

__all__ = ["PointWalls"]
