"""What ends a training command with one line on stderr."""

from __future__ import annotations


class TrainError(ValueError):
    """Something the user can mend: a setting, a file, a full disk. `exit_code` is the command's."""

    exit_code = 2


class SaveError(TrainError):
    """The last checkpoint could not be written; the one before it is whole."""

    exit_code = 4
