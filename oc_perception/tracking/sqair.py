# SPDX-License-Identifier: Apache-2.0
"""A tracker that discovers for itself: SQAIR finds, follows and forgets the objects before a
camera at rest; a track is what its particles say of one object.

The particles stand at the last observation; blind steps and trajectories are futures that the
prior draws from there. Draws are numbered by the frames seen, so that the same frames give the
same tracks wherever and however often they are tracked. Detections only lend their labels to the
tracks that they overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from oc_perception.models.registry import ModelError, load_model
from oc_perception.tracking.association import assign
from oc_perception.tracking.boxes import iou
from oc_perception.tracking.config import TrackerConfig, loaded_as
from oc_perception.tracking.foreground import BackgroundState, Foreground, View
from oc_perception.tracking.life_cycle import expired, missed, stayed
from oc_perception.tracking.motion import create_motion_model
from oc_perception.tracking.particles import (
    Found,
    Futures,
    candidates,
    each,
    identified,
    renamed,
    together,
)
from oc_perception.tracking.sensor import check_frame
from oc_perception.tracking.table import Observations, TrackTable
from oc_perception.tracking.tracker import Tracker, TrackerState, unreported
from oc_perception.types import UNLABELLED, Segmentation, SensorState, TrackOutput

_MAJORITY = 0.5
"""Share of weight from which an object is there: any two such objects share a particle."""
_LABEL_IOU = 0.5
"""Overlap from which a detection lends its label to a track."""
_RESTART_FRAMES = 5
"""Every so often, and after a blackout, one more particle discovers everything anew."""
_SEEN, _UNSEEN = 0, 1
"""What is drawn: particles in a frame, and their futures."""


@dataclass(frozen=True)
class SqairTrackerState(TrackerState):
    """`particles` is the model's state at the anchor, whose objects have the ids of tracks (None:
    no picture yet); `frames` were observed in this session.
    """

    particles: Any = None
    background: BackgroundState = field(default_factory=BackgroundState)
    frames: int = 0


class SqairTracker(Tracker):
    """Tracks of the objects that a SQAIR model finds before the background; see TrackerConfig.

    A segmentation without its frame is no observation. `model` replaces the one that
    `config.tracker_weights` names. Raises ModelError where that is missing, damaged, or of no use.
    """

    needs_frame = True

    def __init__(self, config: TrackerConfig | None = None, model: Any = None) -> None:
        config = config or TrackerConfig(tracker="sqair")
        super().__init__(config, create_motion_model(replace(config, motion_model="kalman")))
        self.model = model or _load(config)
        self._foreground = Foreground(config, self.model.frame_size)
        self._last: tuple[Any, tuple[int, int], Futures] | None = None

    def with_config(self, config: TrackerConfig) -> SqairTracker:
        """See Tracker."""
        return SqairTracker(loaded_as(self.config, config), self.model)

    def initial_state(
        self, session: bytes, image_size: tuple[int, int] | None = None
    ) -> SqairTrackerState:
        """See Tracker."""
        return SqairTrackerState(**vars(super().initial_state(session, image_size)))

    # What a Tracker asks

    def _predicted(
        self, state: SqairTrackerState, stamp_ns: int, frame: np.ndarray | None = None
    ) -> TrackTable:
        tracks = state.tracks
        if not len(tracks):
            return tracks
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9
        moving_s = min(dt_s, self.config.max_coast_s)  # all are lost by then
        belief = self.motion.predict(tracks.belief, state.image_size, moving_s)
        moved = tracks.moved(belief, labels=np.full(len(tracks), UNLABELLED))
        survival = np.exp(-dt_s / self.config.lifetime_s)
        survival = survival * stayed(self.config, tracks, moved, state.image_size)
        share, *moments = self._moments(state, np.array([0.0, moving_s]))
        survival = np.where(share[0] > 0, share[1] / np.maximum(share[0], 1e-12), survival)
        moved = moved.with_columns(existence=tracks.existence * survival)
        return _placed(moved, share[1] > 0, *(part[1] for part in moments))

    def _forecast(
        self, state: SqairTrackerState, times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        means, covariances = self.motion.forecast(state.tracks.belief, state.image_size, times_s)
        share, *moments = (part.swapaxes(0, 1) for part in self._moments(state, times_s))
        has = (share > 0)[..., None]
        return (
            np.where(has, moments[0], means),
            np.where(has[..., None], moments[1], covariances),
        )

    def _seen(self, tracks: TrackTable, stamp_ns: int) -> np.ndarray:
        return tracks.last_seen_ns == stamp_ns

    def _step_observed(
        self,
        state: SqairTrackerState,
        segmentation: Segmentation,
        stamp_ns: int,
        frame: np.ndarray | None,
    ) -> tuple[SqairTrackerState, TrackOutput]:
        if frame is None:
            return self._step_blind(state, stamp_ns, SensorState.STALE)
        check_frame(frame)
        state = self._fitted(state, frame.shape[:2])
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9 if state.anchor_ns else 0.0
        background, picture = self._foreground.step(state.background, frame, dt_s)
        tracks = self._predicted(state, stamp_ns)
        gone = expired(self.config, tracks, stamp_ns) | (picture is None)
        tracks, lost = tracks.with_columns(ages=tracks.ages + 1).split(gone)
        now = replace(
            state,
            anchor_ns=stamp_ns,
            background=background,
            frames=state.frames + 1,
            tracks=tracks,
            reported_lost=(),
        )
        if picture is None:
            now = replace(now, particles=None)
        else:
            now, found = self._looked(state, now, picture, dt_s)
            tracks = self._revised(now, found, segmentation, dt_s)
            tracks, forgotten = tracks.split(expired(self.config, tracks, stamp_ns))
            now, lost = replace(now, tracks=tracks), lost.joined(forgotten)
        none = np.zeros(len(now.tracks), bool)
        lost = unreported(state, lost)
        return now, self._output(now, now.tracks, none, lost, stamp_ns, SensorState.OK)

    # Parts of an observation

    def _fitted(self, state: SqairTrackerState, size: tuple[int, int]) -> SqairTrackerState:
        """The state in the pixels of an image of this `size`."""
        tracks = state.tracks
        if len(tracks) and state.image_size != size:
            tracks = tracks.rescaled(state.image_size, size)
        return replace(state, image_size=size, tracks=tracks)

    @torch.inference_mode()
    def _looked(
        self, before: SqairTrackerState, now: SqairTrackerState, picture: np.ndarray, dt_s: float
    ) -> tuple[SqairTrackerState, Found]:
        """The state with particles that saw `picture` `(H, W)`, `dt_s` after those of `before`,
        and with tracks that begin there; and what the particles have.
        """
        config, model = self.config, self.model
        generator = self._generator(now, _SEEN)
        steps = max(1, round(dt_s / config.frame_period_s))
        if before.particles is None or dt_s > config.max_coast_s:
            particles = model.initial_state(1, config.particles)
        elif steps > 1:
            particles = self._futures(before).after(steps - 1)
        else:
            particles = model.resample(before.particles, generator)
        frame = torch.from_numpy(picture).expand(1, 3, -1, -1)
        drawn = generator if config.particles > 1 else None
        prior = particles.log_weights
        particles, output = model.step(particles, frame, drawn)
        due = steps > 1 or now.frames % _RESTART_FRAMES == 0
        if before.particles is not None and config.restart_probability and due:
            anew, seen = model.step(model.initial_state(1, 1), frame, drawn)
            restart = seen.log_increment + math.log(config.restart_probability)
            log_weights = torch.cat([prior + output.log_increment, restart], 1)
            particles = together(particles, anew, log_weights)
            output = together(output, seen, log_weights)
        weights = particles.log_weights[0].double().exp().numpy()
        if not np.isfinite(weights).all():
            raise ValueError(f"Model {model.name!r} returned weights that are not finite.")

        tracks = now.tracks
        discovered = output.discovered[0].numpy()
        ids = np.where(discovered, 0, output.ids[0].numpy())
        ended = np.setdiff1d(ids[ids > 0], tracks.ids)
        ids = renamed(ids, ended, candidates(ids, len(ended)))
        boxes = self._view(now).to_pixels(output.boxes[0].double().numpy())
        ids = identified(ids, discovered, boxes, weights, tracks, self._gate)
        particles = particles._replace(ids=torch.from_numpy(ids)[None])
        best = particles.log_weights[0].topk(config.particles).indices
        particles = each(particles, lambda part: part[:, best])
        found = Found(ids, output.probability[0].double().numpy(), weights)
        return self._with_births(replace(now, particles=particles), found)

    def _with_births(
        self, state: SqairTrackerState, found: Found
    ) -> tuple[SqairTrackerState, Found]:
        """Tracks for the candidates that most of the weight has, nothing but named yet."""
        ids = state.particles.ids[0].numpy()
        new = np.unique(ids[ids < 0])[::-1]
        new = new[found.share(new) >= _MAJORITY]
        names = state.next_id + np.arange(len(new))
        found = found._replace(ids=renamed(found.ids, new, names))
        ids = torch.from_numpy(renamed(ids, new, names))[None]
        state = replace(
            state,
            particles=state.particles._replace(ids=ids),
            tracks=state.tracks.joined(_unknown(names)),
            next_id=state.next_id + len(new),
        )
        return state, found

    def _revised(
        self, state: SqairTrackerState, found: Found, segmentation: Segmentation, dt_s: float
    ) -> TrackTable:
        """The tracks of `state` as its particles, and `found`, have them."""
        tracks = state.tracks
        share, *moments = (part[0] for part in self._moments(state, np.zeros(1)))
        tracks = _placed(tracks, share > 0, *moments)
        seen = found.share(tracks.ids) >= _MAJORITY
        rows = np.flatnonzero(seen)
        existence = found.existence(tracks.ids)
        doubted = missed(self.config, tracks, rows, state.image_size, dt_s).existence
        hits = tracks.hits + seen
        return tracks.with_columns(
            existence=np.where(seen, existence, np.maximum(existence, doubted)),
            hits=hits,
            confirmed=tracks.confirmed | (hits >= self.config.confirm_hits),
            last_seen_ns=np.where(seen, state.anchor_ns, tracks.last_seen_ns),
            labels=_labels(tracks, rows, Observations.of(segmentation.objects)),
        )

    # What particles say

    def _moments(self, state: SqairTrackerState, times_s: np.ndarray) -> tuple[np.ndarray, ...]:
        """See Futures.moments; of the tracks, `times_s` after the anchor, with the stated errors
        of boxes in the covariances.
        """
        share, means, covariances, sizes = self._futures(state).moments(state.tracks.ids, times_s)
        return share, means, covariances + self.config.box_errors(sizes, times_s[:, None]), sizes

    def _futures(self, state: SqairTrackerState) -> Futures:
        """Of the particles of `state`. Those of the last one are kept."""
        known = self._last
        if not known or known[0] is not state.particles or known[1] != state.image_size:
            futures = Futures(
                self.model,
                state.particles,
                self.config.forecast_samples,
                self._view(state),
                self.config.frame_period_s,
                self._generator(state, _UNSEEN),
            )
            self._last = known = (state.particles, state.image_size, futures)
        return known[2]

    def _view(self, state: SqairTrackerState) -> View:
        return View(state.image_size, self.model.frame_size, self.config.window_share)

    def _generator(self, state: SqairTrackerState, what: int) -> torch.Generator:
        words = np.random.SeedSequence([self.config.seed, state.frames, what])
        seed = int(words.generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator().manual_seed(seed)


def _placed(
    tracks: TrackTable,
    has: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    sizes: np.ndarray,
) -> TrackTable:
    """`tracks` with other moments where it `has` `(N,)` some."""
    return tracks.with_columns(
        means=np.where(has[:, None], means, tracks.means),
        covariances=np.where(has[:, None, None], covariances, tracks.covariances),
        sizes=np.where(has[:, None], sizes, tracks.sizes),
    )


def _unknown(ids: np.ndarray) -> TrackTable:
    """Tracks of which nothing is known but `ids` `(N,)`."""
    count = len(ids)
    blank = {
        name: np.zeros((count, *column.shape[1:]), column.dtype)
        for name, column in vars(TrackTable.empty()).items()
    }
    return TrackTable(**blank | {"ids": ids, "ages": np.ones(count, np.int64)})


def _labels(tracks: TrackTable, rows: np.ndarray, found: Observations) -> np.ndarray:
    """Labels `(N,)` for `tracks`, of which those in `rows` are seen, of detections `found`."""
    labels = np.full(len(tracks), UNLABELLED)
    boxes = np.concatenate([found.positions, found.sizes], 1)
    overlap = iou(tracks.boxes[rows, None], boxes)
    chosen, columns = assign(np.where(overlap >= _LABEL_IOU, overlap, -np.inf))
    labels[rows[chosen]] = found.labels[columns]
    return labels


def _load(config: TrackerConfig) -> Any:
    name = config.tracker_weights
    model = load_model(name, task="video")
    if not hasattr(model, "resample"):
        raise ModelError(
            f"{name} cannot track: it remembers nothing of earlier frames. Give tracker_weights a"
            " checkpoint of sqair."
        )
    if config.slots:
        model.num_slots = config.slots
    return model
