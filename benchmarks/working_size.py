"""At which size should a frozen EfficientNet-Lite0 read the pictures of a folder? Chosen inside the training rows of each fold.

    python benchmarks/working_size.py $FATHOM_DATA/cats-vs-dogs 224 256 288

Features are the mean over a picture and its mirror image, standardized row by row. In each of five folds a size and a strength
of logistic regression are chosen by cross-validation on the fold's training rows; what was chosen then answers the rows held
out. The mean of these is what may be expected of the choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from fathom.fields.image import open_picture, to_pixels
from fathom.networks.backbone import WEIGHTS, body_of

STRENGTHS = (1e-3, 1e-2)
FOLDS, AT_ONCE = 5, 25


def features(paths: list[Path], side: int) -> np.ndarray:
    """(N, D) of each picture, read at side x side."""
    body = body_of(WEIGHTS, {})
    body.module.load_state_dict(body.tensors())
    module = body.module.eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (body.mean, body.std))
    made = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(paths), AT_ONCE):
            some = [to_pixels(open_picture(str(path)), (3, side, side), "crop") for path in paths[start : start + AT_ONCE]]
            images = (torch.from_numpy(np.stack(some)) - mean) / std  # (B, 3, side, side)
            made.append((standardized(module(images)) + standardized(module(images.flip(3)))) / 2)
    return torch.cat(made).numpy()


def standardized(rows: torch.Tensor) -> torch.Tensor:
    """(B, D) each of mean 0 and spread 1."""
    rows = rows.float()
    return (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True, correction=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="class folders of .jpg files")
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--limit", type=int, help="pictures of each class")
    given = parser.parse_args()
    folders = sorted(child for child in given.folder.iterdir() if child.is_dir())
    found = [(path, label) for label, child in enumerate(folders) for path in sorted(child.glob("*.jpg"))[: given.limit]]
    paths, truth = [path for path, _ in found], np.array([label for _, label in found])
    of_size = {size: features(paths, size) for size in given.sizes}
    outer, inner = (StratifiedKFold(FOLDS, shuffle=True, random_state=seed) for seed in (1, 2))
    reached = []
    for train, test in outer.split(truth, truth):
        scores = {
            (size, strength): cross_val_score(
                LogisticRegression(C=strength, max_iter=100), rows[train], truth[train], cv=inner, scoring="accuracy"
            ).mean()
            for size, rows in of_size.items()
            for strength in STRENGTHS
        }
        size, strength = max(scores, key=lambda key: float(scores[key]))
        model = LogisticRegression(C=strength, max_iter=100).fit(of_size[size][train], truth[train])
        reached.append(model.score(of_size[size][test], truth[test]))
        print(f"{size} pixels, C {strength:g}: {reached[-1]:.4f}", {k: round(float(v), 4) for k, v in scores.items()}, flush=True)
    print(f"mean {np.mean(reached):.4f}")


if __name__ == "__main__":
    main()
