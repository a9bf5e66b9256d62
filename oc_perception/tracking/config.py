# SPDX-License-Identifier: Apache-2.0
"""The parameters of tracking, and the checks that they make sense.

Lengths and speeds are in image widths, because slots are discovered on a grid of fixed size:
localisation noise scales with the picture, not with the camera's pixel count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from oc_perception.tracking.kalman import MotionModel

MOTION_MODELS = ("kalman", "relational", "kalman_walls", "constant_velocity", "hold")
"""What `motion_model` can be; the last three serve as measures of the first two."""
TRACKERS = ("filter", "mohart", "sqair")
"""What `tracker` can be."""
BACKGROUNDS = ("learned", "black")
"""What `background` can be."""


@dataclass(frozen=True)
class TrackerConfig:
    """Parameters of tracking. `_widths` means image widths; all rates and times are in seconds.

    Motion. `motion_model` is one of MOTION_MODELS; `relational` is learned and reads the
    checkpoint `motion_weights` (of an embedding it is told the first `motion_features` numbers,
    should it have learned what they mean), the others share the following beliefs. Objects on a
    table slow down (`velocity_decay_per_s`, 0 = constant velocity), are disturbed all the time
    (`velocity_diffusion_widths`: standard deviation of velocity gained in one second, widths/s)
    and collide now and then (`collision_rate_per_s`, `collision_speed_widths_per_s`: standard
    deviation of the velocity jump on each axis). Rare jumps have the covariance of white
    acceleration noise of density rate x speed^2, which is added. The gate is wide because their
    tails are not Gaussian.

    Sight. With `tracker` `mohart`, objects are not moved by a motion model but followed in the
    pictures, by the network whose checkpoint is `tracker_weights`, in steps of `frame_period_s`:
    the time between two frames in which it learned. It says nothing of its errors, so these are
    stated, in box sizes: `box_std_sizes` of a box where something was found, and
    `blind_std_sizes_per_s` of its velocity, by which the error grows until something is found
    there again. The defaults are the errors of `mohart_d3a_cpu` on discs like those it learned
    from. Every period within `horizon_s` costs a step of the network.

    Discovery and tracking in one. With `tracker` `sqair`, for cameras at rest, the network of
    `tracker_weights` finds, follows and forgets the objects itself, in `particles` hypotheses that
    are weighed by the pictures; it sees up to `slots` objects (0: as many as it learned with).
    One particle takes what is most probable in what it sees; draws begin from `seed`.
    Once objects are there, the network hardly believes that others appear: so now and then a
    particle joins in which all is discovered anew, with the weight of `restart_probability`. An
    object is where its particles have it on average and exists as far as they have it; its box is
    the `window_share` of the width and height of their windows, and its covariance is their
    spread, to which errors are added as for `mohart`: particles resemble one another. While blind,
    and in trajectories, the prior goes on from every particle by `forecast_samples` ways. What no
    particle has any more is remembered, and moved as by the Kalman filter, until it is found again
    there or `detection_probability` speaks against it. The network sees what stands out before the
    `background`, one of BACKGROUNDS, fully bright where the difference is `foreground_contrast` of
    the range. A `learned` one is the median of `background_frames` in which nothing is tracked,
    taken anew should as many in a row be of another background; it takes up a change from black to
    white within `background_s`.

    Measurement. `measurement_std_widths` of a centroid on each axis: the default is a third of a
    pixel of a mask 64 wide. A box that is suddenly smaller or larger than the track's is half
    hidden or merged, so its centroid is off by up to half the difference: `occlusion_shift` px of
    standard deviation per px of difference. `systematic_std_widths` is an error that stays with an
    object (a slot that takes in its shadow): it does not average out and cancels in association,
    so it is added to what is published only.

    Lengths in `_sizes` are added to those in widths, as variances: a size is the square root of
    the area of an object's box, so that near and far ones move and are located alike.
    `wander_sizes` is the standard deviation of what the place gains in one second besides the
    velocity: gait, and a camera that shakes.

    Scores. Detections of at least `high_score` are associated first, the others with the tracks
    that are left, against clutter of `low_score_clutter_per_frame`. A detection that scores less
    than `min_birth_score`, or has an IoU of more than `max_birth_overlap` with a track, starts
    none.

    Existence. Missed detections follow each other, so a miss is weighed by the observed time it
    stands for: evidence `1 - detection_probability` per `miss_correlation_s`, never more for one
    frame. Time without frames only counts against `lifetime_s` and `max_coast_s`. Outside the view
    (by `view_margin_widths`) each frame weighs in full, and while nothing is seen existence falls
    as the belief moves out: `exit_probability` is how likely an object that reaches the border
    leaves there (0: a closed box; 1: an open scene, where tracks of leavers are lost while blind).
    An object behind another is easily missed: `occlusion` is the part of `detection_probability`
    that is lost where another track in front, lower in the picture, covers all of the box.

    Time. A stamp further than `clock_reset_threshold_s` behind the newest observation starts a new
    session; one that is at most `reorder_window_s` behind is put in its place by a
    ReorderingTracker, and all others are refused.

    Appearance (embedding and log size) is a Gaussian per track whose variance is learned online,
    starting from `appearance_prior_variance` with the weight of `appearance_prior_count`
    observations. `appearance_weight` < 1 because dimensions are not independent;
    `appearance_limit` (nats) is the most that a change of look can say against a match: less than
    a precise position says for it, more than the position after a long blackout does.
    """

    tracker: str = "filter"
    tracker_weights: str = "mohart_d3a_cpu"
    frame_period_s: float = 1 / 30
    box_std_sizes: float = 0.05
    blind_std_sizes_per_s: float = 3.0
    particles: int = 5
    forecast_samples: int = 8
    slots: int = 0
    seed: int = 0
    window_share: float = 1.0
    restart_probability: float = 1e-3
    background: str = "learned"
    background_frames: int = 30
    background_s: float = 60.0
    foreground_contrast: float = 0.25
    motion_model: str = "kalman"
    motion_weights: str = "relational_tabletop"
    motion_features: int = 0
    measurement_std_widths: float = 0.3 / 64
    systematic_std_widths: float = 0.01
    occlusion_shift: float = 0.5
    velocity_decay_per_s: float = 0.1
    velocity_diffusion_widths: float = 0.02
    collision_rate_per_s: float = 0.1
    collision_speed_widths_per_s: float = 0.07
    initial_speed_widths_per_s: float = 0.2
    measurement_std_sizes: float = 0.0
    velocity_diffusion_sizes: float = 0.0
    wander_sizes: float = 0.0
    initial_speed_sizes_per_s: float = 0.0
    size_smoothing_s: float = 0.3

    gate_probability: float = 0.99999
    detection_probability: float = 0.9
    clutter_per_frame: float = 0.01
    birth_rate_per_s: float = 0.2
    min_birth_score: float = 0.7
    max_birth_overlap: float = 1.0
    high_score: float = 0.0
    low_score_clutter_per_frame: float = 1.0
    appearance_prior_variance: float = 0.1
    appearance_prior_count: float = 20.0
    appearance_memory_frames: int = 150
    appearance_weight: float = 0.5
    appearance_limit: float = 10.0

    birth_existence: float = 0.5
    confirm_hits: int = 3
    occlusion: float = 0.0
    miss_correlation_s: float = 0.2
    lifetime_s: float = 30.0
    min_existence: float = 0.05
    max_coast_s: float = 3.0
    view_margin_widths: float = 0.02
    exit_probability: float = 0.25
    clock_reset_threshold_s: float = 1.0
    reorder_window_s: float = 0.2

    horizon_s: float = 1.0
    horizon_step_s: float = 0.1

    def __post_init__(self) -> None:
        may_be_zero = {
            "motion_features",
            "slots",
            "seed",
            "restart_probability",
            "systematic_std_widths",
            "occlusion_shift",
            "velocity_decay_per_s",
            "collision_rate_per_s",
            "collision_speed_widths_per_s",
            "measurement_std_sizes",
            "velocity_diffusion_sizes",
            "wander_sizes",
            "initial_speed_sizes_per_s",
            "max_birth_overlap",
            "high_score",
            "occlusion",
            "birth_rate_per_s",
            "min_birth_score",
            "appearance_weight",
            "appearance_limit",
            "view_margin_widths",
            "exit_probability",
            "clock_reset_threshold_s",
            "reorder_window_s",
            "horizon_s",
        }
        below_one = {
            "gate_probability",
            "detection_probability",
            "birth_existence",
            "min_existence",
            "min_birth_score",
            "restart_probability",
        }
        if self.motion_model not in MOTION_MODELS:
            names = ", ".join(MOTION_MODELS)
            raise ValueError(f"motion_model {self.motion_model!r} is unknown: choose {names}.")
        if self.tracker not in TRACKERS:
            names = ", ".join(TRACKERS)
            raise ValueError(f"tracker {self.tracker!r} is unknown: choose {names}.")
        if self.background not in BACKGROUNDS:
            names = " or ".join(BACKGROUNDS)
            raise ValueError(f"background {self.background!r} is unknown: choose {names}.")
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if isinstance(value, str):
                continue
            if (
                not np.isfinite(value)
                or value < 0
                or (value == 0 and parameter.name not in may_be_zero)
            ):
                raise ValueError(f"{parameter.name} must be finite and positive, not {value}.")
            if parameter.name in below_one and value >= 1:
                raise ValueError(f"{parameter.name} is a probability below 1, not {value}.")
        for name in ("exit_probability", "occlusion", "max_birth_overlap"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}.")
        if self.window_share > 1:
            raise ValueError(f"window_share must be at most 1, not {self.window_share}.")
        if self.min_existence >= self.birth_existence:
            raise ValueError("min_existence must be below birth_existence, or no track is born.")

    def kalman(self, image_width_px: float, sizes: np.ndarray | None = None) -> MotionModel:
        """The Kalman filter's model in pixels of an image that is `image_width_px` wide, for
        objects with boxes of `sizes` `(..., 2)` px, if that matters.
        """
        density = (
            self.velocity_diffusion_widths**2
            + self.collision_rate_per_s * self.collision_speed_widths_per_s**2
        ) * image_width_px**2
        areas = 0.0 if sizes is None else sizes.prod(-1)
        return MotionModel(
            density + self.velocity_diffusion_sizes**2 * areas,
            self.velocity_decay_per_s,
            self.wander_sizes**2 * areas,
        )

    def box_errors(self, sizes: np.ndarray, since_found_s: np.ndarray) -> np.ndarray:
        """Covariances `(..., 4, 4)` of place and velocity of boxes of `sizes` `(..., 2)` px: an
        error of the place, and one of the velocity that adds to it as time goes by.
        """
        place = (self.box_std_sizes * sizes) ** 2
        velocity = (self.blind_std_sizes_per_s * sizes) ** 2
        elapsed = since_found_s[..., None]
        place, both = place + velocity * elapsed**2, velocity * elapsed
        result = np.zeros((*both.shape[:-1], 4, 4))
        result[..., [0, 1], [0, 1]] = place
        result[..., [0, 1], [2, 3]] = result[..., [2, 3], [0, 1]] = both
        result[..., [2, 3], [2, 3]] = velocity
        return result


def loaded_as(loaded: TrackerConfig, config: TrackerConfig) -> TrackerConfig:
    """`config`, but what takes loading as in `loaded`."""
    names = ("tracker", "tracker_weights", "particles", "slots", "motion_model",
             "motion_weights", "motion_features")  # fmt: skip
    return replace(config, **{name: getattr(loaded, name) for name in names})
