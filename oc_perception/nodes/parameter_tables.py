# SPDX-License-Identifier: Apache-2.0
"""All parameters, one table per node.

Defaults of tracking and sensor parameters are those of their configuration dataclasses. After a
change, `make docs` writes docs/parameters.md again.
"""

from __future__ import annotations

from collections.abc import Mapping

from oc_perception.nodes.parameters import Parameter, Value, of_dataclass, to_dataclass
from oc_perception.tracking.config import BACKGROUNDS, TRACKERS, TrackerConfig
from oc_perception.tracking.sensor import SensorMonitorConfig

_COMMON = (
    Parameter(
        "autostart",
        True,
        "Configure and activate at start, without a lifecycle manager; after a failure, try "
        "again when a parameter is changed.",
        read_only=True,
    ),
)
_WATCHDOG = "Silence, in periods of the input, after which the next {} counts as missing."
_TRANSPORT = Parameter(
    "image_transport",
    "raw",
    "`raw` subscribes to `image` (sensor_msgs/Image), `compressed` to `image/compressed` "
    "(sensor_msgs/CompressedImage, JPEG or PNG). Used by the next configure.",
    choices=("raw", "compressed"),
)
_THREADS = Parameter(
    "threads",
    1,
    "Threads of the model on the CPU, 0 for all. The small shipped models gain little from "
    "more than one, and leave the other cores to the robot. Used by the next configure.",
    0,
    256,
)

DISCOVERY = (
    *_COMMON,
    Parameter(
        "model",
        "monet_demo",
        "Checkpoint directory, name of a shipped checkpoint, or a model without weights "
        "(`grid`, `grid:delay_ms=100`). Used by the next configure.",
    ),
    Parameter(
        "device",
        "cpu",
        "Device of the model: `cpu`, `cuda`, `cuda:1`. Used by the next configure.",
    ),
    _THREADS,
    _TRANSPORT,
    Parameter(
        "use_depth",
        False,
        "Subscribe to `depth` and `camera_info` and give objects a position in the camera "
        "frame. Used by the next configure.",
    ),
    Parameter(
        "depth_tolerance_s",
        0.05,
        "Largest difference between the stamps of an image and its depth image. Used by the "
        "next configure.",
        0.0,
        10.0,
    ),
    Parameter("publish_embeddings", True, "Fill in the embedding of each slot; tracking uses it."),
    Parameter(
        "min_area_fraction",
        0.002,
        "Share of the picture that a slot must cover to be an object.",
        0.0,
        0.5,
    ),
    Parameter(
        "watchdog_periods",
        1.5,
        _WATCHDOG.format("image") + " Used by the next activate.",
        1.0,
        100.0,
    ),
    Parameter(
        "stale_limit_s",
        5.0,
        "Silence for which STALE segmentations are published; after it only diagnostics tell.",
        0.0,
        3600.0,
    ),
    Parameter(
        "clock_reset_threshold_s",
        TrackerConfig.clock_reset_threshold_s,
        "A stamp further back than this is a clock reset, one less far a late image. Used by "
        "the next activate.",
        0.0,
        3600.0,
    ),
    Parameter(
        "reorder_window_s",
        TrackerConfig.reorder_window_s,
        "An image at most this much older than the newest is used. Used by the next activate.",
        0.0,
        10.0,
    ),
    Parameter(
        "future_tolerance_s",
        1.0,
        "An image stamped further ahead of this node's clock is refused, 0 for never. Used by "
        "the next activate.",
        0.0,
        1e9,
    ),
    *of_dataclass(
        SensorMonitorConfig,
        "sensor.",
        {
            "black_level": ("Largest mean grey level of a BLACK picture.", 0.0, 255.0),
            "black_deviation": ("Largest standard deviation of a BLACK picture.", 0.0, 255.0),
            "flat_deviation": ("Standard deviation up to which a picture is CORRUPT.", 0.0, 255.0),
            "frozen_after_repeats": (
                "Bit-identical repetitions that make a picture FROZEN, 0 to switch off (cameras "
                "without noise).",
                0,
                1000,
            ),
        },
    ),
)

