"""`fathom play`: watch an agent, its values or probabilities beside the picture, as a GIF or MP4.

Pictures are drawn off screen. An environment that draws nothing but shows pictures is watched through these.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fathom.analysis.plan import acts
from fathom.core.environments import LONGEST, TEST, Copy, Environment, episode_seed
from fathom.core.errors import DataError, FathomError
from fathom.core.run import write_atomic
from fathom.fields.action import PROBABILITIES, Action
from fathom.fields.observation import picture_order
from fathom.verbs.acting import environment_of
from fathom.verbs.result import Run, load

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".gif", ".mp4")
FASTEST = 25  # pictures a second; environments that are faster lose every second, third ... of them
SMALLEST, LARGEST, PANEL, LINE = 240, 480, 190, 22  # pixels: height of a picture, width of the panel, height of a bar
COLORS = 64  # of a GIF's picture
PAPER, INK, QUIET, ACCENT, TRACK = "#ffffff", "#12191d", "#56636b", "#1495b4", "#e2e7ea"


@dataclass(frozen=True)
class Moment:
    """One action.

    Args:
        picture: (H, W, 3) before it.
        bars: name -> value, for each action.
        chosen: names of what was done.
        limits: of the bars; None where they depend on what was met.
        caption: what stands above the bars.
    """

    picture: np.ndarray
    bars: Mapping[str, float]
    chosen: Sequence[str]
    limits: tuple[float, float] | None
    caption: str


def play(
    run: Run | str | Path, output: str | Path, episodes: int = 1, seed: int | None = None, environment: Any = None
) -> dict[str, Any]:
    """Draw episodes of an agent.

    Args:
        run: of an agent.
        output: a .gif or .mp4 file.
        episodes: how many.
        seed: of the episodes; the run's own where None, which gives those that it was judged on.
        environment: where, if the run learnt in one that was given from Python.

    Returns:
        "file", "returns" and "lengths" of the episodes, "pictures".

    Raises:
        FathomError: the run is no agent, nothing can be drawn, or a package for it is missing.
    """
    run, path = load(run), Path(output)
    _check(run, path)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame then draws without a screen
    place = environment_of(run, environment)
    seed = run.deployed.recipe.training.seed if seed is None else seed
    copy = Copy(place, render=_render_mode(place))
    moments: list[Moment] = []
    returns, lengths = [], []
    for episode in range(episodes):
        played = list(_episode(copy, run, seed, episode))
        moments += [moment for moment, _ in played]
        returns.append(float(sum(reward for _, reward in played)))
        lengths.append(len(played))
    speed = int(getattr(copy.unwrapped, "metadata", {}).get("render_fps") or FASTEST)
    copy.close()
    every = -(-speed // FASTEST)
    kept = moments[::every]
    frames = list(_frames(kept))
    _write(path, frames, speed / every)
    return {"file": str(path), "returns": returns, "lengths": lengths, "pictures": len(frames)}


def _check(run: Run, path: Path) -> None:
    if not acts(run.schema):
        raise FathomError(
            f"{run.path} learnt from rows; only agents play. Its verb is: fathom predict {run.path} INPUT"
        )
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"Episodes cannot be written as '{path.suffix or path}'; use .gif or .mp4.")
    if path.suffix.lower() == ".mp4":
        _encoder()


def _encoder() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise FathomError(
            "An .mp4 needs imageio-ffmpeg: pip install imageio-ffmpeg. A .gif needs nothing more."
        ) from error
    return imageio_ffmpeg


def _render_mode(environment: Environment) -> str | None:
    """The mode that gives pictures, where the environment has one."""
    made = environment.make(None)
    modes = getattr(made, "metadata", {}).get("render_modes") or ()
    made.close()
    return "rgb_array" if "rgb_array" in modes else None


def _episode(copy: Copy, run: Run, seed: int, episode: int) -> Iterator[tuple[Moment, float]]:
    """Each action of an episode, and its reward."""
    action = run.schema.targets["action"]
    assert isinstance(action, Action)
    predictor = run.predictor
    shown = copy.reset(episode_seed(seed, TEST, 0, episode), episode)
    total = 0.0
    for number in range(LONGEST):
        observation = np.asarray(shown, copy.environment.dtype)
        with torch.inference_mode():
            output = predictor.forward({"observation": torch.from_numpy(observation[None])})["action"].cpu()
        caption = f"episode {episode + 1}   action {number + 1}   return {total:.6g}"
        moment = Moment(_picture(copy, observation), *_bars(action, output), caption)
        done = action.perform(action.greedy(output))[0]
        shown, reward, terminated, truncated = copy.step(done)
        total += float(reward)
        yield moment, float(reward)
        if terminated or truncated:
            return


def _picture(copy: Copy, observation: np.ndarray) -> np.ndarray:
    """(H, W, 3) what the environment draws, else what it shows.

    Raises:
        FathomError: there is neither.
    """
    name = copy.environment.name
    if getattr(copy.unwrapped, "render_mode", None) == "rgb_array":
        try:
            drawn = copy.unwrapped.render()
        except Exception as error:  # a package for drawing that is missing, or the user's own code
            raise FathomError(
                f"{name} cannot be drawn: {error}. The built-in environments are drawn by pygame: pip install pygame-ce"
            ) from error
        return np.asarray(drawn)[..., :3]
    if observation.dtype != np.uint8 or observation.ndim < 2:
        raise FathomError(
            f"{name} draws nothing (it has no render mode 'rgb_array') and shows no pictures. Give it from Python in that "
            "mode: run.play('agent.gif', environment=lambda: MyEnvironment(render_mode='rgb_array'))"
        )
    ordered = observation.transpose(picture_order(observation.shape))
    last = ordered.reshape(-1, *ordered.shape[-2:])[-(3 if ordered.ndim > 2 and ordered.shape[-3] >= 3 else 1) :]
    return np.broadcast_to(last.transpose(1, 2, 0), (*last.shape[1:], 3))


def _bars(action: Action, output: torch.Tensor) -> tuple[dict[str, float], list[str], tuple[float, float] | None]:
    """What speaks for each action, what is done, and the limits of the bars."""
    (answer,) = action.decode(output)
    if action.form == "box":
        numbers = np.reshape(answer["answer"], -1).tolist()
        bars = {f"number {i + 1}": value for i, value in enumerate(numbers)}
        low, high = action.state["low"], action.state["high"]
        bounded = None not in (*low, *high)
        return bars, list(bars), (min(low), max(high)) if bounded else None
    kind = next(key for key in (PROBABILITIES, "values") if key in answer)
    limits = (0.0, 1.0) if kind == PROBABILITIES else None
    return answer[kind], [str(answer["answer"])], limits


def _frames(moments: Sequence[Moment]) -> Iterator[Image]:
    """Picture and panel side by side, all of one size."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    values = [value for moment in moments for value in moment.bars.values()]
    met = (min(values), max(values)) if values else (0.0, 1.0)
    for moment in moments:
        picture = _resized(moment.picture)
        height = max(picture.height, LINE * (len(moment.bars) + 3))
        frame = Pillow.new("RGB", (picture.width + PANEL, height + height % 2), PAPER)
        frame.paste(picture, (0, (height - picture.height) // 2))
        _panel(ImageDraw.Draw(frame), picture.width, moment, moment.limits or met)
        yield frame


def _resized(picture: np.ndarray) -> Image:
    """Small pictures enlarged by whole pixels, large ones reduced; even sides, as videos want them."""
    from PIL import Image as Pillow

    made = Pillow.fromarray(np.ascontiguousarray(picture, np.uint8))
    scale = max(1, SMALLEST // made.height) if made.height < SMALLEST else min(1.0, LARGEST / made.height)
    size = (max(2, round(made.width * scale) // 2 * 2), max(2, round(made.height * scale) // 2 * 2))
    return made.resize(size, Pillow.Resampling.NEAREST if scale >= 1 else Pillow.Resampling.LANCZOS)


def _panel(draw: Any, left: int, moment: Moment, limits: tuple[float, float]) -> None:
    """Bars of all actions, the chosen one in color."""
    low, high = limits
    start, width = left + 12, PANEL - 24
    for row, part in enumerate(moment.caption.split("   ")):
        draw.text((start, 8 + 14 * row), part, fill=QUIET)
    top = 62
    for i, (name, value) in enumerate(moment.bars.items()):
        y = top + i * LINE
        share = (value - low) / (high - low) if high > low else 0.0
        chosen = name in moment.chosen
        draw.text((start, y), name, fill=INK if chosen else QUIET)
        draw.text((start + width - 52, y), f"{value:.3g}", fill=INK if chosen else QUIET)
        draw.rectangle((start, y + 13, start + width, y + 17), fill=TRACK)
        draw.rectangle((start, y + 13, start + max(1, round(width * share)), y + 17), fill=ACCENT if chosen else QUIET)


def _write(path: Path, frames: Sequence[Image], speed: float) -> None:
    if path.suffix.lower() == ".mp4":
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _encoder().write_frames(str(path), frames[0].size, fps=speed, macro_block_size=2)
        writer.send(None)
        for frame in frames:
            writer.send(frame.tobytes())
        writer.close()
        return
    file = io.BytesIO()
    first, *rest = [frame.quantize(COLORS) for frame in frames]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / speed)), loop=0)
    write_atomic(path, file.getvalue())
