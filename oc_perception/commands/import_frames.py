# SPDX-License-Identifier: Apache-2.0
"""Turn an image folder, a tar of images, a MOTChallenge sequence or a video file into a rosbag2.

JPEG and PNG files are stored unchanged as sensor_msgs/CompressedImage, video frames as JPEG; --raw
stores decoded sensor_msgs/Image instead. Stamps come from seqinfo.ini, the video, or --fps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from oc_perception.bags.messages import compressed_message, image_message
from oc_perception.bags.pictures import ImageSequence
from oc_perception.bags.writer import STORAGES, BagWriter
from oc_perception.cli import UserError
from oc_perception.images import MalformedImage
from oc_perception.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `oc-perception import-frames`."""
    parser.add_argument("source", type=Path, help="folder or tar of pictures, or a video file")
    parser.add_argument("out_bag", type=Path, help="rosbag2 directory to write")
    parser.add_argument("--fps", type=float, help="frames per second (default: as SOURCE says)")
    parser.add_argument("--folder", help="folder of the pictures inside SOURCE, if it has several")
    parser.add_argument(
        "--topic",
        default="/camera/image",
        help="image topic (default: %(default)s; compressed images go to TOPIC/compressed)",
    )
    parser.add_argument(
        "--frame-id", default="camera", help="frame_id of the images (default: %(default)s)"
    )
    parser.add_argument(
        "--start-stamp",
        type=float,
        default=1.0,
        help="stamp of the first frame in s (default: %(default)s; 0 means 'unset' in ROS)",
    )
    parser.add_argument("--storage", choices=STORAGES, default=STORAGES[0])
    parser.add_argument("--overwrite", action="store_true", help="replace OUT_BAG if it is a bag")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--compressed", action="store_true", help="store CompressedImage (the default)"
    )
    form.add_argument("--raw", action="store_true", help="store decoded rgb8 images")


def run(arguments: argparse.Namespace) -> int:
    """Write the bag; an error or Ctrl-C leaves none behind."""
    topic = arguments.topic if arguments.raw else f"{arguments.topic}/compressed"
    if not 0 < arguments.start_stamp < 2**31 - 1:
        raise UserError("--start-stamp must lie between 0 and 2147483647 s.")
    start_ns = round(arguments.start_stamp * 1e9)
    count, stamp_ns = 0, start_ns
    with (
        ImageSequence(arguments.source, arguments.fps, arguments.folder) as sequence,
        BagWriter(arguments.out_bag, arguments.storage, overwrite=arguments.overwrite) as bag,
    ):
        progress = Progress("frames", len(sequence))
        for picture in sequence:
            stamp_ns = start_ns + round(picture.time_s * 1e9)
            if arguments.raw:
                try:
                    rgb = picture.rgb()
                except MalformedImage as error:
                    raise UserError(f"frame {count + 1} of {arguments.source}: {error}") from error
                message = image_message(stamp_ns, rgb, arguments.frame_id)
            else:
                message = compressed_message(stamp_ns, *picture.encoded(), arguments.frame_id)
            bag.write(topic, stamp_ns, message)
            progress.advance()
            count += 1
        progress.finish()
        expected, warning = len(sequence), sequence.warning
    print(f"{arguments.out_bag}: {count} frames on {topic}, {(stamp_ns - start_ns) / 1e9:.2f} s")
    if count < expected:
        print(f"Only {count} of the {expected} frames that the video announces can be decoded.")
    if warning:
        print(warning)
    return 0