TRACKING = (
    *_COMMON,
    # Later than discovery's watchdog, whose STALE segmentations are to come first.
    Parameter(
        "watchdog_periods",
        2.0,
        _WATCHDOG.format("segmentation") + " Used by the next activate.",
        1.0,
        100.0,
    ),
    _THREADS,
    _TRANSPORT,
    Parameter(
        "image_wait_s",
        0.1,
        "How long a segmentation waits for its image with `tracker: mohart` or `sqair`. Used by "
        "the next configure.",
        0.0,
        10.0,
    ),
    *of_dataclass(
        TrackerConfig,
        "",
        {
            "tracker": (
                "`filter` moves objects by `motion_model`; `mohart` follows them in the images, "
                "and subscribes to these; so does `sqair`, which also finds them there itself, "
                "before a camera at rest. Used by the next configure.",
                None,
                None,
                TRACKERS,
            ),
            "tracker_weights": (
                "Checkpoint directory or name of a shipped checkpoint for `mohart` or `sqair`. "
                "Used by the next configure.",
            ),
            "frame_period_s": (
                "Time between the frames from which the weights of `mohart` or `sqair` were "
                "learned.",
                1e-3,
                10.0,
            ),
            "box_std_sizes": (
                "Error of a box of `mohart` where something was found, and of one of `sqair` "
                "besides the spread of its hypotheses, box sizes.",
                1e-3,
                10.0,
            ),
            "blind_std_sizes_per_s": (
                "Error of the velocity of a box of `mohart` or `sqair`, by which that of its "
                "place grows until something is found there again, box sizes/s.",
                1e-3,
                100.0,
            ),
            "particles": (
                "Hypotheses of `sqair`; with 1 it takes what is most probable in what it sees. "
                "Used by the next configure.",
                1,
                1000,
            ),
            "forecast_samples": (
                "Ways in which each hypothesis of `sqair` may go on unseen.",
                1,
                1000,
            ),
            "slots": (
                "Objects that `sqair` sees at most, 0 for as many as it learned with. Used by the "
                "next configure.",
                0,
                64,
            ),
            "seed": ("Seed of the draws of `sqair`.", 0, 2**31 - 1),
            "window_share": (
                "Share of the width and height of a window of `sqair` that its object takes.",
                0.01,
                1.0,
            ),
            "restart_probability": (
                "How likely `sqair` holds it that all is to be discovered anew, which it "
                "considers every fifth frame and where frames were missed, 0 for never.",
                0.0,
                0.999,
            ),
            "background": (
                "What objects of `sqair` stand before: `learned` from what the camera sees, or "
                "`black`.",
                None,
                None,
                BACKGROUNDS,
            ),
            "background_frames": (
                "First frames, of which the background of `sqair` is the median; nothing is "
                "tracked in them. As many in a row of which most is foreground are the first of "
                "another background.",
                1,
                1000,
            ),
            "background_s": (
                "Time within which the background of `sqair` turns from black to white; what "
                "stays becomes background.",
                0.1,
                1e6,
            ),
            "foreground_contrast": (
                "Difference from the background with which `sqair` sees an object fully bright, "
                "share of the range.",
                1e-3,
                1.0,
            ),
            "motion_model": (
                "How objects are believed to move: `kalman` each by itself, `relational` learned, "
                "with regard to one another. Used by the next configure.",
                None,
                None,
                ("kalman", "relational"),
            ),
            "motion_weights": (
                "Checkpoint directory or name of a shipped checkpoint for `relational`. Used by "
                "the next configure.",
            ),
            "motion_features": (
                "How many of an embedding's first numbers `relational` is told; 0 unless it "
                "learned what they mean. Used by the next configure.",
                0,
                4096,
            ),
            "measurement_std_widths": (
                "Noise of a centroid on each axis, image widths.",
                1e-6,
                1.0,
            ),
            "systematic_std_widths": (
                "Error of a centroid that stays with an object, image widths; part of what is "
                "published.",
                0.0,
                1.0,
            ),
            "occlusion_shift": (
                "Extra noise of a centroid, px per px by which the box differs from the track's.",
                0.0,
                10.0,
            ),
            "velocity_decay_per_s": (
                "Rate at which objects slow down, 0 for constant velocity.",
                0.0,
                100.0,
            ),
            "velocity_diffusion_widths": (
                "Standard deviation of velocity gained in one second, image widths/s.",
                1e-6,
                100.0,
            ),
            "collision_rate_per_s": ("Collisions of one object per second.", 0.0, 100.0),
            "collision_speed_widths_per_s": (
                "Standard deviation of the velocity jump in a collision, image widths/s.",
                0.0,
                100.0,
            ),
            "initial_speed_widths_per_s": (
                "Standard deviation of a new object's speed, image widths/s.",
                1e-6,
                100.0,
            ),
            "measurement_std_sizes": (
                "Noise of a centroid on each axis besides, square roots of the box's area.",
                0.0,
                1.0,
            ),
            "velocity_diffusion_sizes": (
                "Standard deviation of velocity gained in one second besides, sizes/s.",
                0.0,
                100.0,
            ),
            "wander_sizes": (
                "Standard deviation of the place gained in one second besides the velocity, as by "
                "a shaking camera, sizes.",
                0.0,
                100.0,
            ),
            "initial_speed_sizes_per_s": (
                "Standard deviation of a new object's speed besides, sizes/s.",
                0.0,
                100.0,
            ),
            "size_smoothing_s": ("Time constant of the box size.", 1e-3, 60.0),
            "gate_probability": (
                "Share of true positions inside the association gate.",
                0.01,
                0.999999,
            ),
            "detection_probability": (
                "Probability that a visible object is detected.",
                0.01,
                0.9999,
            ),
            "clutter_per_frame": ("Expected false detections per frame.", 1e-9, 100.0),
            "birth_rate_per_s": ("Expected new objects per second.", 0.0, 100.0),
            "min_birth_score": ("Score below which a detection starts no track.", 0.0, 0.999),
            "max_birth_overlap": (
                "IoU with a track above which a detection starts no track, 1 for never.",
                0.0,
                1.0,
            ),
            "high_score": (
                "Score from which detections are associated first; the others take what is left.",
                0.0,
                1000.0,
            ),
            "low_score_clutter_per_frame": (
                "Expected false detections per frame below `high_score`.",
                1e-9,
                1000.0,
            ),
            "appearance_prior_variance": (
                "Variance of appearance before any was seen.",
                1e-9,
                1e6,
            ),
            "appearance_prior_count": (
                "Observations that the prior variance is worth.",
                1e-3,
                1e6,
            ),
            "appearance_memory_frames": ("Frames that the look of a track remembers.", 1, 100000),
            "appearance_weight": (
                "Weight of appearance against position, 0 to ignore it.",
                0.0,
                1.0,
            ),
            "appearance_limit": (
                "Most that a change of look counts against a match, nats.",
                0.0,
                1000.0,
            ),
            "birth_existence": ("Existence probability of a new track.", 0.01, 0.99),
            "confirm_hits": ("Detections that confirm a track.", 1, 1000),
            "occlusion": (
                "Part of the detection probability that an object loses where a track in front "
                "covers it, 0 for objects that do not stand on a floor.",
                0.0,
                1.0,
            ),
            "miss_correlation_s": ("Time over which missed detections count as one.", 1e-3, 60.0),
            "lifetime_s": ("Mean time for which an object that is not seen exists.", 1e-2, 1e6),
            "min_existence": ("Existence probability below which a track is lost.", 1e-6, 0.9),
            "max_coast_s": ("Time without detection after which a track is lost.", 1e-3, 3600.0),
            "view_margin_widths": (
                "Margin around the view in which tracks live on, image widths.",
                0.0,
                10.0,
            ),
            "exit_probability": (
                "How likely an object whose prediction leaves the view has left, rather than "
                "turned back at its border.",
                0.0,
                1.0,
            ),
            "clock_reset_threshold_s": (
                "A stamp further back than this starts a new session, one less far is late.",
                0.0,
                3600.0,
            ),
            "reorder_window_s": (
                "A segmentation at most this much older than the newest is put in its place.",
                0.0,
                10.0,
            ),
            "horizon_s": ("How far trajectories reach into the future.", 0.0, 60.0),
            "horizon_step_s": ("Time between two points of a trajectory.", 1e-3, 60.0),
        },
    ),
)

