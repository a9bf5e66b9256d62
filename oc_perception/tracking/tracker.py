# SPDX-License-Identifier: Apache-2.0
"""Multi-object tracker that keeps identities through sensor blackouts.

The state is anchored at the last observation. A blind step reads predictions from it and moves
nothing, so neither the number nor the stamps of blind steps can change what the tracks become
afterwards; and what is lost in between depends on elapsed time only. Each observed step runs:
predict to the stamp, drop what has expired, associate, update, revise the existence of what was
missed, give birth.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace

import numpy as np

from oc_perception.tracking.association import (
    AppearanceModel,
    assign,
    chi_square_gate,
    position_log_likelihood,
)
from oc_perception.tracking.config import TrackerConfig, loaded_as
from oc_perception.tracking.life_cycle import born, expired, missed, stayed
from oc_perception.tracking.motion import Belief, MotionModel, create_motion_model
from oc_perception.tracking.output import describe, track_states, trajectories
from oc_perception.tracking.stamps import check_stamp
from oc_perception.tracking.table import Observations, Sightings, TrackTable
from oc_perception.types import (
    UNLABELLED,
    Segmentation,
    SensorState,
    TrackOutput,
    TrackState,
    Trajectory,
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


class Tracker:
    """Detections in, identities with states, covariances and predicted trajectories out.

    Whether a tracker wants to see the pictures, too, is in `needs_frame`. `motion` overrides the
    motion model that `config` names. Raises ValueError where that one cannot be loaded.
    """

    needs_frame = False

    def __init__(
        self, config: TrackerConfig | None = None, motion: MotionModel | None = None
    ) -> None:
        self.config = config or TrackerConfig()
        self.motion = motion or create_motion_model(self.config)
        self._gate = chi_square_gate(self.config.gate_probability)
        steps = round(self.config.horizon_s / self.config.horizon_step_s)
        self._horizon_s = self.config.horizon_step_s * np.arange(1, steps + 1)

    def with_config(self, config: TrackerConfig) -> Tracker:
        """The same tracker with other settings; what it has loaded stays."""
        config = loaded_as(self.config, config)
        learned = config.motion_model == "relational"
        return Tracker(config, self.motion if learned else None)

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
        self,
        state: TrackerState,
        segmentation: Segmentation | None,
        stamp_ns: int,
        frame: np.ndarray | None = None,
    ) -> tuple[TrackerState, TrackOutput]:
        """Advance to `stamp_ns`; `frame` `(H, W, 3)` uint8 RGB is the picture that was segmented.

        None, or a segmentation whose `sensor_state` is not OK, is *no observation*: tracks coast
        and the anchor stays. A segmentation without detections is an observation of nothing, and
        counts as a miss for every track.

        A stamp further than `clock_reset_threshold_s` behind the last observation starts a new
        session. Raises StampError for any other stamp that is not newer than the last observation,
        ValueError for detections that are not finite; `state` stays usable after both.
        """
        if self.check_stamp(state, stamp_ns):
            session = uuid.uuid5(uuid.UUID(bytes=state.session), f"reset {state.resets + 1}")
            fresh = self.initial_state(session.bytes, state.image_size)
            state = replace(fresh, resets=state.resets + 1)
        if segmentation is None or segmentation.sensor_state != SensorState.OK:
            sensor_state = segmentation.sensor_state if segmentation else SensorState.STALE
            return self._step_blind(state, stamp_ns, sensor_state)
        return self._step_observed(state, segmentation, stamp_ns, frame)

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
        state = self._remembering(state)
        predicted = self._predicted(state, stamp_ns)
        gone = expired(self.config, predicted, stamp_ns)
        lost = unreported(state, predicted[gone])
        state = replace(state, reported_lost=state.reported_lost + tuple(lost.ids.tolist()))
        return state, self._output(state, predicted, gone, lost, stamp_ns, sensor_state)

    def _step_observed(
        self,
        state: TrackerState,
        segmentation: Segmentation,
        stamp_ns: int,
        frame: np.ndarray | None,
    ) -> tuple[TrackerState, TrackOutput]:
        config = self.config
        seen = Observations.of(segmentation.objects)
        state = self._fitted(state, segmentation, seen)
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9 if state.anchor_ns else 0.0
        tracks = self._predicted(state, stamp_ns, frame)
        tracks = tracks.with_columns(ages=tracks.ages + 1)
        tracks, lost_before = tracks.split(expired(config, tracks, stamp_ns))

        noises = self._measurement_noise(tracks, seen, state.image_size[1])
        rows, columns, evidence = self._associate(state, tracks, seen, noises, dt_s)
        tracks = missed(config, tracks, rows, state.image_size, dt_s)
        if len(tracks):
            at = Sightings(
                rows, seen.positions[columns], seen.sizes[columns], noises[rows, columns]
            )
            tracks = tracks.moved(self._placed(tracks.belief, state.image_size, at, dt_s, frame))
        tracks, appearance = self._matched(state, tracks, rows, seen, columns, evidence, stamp_ns)
        tracks, lost = tracks.split(expired(config, tracks, stamp_ns))

        new = born(config, seen, columns, tracks, state.next_id, state.image_size[1], stamp_ns)
        lost = unreported(state, lost_before.joined(lost))
        state = replace(
            state,
            anchor_ns=stamp_ns,
            next_id=state.next_id + len(new),
            tracks=tracks.joined(new),
            appearance=appearance,
            reported_lost=(),
        )
        none = np.zeros(len(state.tracks), bool)
        output = self._output(state, state.tracks, none, lost, stamp_ns, SensorState.OK)
        return state, output

    # Parts of a step

    def _remembering(self, state: TrackerState) -> TrackerState:
        """The state with memories that fit the motion model, should that have changed."""
        tracks, size = state.tracks, self.motion.memory_size
        if tracks.memories.shape[1] == size:
            return state
        tracks = tracks.with_columns(memories=np.zeros((len(tracks), size)))
        return replace(state, tracks=tracks)

    def _fitted(
        self, state: TrackerState, segmentation: Segmentation, seen: Observations
    ) -> TrackerState:
        """The state in the pixels and the appearance space of this segmentation, should they have
        changed.
        """
        config = self.config
        state = self._remembering(state)
        size = state.image_size
        if segmentation.label_image is not None:
            size = segmentation.label_image.shape[:2]
        if size is None:
            raise ValueError(
                "The image size is unknown: give image_size to initial_state, or a label image."
            )
        tracks = state.tracks
        if state.image_size not in (None, size) and len(tracks):
            tracks = tracks.rescaled(state.image_size, size)
        appearance = state.appearance
        dimensions = seen.appearances.shape[1]
        if dimensions and (appearance is None or len(appearance.squares) != dimensions):
            appearance = AppearanceModel.prior(
                dimensions, config.appearance_prior_variance, config.appearance_prior_count
            )
            tracks = tracks.with_columns(
                appearances=np.zeros((len(tracks), dimensions)),
                appearance_counts=np.zeros(len(tracks)),
            )
        return replace(state, image_size=tuple(size), tracks=tracks, appearance=appearance)

    def _predicted(
        self, state: TrackerState, stamp_ns: int, frame: np.ndarray | None = None
    ) -> TrackTable:
        """Tracks at `stamp_ns`, unseen; survival, like motion, depends on elapsed time only."""
        tracks = state.tracks
        if not len(tracks):
            return tracks
        dt_s = (stamp_ns - state.anchor_ns) * 1e-9
        # All are lost by then, and a model that goes in steps would never come to an end.
        moving_s = min(dt_s, self.config.max_coast_s)
        belief = self._moved(tracks.belief, state.image_size, moving_s, frame)
        moved = tracks.moved(belief, labels=np.full(len(tracks), UNLABELLED))
        survival = np.exp(-dt_s / self.config.lifetime_s)
        survival = survival * stayed(self.config, tracks, moved, state.image_size)
        return moved.with_columns(existence=tracks.existence * survival)

    def _moved(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        dt_s: float,
        frame: np.ndarray | None,
    ) -> Belief:
        """`belief` `dt_s` seconds later, where there is this `frame`, if any."""
        return self.motion.predict(belief, image_size, dt_s)

    def _forecast(self, state: TrackerState, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means `(N, K, 4)` and covariances `(N, K, 4, 4)` of all tracks, unseen, `times_s` `(K,)`
        after the anchor.
        """
        return self.motion.forecast(state.tracks.belief, state.image_size, times_s)

    def _seen(self, tracks: TrackTable, stamp_ns: int) -> np.ndarray:
        """Which of `tracks` `(N,)`, valid at `stamp_ns`, are observed there."""
        return tracks.labels != UNLABELLED

    def _placed(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        at: Sightings,
        dt_s: float,
        frame: np.ndarray | None,
    ) -> Belief:
        """`belief` once it is known where objects are, `dt_s` after the last observation."""
        updated = self.motion.update(belief, image_size, at.rows, at.positions, at.noises)
        blend = -np.expm1(-dt_s / self.config.size_smoothing_s)
        sizes = belief.sizes.copy()
        sizes[at.rows] += blend * (at.sizes - sizes[at.rows])
        return replace(updated, sizes=sizes)

    def _measurement_noise(
        self, tracks: TrackTable, seen: Observations, width: float
    ) -> np.ndarray:
        """Covariance `(N, M, 2, 2)` px^2 of the centroid, should the detection be the track."""
        variance = (self.config.measurement_std_widths * width) ** 2
        areas = tracks.sizes.prod(-1)[:, None, None]
        variance = variance + self.config.measurement_std_sizes**2 * areas
        change = seen.sizes[None] - tracks.sizes[:, None]
        diagonal = variance + (self.config.occlusion_shift * change) ** 2
        return diagonal[..., None] * np.eye(2)

    def _associate(
        self,
        state: TrackerState,
        tracks: TrackTable,
        seen: Observations,
        noises: np.ndarray,
        dt_s: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matched rows and columns, and the log likelihood ratio of each match against something
        new.
        """
        config = self.config
        if not len(tracks) or not len(seen):
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, np.zeros(0)
        log_likelihood, distance = position_log_likelihood(
            tracks.means, tracks.covariances, seen.positions, noises
        )
        height, width = state.image_size
        high = seen.scores >= config.high_score
        expected_new = np.where(
            high,
            config.clutter_per_frame + config.birth_rate_per_s * dt_s,
            config.low_score_clutter_per_frame,
        )
        log_new = np.log(expected_new / (height * width))
        look = config.appearance_weight * state.appearance.log_ratio(
            tracks.appearances, tracks.appearance_counts, seen.appearances
        )
        ratio = log_likelihood - log_new + np.maximum(look, -config.appearance_limit)
        detected = tracks.existence * config.detection_probability
        log_odds = ratio + np.log(detected / (1 - detected))[:, None]
        log_odds = np.where(distance <= self._gate, log_odds, -np.inf)
        rows, columns = assign(np.where(high, log_odds, -np.inf))
        if not high.all():
            left = ~np.isin(np.arange(len(tracks)), rows)[:, None]
            more = assign(np.where(left & ~high, log_odds, -np.inf))
            rows, columns = np.r_[rows, more[0]], np.r_[columns, more[1]]
        evidence = ratio[rows, columns] + np.log(config.detection_probability)
        return rows, columns, evidence

    def _matched(
        self,
        state: TrackerState,
        tracks: TrackTable,
        rows: np.ndarray,
        seen: Observations,
        columns: np.ndarray,
        evidence: np.ndarray,
        stamp_ns: int,
    ) -> tuple[TrackTable, AppearanceModel | None]:
        """What else than motion the tracks in `rows` learn from the detections in `columns`."""
        config = self.config
        if not len(rows):
            return tracks, state.appearance
        appearance, looks, counts = state.appearance.learn(
            tracks.appearances[rows],
            tracks.appearance_counts[rows],
            seen.appearances[columns],
            config.appearance_memory_frames,
            20 * config.appearance_memory_frames,
        )
        existence = tracks.existence[rows]
        alive = existence * np.exp(np.minimum(evidence, 50.0))
        hits = tracks.hits[rows] + 1
        tracks = tracks.with_rows(
            rows,
            existence=alive / (alive + 1 - existence),
            confirmed=tracks.confirmed[rows] | (hits >= config.confirm_hits),
            hits=hits,
            last_seen_ns=stamp_ns,
            labels=seen.labels[columns],
            appearances=looks,
            appearance_counts=counts,
        )
        return tracks, appearance

    def _output(
        self,
        state: TrackerState,
        tracks: TrackTable,
        gone: np.ndarray,
        lost: TrackTable,
        stamp_ns: int,
        sensor_state: SensorState,
    ) -> TrackOutput:
        """What is said at `stamp_ns` of `tracks`, which are those of `state` moved there; `gone`
        says which of them are lost, `lost` which to report as such.
        """
        futures: tuple[Trajectory, ...] = ()
        described, _ = tracks.split(gone)
        states = track_states(described, self._seen(described, stamp_ns))
        if len(described):
            variance = (self.config.systematic_std_widths * state.image_size[1]) ** 2
            systematic = np.diag([variance, variance, 0.0, 0.0])
            described = described.with_columns(covariances=described.covariances + systematic)
        if len(described) and len(self._horizon_s):
            # From the anchor and of all tracks, as `tracks` themselves: a motion model may keep
            # what it computed for them, and objects may act on one another.
            elapsed_s = (stamp_ns - state.anchor_ns) * 1e-9
            means, covariances = self._forecast(state, elapsed_s + self._horizon_s)
            means, covariances = means[~gone], covariances[~gone] + systematic
            futures = trajectories(described, states, self._horizon_s, means, covariances)
        return TrackOutput(
            stamp_ns=stamp_ns,
            source_stamp_ns=state.anchor_ns,
            session=state.session,
            sensor_state=sensor_state,
            tracks=(
                *describe(described, states),
                *describe(lost, np.full(len(lost), TrackState.LOST)),
            ),
            trajectories=futures,
        )


def create_tracker(config: TrackerConfig) -> Tracker:
    """The tracker that `config.tracker` names.

    Raises ValueError where weights are missing or damaged, or torch is not installed.
    """
    if config.tracker == "filter":
        return Tracker(config)
    try:  # they need torch
        from oc_perception.tracking.mohart import MohartTracker
        from oc_perception.tracking.sqair import SqairTracker
    except ImportError as error:
        raise ValueError(
            f"tracker {config.tracker!r} cannot be used ({error}): install torch, or choose "
            "tracker filter."
        ) from error
    return {"mohart": MohartTracker, "sqair": SqairTracker}[config.tracker](config)


def unreported(state: TrackerState, lost: TrackTable) -> TrackTable:
    """Those of `lost` that no blind step has reported."""
    if not len(lost) or not state.reported_lost:
        return lost
    return lost[~np.isin(lost.ids, state.reported_lost)]
