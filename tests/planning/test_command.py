"""`jepa-kernels plan`: an episode, a decision between two images, and the mistakes that end with code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jepa_kernels import cli
from jepa_kernels.envs import PointWalls
from jepa_kernels.planning import WorldConfig, WorldModel, save_world_model

QUICK = ["--samples", "8", "--iterations", "1", "--horizon", "2", "--topk", "2", "--device", "cpu"]


@pytest.fixture
def checkpoint(world: WorldModel, tmp_path: Path) -> str:
    save_world_model(tmp_path / "world.pt", world, WorldConfig.tiny())
    return str(tmp_path / "world.pt")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    observation, info = PointWalls().reset(seed=0)
    for name, image in (("now", observation), ("goal", info["goal_image"])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    return [str(tmp_path / f"{name}.png") for name in ("now", "goal", "wide")]


@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_an_episode_as_json(checkpoint: str, planner: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", checkpoint, "--env", "point-walls", "--seed", "2", "--planner", planner, "--json", *QUICK]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["planner"] == planner and found["steps"] == len(found["decisions"]) > 0
    assert found["clipped_by_environment"] == 0 and found["config"]["samples"] == 8
    decision = found["decisions"][0]
    assert len(decision["action"]) == 2 and decision["milliseconds"] > 0 and decision["cost"] > 0 and decision["dropped"] == 0
    cli.main(arguments)
    again = json.loads(capsys.readouterr().out)
    assert [d["action"] for d in again["decisions"]] == [d["action"] for d in found["decisions"]]


def test_an_episode_and_a_decision_as_text(checkpoint: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", checkpoint, "--env", "point-walls", *QUICK]) == 0
    assert "the goal in" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["plan", checkpoint, "--image", images[0], "--goal", images[1], *QUICK]) == 0
    first, then = capsys.readouterr().out.splitlines()
    assert "cost" in first and "ms" in first and then.startswith("then (")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --env, or --image and --goal"),
        (["--image", "NOW"], "give --env, or --image and --goal"),
        (["--env", "point-walls", "--goal", "GOAL"], "give --env, or --image and --goal"),
        (["--image", "NOW", "--goal", "WIDE"], "(32, 32, 3), the size that this world model was trained on"),
        (["--image", "NOW", "--goal", "none.png"], "is not a file"),
        (["--env", "point-walls", "--topk", "99"], "topk must be 2"),
    ],
)
def test_mistakes_end_with_code_2(
    checkpoint: str, images: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = dict(zip(("NOW", "GOAL", "WIDE"), images, strict=True))
    assert cli.main(["plan", checkpoint, *QUICK, *(named.get(word, word) for word in options)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert cli.main(["plan", "none.pt", "--env", "point-walls"]) == 2
    assert "none.pt is not a file" in capsys.readouterr().err