VISUALIZATION = (
    *_COMMON,
    _TRANSPORT,
    Parameter("show_labels", True, "Tint the pixels of the objects in the annotated image."),
    Parameter(
        "max_image_rate_hz",
        30.0,
        "Annotated images per second at most; all others are skipped.",
        0.1,
        1000.0,
    ),
    Parameter(
        "pixel_size_m",
        0.002,
        "Metres that one pixel takes in the marker plane, for objects without a known distance.",
        1e-6,
        1.0,
    ),
    Parameter(
        "covariance_sigmas",
        2.15,
        "Radius of the position ellipses in standard deviations (2.15: 90 %).",
        0.1,
        10.0,
    ),
    Parameter("marker_lifetime_s", 1.0, "Time after which RViz forgets a marker.", 0.05, 3600.0),
)

_SOURCE = (
    Parameter(
        "wait_for_subscribers_s",
        0.0,
        "Wait until somebody subscribes, but no longer than this, s.",
        0.0,
        read_only=True,
    ),
    Parameter("running", True, "Publish; false holds where it is."),
)

CAMERA_SIMULATOR = (
    Parameter("width", 640, "Image width, px.", 16, 8192, read_only=True),
    Parameter("height", 480, "Image height, px.", 16, 8192, read_only=True),
    Parameter("rate_hz", 30.0, "Frames per second.", 0.1, 1000.0, read_only=True),
    Parameter("seed", 0, "Seed of world and noise.", 0, 2**31 - 1, read_only=True),
    Parameter("num_objects", 4, "Objects in the world.", 1, 6, read_only=True),
    Parameter(
        "render_scale",
        0.5,
        "Size of the drawn over the published image; smaller is cheaper.",
        0.02,
        1.0,
        read_only=True,
    ),
    Parameter(
        "noise_level",
        2.0,
        "Standard deviation of the sensor noise, grey levels of 255.",
        0.0,
        20.0,
        read_only=True,
    ),
    Parameter(
        "blackouts",
        "",
        "Blackout schedule `start_s:frames:mode, ...` with mode `missing`, `black` or `frozen`.",
        read_only=True,
    ),
    Parameter("frame_id", "camera", "Frame of the camera, in all headers.", read_only=True),
    Parameter("publish_depth", False, "Publish `~/depth` (32FC1, m).", read_only=True),
    Parameter("duration_s", 0.0, "Finish after this long, s; 0 for never.", 0.0, read_only=True),
    Parameter(
        "render_ahead_s",
        1.0,
        "Draw this much before the first frame, and stay as far ahead where possible, s.",
        0.0,
        600.0,
        read_only=True,
    ),
    *_SOURCE,
)

