"""Learned features beat random ones on real images, and what the probe refuses."""

import json

import numpy as np
import pytest
import torch

from jepa_kernels.train import metrics

PHOTOGRAPHS = (
    "astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina", "hubble_deep_field", "brick", "grass",
    "gravel", "camera", "moon", "coins", "cell",
)  # fmt: skip
TILE, EACH = 48, 24


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Grey tiles of photographs that come with scikit-image: the photograph is the class, and every second tile a test."""
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("tiles")
    for name in PHOTOGRAPHS:
        photograph = image.fromarray(getattr(data, name)()).convert("L")
        photograph.thumbnail((640, 640))
        pixels = np.asarray(photograph)
        places = [(r, c) for r in range(pixels.shape[0] // TILE) for c in range(pixels.shape[1] // TILE)]
        counts = {"train": 0, "test": 0}
        for row, column in np.random.default_rng(0).permutation(places):
            part = ("train", "test")[(row + column) % 2]
            if counts[part] < EACH:
                tile = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                image.fromarray(tile).save(folder / part / name / f"{counts[part]:02d}.png")
                counts[part] += 1
    return folder


def test_learned_features_beat_random_ones(command, tiles, tmp_path):
    code, _, err = command(
        "train", "--config", "ijepa_tiny", "--data", tiles / "train", "--output", tmp_path, "--set", "optimization.epochs=15"
    )
    assert code == 0, err
    records = [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    # It has not learned to say the same of every image: the features differ more than they did.
    told = [record["feature_std"] for record in records if "feature_std" in record]
    assert told[-1] > 0.1 and told[-1] > 0.8 * told[0]

    code, out, err = command("probe", "--checkpoint", tmp_path / "checkpoint.pt", "--data", tiles, "--part", "encoder", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["classes"] == 14 and found["test_images"] == 14 * EACH and found["skipped"] == 0
    assert found["random"]["linear"] > 2 * found["chance"]  # what is beaten is not nothing
    assert found["trained"]["linear"] > found["random"]["linear"] + 0.06, found
    assert found["trained"]["neighbours"] > found["random"]["neighbours"] + 0.02, found


def test_the_probe_draws_its_own_halves_and_tells_people(train, command, tiles, photographs, tmp_path):
    assert train(photographs, tmp_path / "run", "--stop-after", 1)[0] == 0
    (tiles / "test" / "cell" / "broken.png").write_text("no image")
    try:
        code, out, _ = command("probe", "--checkpoint", tmp_path / "run" / "checkpoint.pt", "--data", tiles / "test")
    finally:
        (tiles / "test" / "cell" / "broken.png").unlink()
    assert code == 0 and "14 classes, 168 images to learn from, 168 to test on" in out
    assert "random weights" in out and "1 files could not be read" in out


def test_what_the_probe_refuses(train, command, photographs, tmp_path):
    assert train(photographs, tmp_path / "run", "--stop-after", 1)[0] == 0
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    one = tmp_path / "one" / "only"
    one.mkdir(parents=True)
    (one / "a.png").write_bytes((photographs / "coins.png").read_bytes())
    for data, message in ((photographs, "holds no readable image in a subfolder"), (one.parent, "has 1 classes")):
        code, _, err = command("probe", "--checkpoint", checkpoint, "--data", data)
        assert code == 2 and message in err
    (tmp_path / "one" / "other").mkdir()
    (tmp_path / "one" / "other" / "b.png").write_bytes((photographs / "coffee.png").read_bytes())
    code, _, err = command("probe", "--checkpoint", checkpoint, "--data", one.parent)
    assert code == 2 and "'only'" in err and "at least two readable images" in err
    torch.save({"encoder": {}}, tmp_path / "foreign.pt")
    code, _, err = command("probe", "--checkpoint", tmp_path / "foreign.pt", "--data", one.parent)
    assert code == 2 and "takes checkpoints of `jepa-kernels train`" in err
