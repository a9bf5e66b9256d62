# SPDX-License-Identifier: Apache-2.0
"""Multi-object tracker that keeps identities through sensor blackouts.

The state is anchored at the last observation. A blind step reads predictions from it and moves
nothing, so neither the number nor the stamps of blind steps can change what the tracks become
afterwards; and what is lost in between depends on elapsed time only. Each observed step runs:
predict to the stamp, drop what has expired, associate, update, revise the existence of what was
missed, give birth.

Lengths and speeds in the configuration are in image widths, because slots are discovered on a grid
of fixed size: localisation noise scales with the picture, not with the camera's pixel count.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, fields, replace

import numpy as np

from oc_perception.tracking import kalman
from oc_perception.tracking.association import (
    AppearanceModel,
    assign,
    chi_square_gate,
    position_log_likelihood,
)
from oc_perception.types import (
    UNLABELLED,
    Detection,
    Segmentation,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
    Trajectory,
    TrajectoryMode,
)


class StampError(ValueError):
    """A stamp that is late, a duplicate, or not positive; nothing was changed."""


def check_stamp(last_ns: int, stamp_ns: int, reset_threshold_s: float) -> bool:
    """Whether `stamp_ns` is so far behind `last_ns` (0: none yet) that the clock was reset.

    Raises StampError for a stamp that is not positive, late, or a duplicate.
    """
    if stamp_ns <= 0:
        raise StampError(f"Stamp {stamp_ns} ns is not positive; does the camera driver set it?")
    behind_s = (last_ns - stamp_ns) * 1e-9
    if behind_s > reset_threshold_s:
        return True
    if last_ns and behind_s >= 0:
        kind = "a duplicate of" if stamp_ns == last_ns else f"{behind_s:.4f} s behind"
        raise StampError(f"Stamp {stamp_ns} ns is {kind} the last observation; frame ignored.")
    return False


@dataclass(frozen=True)
class TrackerConfig:
    """Parameters of tracking. `_widths` means image widths; all rates and times are in seconds.

    Motion. Objects on a table slow down (`velocity_decay_per_s`, 0 = constant velocity), are
    disturbed all the time (`velocity_diffusion_widths`: standard deviation of velocity gained in
    one second, widths/s) and collide now and then (`collision_rate_per_s`,
    `collision_speed_widths_per_s`: standard deviation of the velocity jump on each axis). Rare
    jumps have the covariance of white acceleration noise of density rate x speed^2, which is
    added. The gate is wide because their tails are not Gaussian.

    Measurement. `measurement_std_widths` of a centroid on each axis: the default is a third of a
    pixel of a mask 64 wide. A box that is suddenly smaller or larger than the track's is half
    hidden or merged, so its centroid is off by up to half the difference: `occlusion_shift` px of
    standard deviation per px of difference.

    Existence. Missed detections follow each other, so a miss is weighed by the observed time it
    stands for: evidence `1 - detection_probability` per `miss_correlation_s`, never more for one
    frame. Time without frames only counts against `lifetime_s` and `max_coast_s`. Outside the view
    (by `view_margin_widths`) each frame weighs in full.

    Appearance (embedding and log size) is a Gaussian per track whose variance is learned online,
    starting from `appearance_prior_variance` with the weight of `appearance_prior_count`
    observations. `appearance_weight` < 1 because dimensions are not independent;
    `appearance_limit` (nats) is the most that a change of look can say against a match: less than
    a precise position says for it, more than the position after a long blackout does.
    """

    measurement_std_widths: float = 0.3 / 64
    occlusion_shift: float = 0.5
    velocity_decay_per_s: float = 0.1
    velocity_diffusion_widths: float = 0.02
    collision_rate_per_s: float = 0.1
    collision_speed_widths_per_s: float = 0.07
    initial_speed_widths_per_s: float = 0.2
    size_smoothing_s: float = 0.3

    gate_probability: float = 0.99999
    detection_probability: float = 0.9
    clutter_per_frame: float = 0.01
    birth_rate_per_s: float = 0.2
    min_birth_score: float = 0.5
    appearance_prior_variance: float = 0.1
    appearance_prior_count: float = 20.0
    appearance_memory_frames: int = 150
    appearance_weight: float = 0.5
    appearance_limit: float = 10.0

    birth_existence: float = 0.5
    confirm_hits: int = 3
    miss_correlation_s: float = 0.2
    lifetime_s: float = 30.0
    min_existence: float = 0.05
    max_coast_s: float = 3.0
    view_margin_widths: float = 0.02
    clock_reset_threshold_s: float = 1.0

    horizon_s: float = 1.0
    horizon_step_s: float = 0.1

    def __post_init__(self) -> None:
        may_be_zero = {
            "occlusion_shift",
            "velocity_decay_per_s",
            "collision_rate_per_s",
            "collision_speed_widths_per_s",
            "birth_rate_per_s",
            "min_birth_score",
            "appearance_weight",
            "appearance_limit",
            "view_margin_widths",
            "clock_reset_threshold_s",
            "horizon_s",
        }
        below_one = {
            "gate_probability",
            "detection_probability",
            "birth_existence",
            "min_existence",
            "min_birth_score",
        }
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if (
                not np.isfinite(value)
                or value < 0
                or (value == 0 and parameter.name not in may_be_zero)
            ):
                raise ValueError(f"{parameter.name} must be finite and positive, not {value}.")
            if parameter.name in below_one and value >= 1:
                raise ValueError(f"{parameter.name} is a probability below 1, not {value}.")
        if self.min_existence >= self.birth_existence:
            raise ValueError("min_existence must be below birth_existence, or no track is born.")

    def motion_model(self, image_width_px: float) -> kalman.MotionModel:
        """The motion model in pixels of an image that is `image_width_px` wide."""
        density = (
            self.velocity_diffusion_widths**2
            + self.collision_rate_per_s * self.collision_speed_widths_per_s**2
        )
        return kalman.MotionModel(density * image_width_px**2, self.velocity_decay_per_s)


@dataclass(frozen=True)
class TrackTable:
    """All tracks as columns, `N` rows in order of birth; arrays are never written in place."""

    ids: np.ndarray  # (N,) int64
    means: np.ndarray  # (N, 4) px, px/s
    covariances: np.ndarray  # (N, 4, 4)
    sizes: np.ndarray  # (N, 2) px, smoothed
    existence: np.ndarray  # (N,)
    confirmed: np.ndarray  # (N,) bool
    ages: np.ndarray  # (N,) int64
    hits: np.ndarray  # (N,) int64
    last_seen_ns: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64, UNLABELLED where not matched in the last observation
    appearances: np.ndarray  # (N, D) means
    appearance_counts: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray) -> TrackTable:
        return TrackTable(*(getattr(self, f.name)[rows] for f in fields(self)))

    def joined(self, other: TrackTable) -> TrackTable:
        """This table with the rows of `other` below."""
        return TrackTable(
            *(
                np.concatenate([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(self)
            )
        )

    @classmethod
    def empty(cls, appearance_dimensions: int = 0) -> TrackTable:
        """No tracks."""
        whole = np.zeros(0, np.int64)
        real = np.zeros(0)
        return cls(
            ids=whole,
            means=np.zeros((0, 4)),
            covariances=np.zeros((0, 4, 4)),
            sizes=np.zeros((0, 2)),
            existence=real,
            confirmed=np.zeros(0, bool),
            ages=whole,
            hits=whole,
            last_seen_ns=whole,
            labels=whole,
            appearances=np.zeros((0, appearance_dimensions)),
            appearance_counts=real,
        )


@dataclass(frozen=True)
class TrackerState:
    """Everything the tracker remembers; anchored at `anchor_ns`, the stamp of the last observation
    (0: none yet).

    `reported_lost` are ids that a blind step has reported LOST; an observation settles and clears
    them.
    """

    session: bytes
    image_size: tuple[int, int] | None  # (height, width) px
    anchor_ns: int = 0
    next_id: int = 1
    resets: int = 0
    tracks: TrackTable = field(default_factory=TrackTable.empty)
    appearance: AppearanceModel | None = None
    reported_lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Observations:
    """Detections as columns, `M` rows in the order of the segmentation."""

    positions: np.ndarray  # (M, 2)
    sizes: np.ndarray  # (M, 2)
    labels: np.ndarray  # (M,)
    scores: np.ndarray  # (M,)
    appearances: np.ndarray  # (M, D), embedding then log size

    @classmethod
    def of(cls, detections: tuple[Detection, ...]) -> _Observations:
        if not detections:
            return cls(
                np.zeros((0, 2)),
                np.zeros((0, 2)),
                np.zeros(0, np.int64),
                np.zeros(0),
                np.zeros((0, 0)),
            )
        if len({np.shape(d.embedding) for d in detections}) > 1:
            raise ValueError("Detections of one segmentation must have embeddings of one length.")
        boxes = np.array([d.box for d in detections], np.float64)
        embeddings = np.array([d.embedding for d in detections], np.float64)
        if boxes.shape != (len(detections), 4) or not np.isfinite(boxes).all():
            raise ValueError("A detection's box must be four finite numbers (cx, cy, w, h) in px.")
        if not np.isfinite(embeddings).all():
            raise ValueError("A detection's embedding must be finite.")
        sizes = np.maximum(boxes[:, 2:], 1.0)  # nothing visible is smaller than a pixel
        return cls(
            positions=boxes[:, :2],
            sizes=sizes,
            labels=np.array([d.label for d in detections], np.int64),
            scores=np.array([d.score for d in detections], np.float64),
            appearances=np.concatenate([embeddings, np.log(sizes)], 1),
        )


class Tracker:
    """Detections in, identities with states, covariances and predicted trajectories out."""

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.config = config or TrackerConfig()
        self._gate = chi_square_gate(self.config.gate_probability)
        steps = round(self.config.horizon_s / self.config.horizon_step_s)
        self._horizon_s = self.config.horizon_step_s * np.arange(1, steps + 1)

    def initial_state(
        self, session: bytes, image_size: tuple[int, int] | None = None
    ) -> TrackerState:
        """No tracks yet. `session` is a UUID (16 bytes); `image_size` `(height, width)` px, else
        from label images.
        """
        if len(session) != 16:
            raise ValueError(f"A session is a UUID of 16 bytes, not {len(session)}.")
        return TrackerState(session, image_size)

    def step(
        self, state: TrackerState, segmentation: Segmentation | None, stamp_ns: int
    ) -> tuple[TrackerState, TrackOutput]:
        """Advance to `stamp_ns`.

        None, or a segmentation whose `sensor_state` is not OK, is *no observation*: tracks coast
        and the anchor stays. A segmentation without detections is an observation of nothing, and
        counts as a miss for every track.

        A stamp further than `clock_reset_threshold_s` behind the last observation starts a new
        session. Raises StampError for any other stamp that is not newer than the last observation,
        ValueError for detections that are not finite; `state` stays usable after both.
        """
        if self.check_stamp(state, stamp_ns):
            session = uuid.uuid5(uuid.UUID(bytes=state.session), f"reset {state.resets + 1}")
            state = TrackerState(session.bytes, state.image_size, resets=state.resets + 1)
        if segmentation is None or segmentation.sensor_state != SensorState.OK:
            sensor_state = segmentation.sensor_state if segmentation else SensorState.STALE
            return self._step_blind(state, stamp_ns, sensor_state)
        return self._step_observed(state, segmentation, stamp_ns)

    def check_stamp(self, state: TrackerState, stamp_ns: int) -> bool:
        """Whether a step at `stamp_ns` starts a new session. Raises StampError where the step
        would.
        """
        return check_stamp(state.anchor_ns, stamp_ns, self.config.clock_reset_threshold_s)

    def predict(
        self, state: TrackerState, stamp_ns: int, sensor_state: SensorState = SensorState.STALE
    ) -> TrackOutput:
        """Tracks at any `stamp_ns` from the anchor on, as a blind step reports them; changes
        nothing.
        """
        return self._step_blind(state, stamp_ns, sensor_state)[1]

    # Steps

    def _step_blind(
        self, state: TrackerState, stamp_ns: int, sensor_state: SensorState
    ) -> tuple[TrackerState, TrackOutput]:
        predicted = self._predicted(state, stamp_ns)
        predicted = replace(predicted, labels=np.full(len(predicted), UNLABELLED))
        expired = self._expired(predicted, stamp_ns)
        lost = predicted[expired & ~np.isin(predicted.ids, state.reported_lost)]
        state = replace(state, reported_lost=state.reported_lost + tuple(lost.ids.tolist()))
        return state, self._output(state, predicted[~expired], lost, stamp_ns, sensor_state)

    def _step_observed(
        self, state: TrackerState, segmentation: Segmentation, stamp_ns: int
    ) -> tuple[TrackerState, TrackOutput]:
        config = self.config
        seen = _Observations.of(segmentation.objects)
        state = self._fitted(state, segmentation, seen)
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9 if state.anchor_ns else 0.0
        tracks = self._predicted(state, stamp_ns)
        tracks = replace(tracks, ages=tracks.ages + 1, labels=np.full(len(tracks), UNLABELLED))
        expired = self._expired(tracks, stamp_ns)
        lost, tracks = tracks[expired], tracks[~expired]

        width = state.image_size[1]
        noises = self._measurement_noise(tracks, seen, width)
        rows, columns, evidence = self._associate(state, tracks, seen, noises, dt_s)
        tracks = self._missed(tracks, rows, state.image_size, dt_s)
        tracks, appearance = self._matched(
            state, tracks, rows, seen, columns, noises, evidence, dt_s, stamp_ns
        )
        gone = self._expired(tracks, stamp_ns)
        lost, tracks = lost.joined(tracks[gone]), tracks[~gone]

        unused = np.ones(len(seen.labels), bool)
        unused[columns] = False
        unused &= seen.scores >= config.min_birth_score
        born = self._born(state, seen, np.flatnonzero(unused), stamp_ns)
        lost = lost[~np.isin(lost.ids, state.reported_lost)]
        state = replace(
            state,
            anchor_ns=stamp_ns,
            next_id=state.next_id + len(born),
            tracks=tracks.joined(born),
            appearance=appearance,
            reported_lost=(),
        )
        return state, self._output(state, state.tracks, lost, stamp_ns, SensorState.OK)

    # Parts of a step

    def _fitted(
        self, state: TrackerState, segmentation: Segmentation, seen: _Observations
    ) -> TrackerState:
        """The state in the pixels and the appearance space of this segmentation, should they have
        changed.
        """
        config = self.config
        size = state.image_size
        if segmentation.label_image is not None:
            size = segmentation.label_image.shape[:2]
        if size is None:
            raise ValueError(
                "The image size is unknown: give image_size to initial_state, or a label image."
            )
        tracks = state.tracks
        if state.image_size not in (None, size) and len(tracks):
            scale = np.array(size[::-1]) / np.array(state.image_size[::-1])
            scale4 = np.concatenate([scale, scale])
            tracks = replace(
                tracks,
                # pixel centres are integers, so the left edge of the image is at -0.5
                means=tracks.means * scale4 + np.r_[(scale - 1) / 2, 0, 0],
                covariances=tracks.covariances * np.outer(scale4, scale4),
                sizes=tracks.sizes * scale,
            )
        appearance = state.appearance
        dimensions = seen.appearances.shape[1]
        if dimensions and (appearance is None or len(appearance.squares) != dimensions):
            appearance = AppearanceModel.prior(
                dimensions, config.appearance_prior_variance, config.appearance_prior_count
            )
            tracks = replace(
                tracks,
                appearances=np.zeros((len(tracks), dimensions)),
                appearance_counts=np.zeros(len(tracks)),
            )
        return replace(state, image_size=tuple(size), tracks=tracks, appearance=appearance)

    def _predicted(self, state: TrackerState, stamp_ns: int) -> TrackTable:
        """Tracks at `stamp_ns`; survival, like motion, depends on elapsed time only."""
        tracks = state.tracks
        if not len(tracks):
            return tracks
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9
        motion = self.config.motion_model(state.image_size[1])
        means, covariances = motion.predict(tracks.means, tracks.covariances, dt_s)
        survival = np.exp(-dt_s / self.config.lifetime_s)
        return replace(
            tracks, means=means, covariances=covariances, existence=tracks.existence * survival
        )

    def _expired(self, tracks: TrackTable, stamp_ns: int) -> np.ndarray:
        coast_s = (stamp_ns - tracks.last_seen_ns) * 1e-9
        return (tracks.existence < self.config.min_existence) | (coast_s > self.config.max_coast_s)

    def _measurement_noise(
        self, tracks: TrackTable, seen: _Observations, width: float
    ) -> np.ndarray:
        """Covariance `(N, M, 2, 2)` px^2 of the centroid, should the detection be the track."""
        variance = (self.config.measurement_std_widths * width) ** 2
        change = seen.sizes[None] - tracks.sizes[:, None]
        diagonal = variance + (self.config.occlusion_shift * change) ** 2
        return diagonal[..., None] * np.eye(2)

    def _associate(
        self,
        state: TrackerState,
        tracks: TrackTable,
        seen: _Observations,
        noises: np.ndarray,
        dt_s: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matched rows and columns, and the log likelihood ratio of each match against something
        new.
        """
        config = self.config
        if not len(tracks) or not len(seen.labels):
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, np.zeros(0)
        log_likelihood, distance = position_log_likelihood(
            tracks.means, tracks.covariances, seen.positions, noises
        )
        height, width = state.image_size
        expected_new = config.clutter_per_frame + config.birth_rate_per_s * dt_s
        log_new = np.log(expected_new / (height * width))
        look = config.appearance_weight * state.appearance.log_ratio(
            tracks.appearances, tracks.appearance_counts, seen.appearances
        )
        ratio = log_likelihood - log_new + np.maximum(look, -config.appearance_limit)
        detected = tracks.existence * config.detection_probability
        log_odds = ratio + np.log(detected / (1 - detected))[:, None]
        rows, columns = assign(np.where(distance <= self._gate, log_odds, -np.inf))
        evidence = ratio[rows, columns] + np.log(config.detection_probability)
        return rows, columns, evidence

    def _missed(
        self, tracks: TrackTable, matched: np.ndarray, size: tuple[int, int], dt_s: float
    ) -> TrackTable:
        """Lower the existence of tracks that this observation should have shown and did not."""
        config = self.config
        margin = config.view_margin_widths * size[1]
        limit = np.array([size[1], size[0]]) - 1 + margin
        position = tracks.means[:, :2]
        outside = ((position < -margin) | (position > limit)).any(1)
        # Clutter comes and goes from frame to frame: for a tentative track each miss stands for
        # itself.
        weight = np.where(
            outside | ~tracks.confirmed, 1.0, min(1.0, dt_s / config.miss_correlation_s)
        )
        likelihood = (1 - config.detection_probability) ** weight
        alive = tracks.existence * likelihood
        existence = alive / (alive + 1 - tracks.existence)
        missed = np.ones(len(tracks), bool)
        missed[matched] = False
        return replace(tracks, existence=np.where(missed, existence, tracks.existence))

    def _matched(
        self,
        state: TrackerState,
        tracks: TrackTable,
        rows: np.ndarray,
        seen: _Observations,
        columns: np.ndarray,
        noises: np.ndarray,
        evidence: np.ndarray,
        dt_s: float,
        stamp_ns: int,
    ) -> tuple[TrackTable, AppearanceModel | None]:
        """Update the tracks in `rows` with the detections in `columns`."""
        config = self.config
        if not len(rows):
            return tracks, state.appearance
        matched = tracks[rows]
        means, covariances = kalman.update(
            matched.means, matched.covariances, seen.positions[columns], noises[rows, columns]
        )
        appearance, looks, counts = state.appearance.learn(
            matched.appearances,
            matched.appearance_counts,
            seen.appearances[columns],
            config.appearance_memory_frames,
            20 * config.appearance_memory_frames,
        )
        blend = -np.expm1(-dt_s / config.size_smoothing_s)
        alive = matched.existence * np.exp(np.minimum(evidence, 50.0))
        hits = matched.hits + 1
        updated = TrackTable(
            ids=matched.ids,
            means=means,
            covariances=covariances,
            sizes=matched.sizes + blend * (seen.sizes[columns] - matched.sizes),
            existence=alive / (alive + 1 - matched.existence),
            confirmed=matched.confirmed | (hits >= config.confirm_hits),
            ages=matched.ages,
            hits=hits,
            last_seen_ns=np.full(len(rows), stamp_ns),
            labels=seen.labels[columns],
            appearances=looks,
            appearance_counts=counts,
        )
        order = np.arange(len(tracks))
        order[rows] = len(tracks) + np.arange(len(rows))
        return tracks.joined(updated)[order], appearance

    def _born(
        self, state: TrackerState, seen: _Observations, new: np.ndarray, stamp_ns: int
    ) -> TrackTable:
        """Tracks from the detections in `new`, at rest in the mean."""
        config = self.config
        count, width = len(new), state.image_size[1]
        variances = np.repeat(
            [config.measurement_std_widths, config.initial_speed_widths_per_s], 2
        )
        return TrackTable(
            ids=state.next_id + np.arange(count),
            means=np.concatenate([seen.positions[new], np.zeros((count, 2))], 1),
            covariances=np.tile(np.diag((variances * width) ** 2), (count, 1, 1)),
            sizes=seen.sizes[new],
            existence=np.full(count, config.birth_existence),
            confirmed=np.full(count, config.confirm_hits <= 1),
            ages=np.ones(count, np.int64),
            hits=np.ones(count, np.int64),
            last_seen_ns=np.full(count, stamp_ns),
            labels=seen.labels[new],
            appearances=seen.appearances[new].reshape(count, state.tracks.appearances.shape[1]),
            appearance_counts=np.ones(count),
        )

    # Output

    def _output(
        self,
        state: TrackerState,
        tracks: TrackTable,
        lost: TrackTable,
        stamp_ns: int,
        sensor_state: SensorState,
    ) -> TrackOutput:
        seen = tracks.labels != UNLABELLED
        states = np.where(
            tracks.confirmed,
            np.where(seen, TrackState.CONFIRMED, TrackState.COASTING),
            TrackState.TENTATIVE,
        )
        described = [
            *_describe(tracks, states),
            *_describe(lost, np.full(len(lost), TrackState.LOST)),
        ]
        return TrackOutput(
            stamp_ns=stamp_ns,
            source_stamp_ns=state.anchor_ns,
            session=state.session,
            sensor_state=sensor_state,
            tracks=tuple(described),
            trajectories=self._trajectories(state, tracks, states),
        )

    def _trajectories(
        self, state: TrackerState, tracks: TrackTable, states: np.ndarray
    ) -> tuple[Trajectory, ...]:
        if not len(tracks) or not len(self._horizon_s):
            return ()
        means, covariances = self.config.motion_model(state.image_size[1]).predict(
            tracks.means[:, None], tracks.covariances[:, None], self._horizon_s
        )
        sizes = np.broadcast_to(tracks.sizes[:, None], (*means.shape[:2], 2))
        boxes = np.concatenate([means[..., :2], sizes], -1)
        spreads = covariances[..., [0, 0, 1], [0, 1, 1]]
        return tuple(
            Trajectory(
                track_id=int(tracks.ids[i]),
                track_state=TrackState(states[i]),
                modes=(TrajectoryMode(1.0, self._horizon_s, boxes[i], spreads[i]),),
            )
            for i in range(len(tracks))
        )


def _describe(tracks: TrackTable, states: np.ndarray) -> list[Track]:
    """The rows of a table in the shared vocabulary."""
    boxes = np.concatenate([tracks.means[:, :2], tracks.sizes], 1)
    embeddings = tracks.appearances[:, :-2].astype(np.float32)  # without the log size
    columns = (
        tracks.ids.tolist(),
        states.tolist(),
        tracks.existence.tolist(),
        tracks.ages.tolist(),
        tracks.hits.tolist(),
        tracks.last_seen_ns.tolist(),
        tracks.labels.tolist(),
    )
    return [
        Track(
            id=track_id,
            state=TrackState(state),
            box=boxes[i],
            velocity=tracks.means[i, 2:],
            covariance=tracks.covariances[i],
            existence_probability=existence,
            age=age,
            hits=hits,
            last_seen_ns=last_seen_ns,
            slot_label=label,
            embedding=embeddings[i],
        )
        for i, (track_id, state, existence, age, hits, last_seen_ns, label) in enumerate(
            zip(*columns, strict=True)
        )
    ]