BAG_PLAYER = (
    Parameter("bag", "", "The rosbag2 directory, or a lone .mcap or .db3 file.", read_only=True),
    Parameter("rate", 1.0, "Seconds of the bag per second.", 1e-3, 1e3, read_only=True),
    Parameter("loop", False, "Begin again at the end instead of exiting.", read_only=True),
    Parameter(
        "start_offset_s", 0.0, "Leave out the first seconds of the bag.", 0.0, read_only=True
    ),
    Parameter(
        "topics",
        "",
        "Topics to play, separated by commas; empty for all that can be played.",
        read_only=True,
    ),
    Parameter(
        "remap",
        "",
        "New names `recorded:=published`, separated by commas.",
        read_only=True,
    ),
    Parameter("publish_clock", True, "Publish the time of the bag on `/clock`.", read_only=True),
    Parameter("clock_rate_hz", 100.0, "Clock messages per second.", 1.0, 1000.0, read_only=True),
    *_SOURCE,
)

TABLES = {
    "discovery_node": DISCOVERY,
    "tracking_node": TRACKING,
    "visualization_node": VISUALIZATION,
    "camera_simulator_node": CAMERA_SIMULATOR,
    "bag_player_node": BAG_PLAYER,
}


def sensor_config(values: Mapping[str, Value]) -> SensorMonitorConfig:
    """The configuration of the sensor monitor from a node's parameters. Raises ValueError."""
    return to_dataclass(SensorMonitorConfig, "sensor.", values)


def tracker_config(values: Mapping[str, Value]) -> TrackerConfig:
    """The configuration of the tracker from a node's parameters. Raises ValueError."""
    return to_dataclass(TrackerConfig, "", values)
