# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: messages, versions, resources, executables, imports without ROS."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from oc_perception import resources, types
from oc_perception.nodes.parameter_tables import TABLES

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE_XML = ElementTree.parse(REPOSITORY / "package.xml")
NODES = {
    "discovery_node",
    "tracking_node",
    "visualization_node",
    "camera_simulator_node",
    "bag_player_node",
}

SENSOR_STATES = ["OK=0", "STALE=1", "BLACK=2", "FROZEN=3", "CORRUPT=4"]
MESSAGES = {
    "ObjectSlot": [
        "uint8 label",
        "bool is_background",
        "float32 score",
        "uint32 area",
        "sensor_msgs/RegionOfInterest roi",
        "float32 centroid_x",
        "float32 centroid_y",
        "float32[3] position",
        "float32[] embedding",
    ],
    "ObjectSegmentation": [
        *(f"uint8 {state}" for state in SENSOR_STATES),
        "uint8 UNLABELLED=255",
        "std_msgs/Header header",
        "uint8 sensor_state",
        "sensor_msgs/Image label_image",
        "string model",
        "uint32 frame_seq",
        "ObjectSlot[] slots",
    ],
    "Track": [
        "uint8 TENTATIVE=0",
        "uint8 CONFIRMED=1",
        "uint8 COASTING=2",
        "uint8 LOST=3",
        "uint8 NO_SLOT=255",
        "uint32 id",
        "uint8 state",
        "uint8 slot_label",
        "float32 existence_probability",
        "float32[4] box",
        "float32[2] velocity",
        "float32[10] covariance",
        "uint32 age",
        "uint32 hits",
        "builtin_interfaces/Time last_seen",
        "float32[] embedding",
    ],
    "TrackArray": [
        *(f"uint8 {state}" for state in SENSOR_STATES),
        "std_msgs/Header header",
        "builtin_interfaces/Time source_stamp",
        "unique_identifier_msgs/UUID session",
        "uint8 sensor_state",
        "Track[] tracks",
    ],
    "TrajectoryPoint": [
        "builtin_interfaces/Duration time_from_start",
        "float32[4] box",
        "float32[3] covariance",
    ],
    "TrajectoryMode": ["float32 probability", "TrajectoryPoint[] points"],
    "PredictedTrajectory": [
        "uint32 track_id",
        "uint8 track_state",
        "TrajectoryMode[] modes",
    ],
    "PredictedTrajectoryArray": [
        "std_msgs/Header header",
        "unique_identifier_msgs/UUID session",
        "PredictedTrajectory[] trajectories",
    ],
}


def definition(message: str) -> list[str]:
    """The lines of a .msg file without comments."""
    text = (REPOSITORY / "msg" / f"{message}.msg").read_text()
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def constants(message: str) -> dict[str, int]:
    matches = (re.fullmatch(r"uint8 ([A-Z_]+)=(\d+)", line) for line in definition(message))
    return {match[1]: int(match[2]) for match in matches if match}


def run(code: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_message_has_the_fields_and_constants_of_the_design(message):
    assert definition(message) == MESSAGES[message]


def test_every_message_is_listed_for_the_build():
    listed = re.findall(r"msg/(\w+)\.msg", (REPOSITORY / "CMakeLists.txt").read_text())
    present = {path.stem for path in (REPOSITORY / "msg").glob("*.msg")}
    assert sorted(listed) == sorted(present) == sorted(MESSAGES)


@pytest.mark.parametrize("message", ["ObjectSegmentation", "TrackArray"])
def test_sensor_states_of_messages_and_types_agree(message):
    known = {state.name: state.value for state in types.SensorState}
    found = constants(message)
    assert {name: found[name] for name in known} == known


def test_track_states_and_label_values_of_messages_and_types_agree():
    found = constants("Track")
    assert found.pop("NO_SLOT") == types.UNLABELLED
    assert found == {state.name: state.value for state in types.TrackState}
    assert constants("ObjectSegmentation")["UNLABELLED"] == types.UNLABELLED


def test_setup_takes_its_version_from_package_xml():
    version = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[-1]
    assert version == PACKAGE_XML.findtext("version")


def test_messages_of_dependencies_are_declared_in_package_xml():
    declared = {element.text for element in PACKAGE_XML.getroot() if "depend" in element.tag}
    used = {line.split("/")[0] for lines in MESSAGES.values() for line in lines if "/" in line}
    assert used <= declared


def test_ros_packages_that_nodes_import_are_declared_in_package_xml():
    declared = {element.text for element in PACKAGE_XML.getroot() if "depend" in element.tag}
    sources = [p.read_text() for p in (REPOSITORY / "oc_perception" / "nodes").glob("*.py")]
    imported = {
        name
        for source in sources
        for name in re.findall(r"^(?:from|import) (\w+)", source, re.M)
        if name.endswith(("_msgs", "_interfaces", "_srvs")) or name in ("rclpy", "launch_ros")
    }
    assert {"rclpy", "sensor_msgs"} <= imported <= declared


def test_every_node_with_parameters_is_an_executable():
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    installed = set(re.search(r"set\(nodes ([^)]*)\)", cmake)[1].split())
    modules = {path.stem for path in (REPOSITORY / "oc_perception/nodes").glob("*_node.py")}
    assert installed == set(TABLES) == NODES
    assert installed <= modules


def test_resources_of_the_checkout_come_first():
    assert resources.share_directory() == REPOSITORY
    assert (resources.share_directory() / "config" / "fastdds.xml").is_file()


@pytest.mark.parametrize("kind", ["pip", "colcon"])
def test_resources_are_found_beside_an_installed_package(tmp_path, kind):
    site_packages = tmp_path / "lib" / "python3.11" / "site-packages" / "oc_perception"
    site_packages.mkdir(parents=True)
    (site_packages / "__init__.py").touch()
    (site_packages / "resources.py").write_text(Path(resources.__file__).read_text())
    prefix = tmp_path if kind == "pip" else tmp_path / "overlay"
    (prefix / "share" / "oc_perception" / "config").mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site_packages.parent),
        "AMENT_PREFIX_PATH": str(prefix) if kind == "colcon" else "",
    }
    code = "from oc_perception.resources import share_directory; print(share_directory())"
    result = run(code, cwd=tmp_path, env=environment)
    assert result.stdout.strip() == str(prefix / "share" / "oc_perception"), result.stderr


def test_missing_resources_are_an_error_that_names_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "oc_perception" / "resources.py"))
    monkeypatch.setattr(resources.sys, "prefix", str(tmp_path))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with pytest.raises(FileNotFoundError, match="pip or colcon"):
        resources.share_directory()


BLOCK_ROS = """
import importlib, pkgutil, sys
for name in ("rclpy", "rcl_interfaces", "sensor_msgs", "ament_index_python"):
    sys.modules[name] = None  # importing it raises ImportError
import oc_perception
"""


def test_everything_outside_nodes_imports_without_ros():
    code = (
        BLOCK_ROS
        + """
for module in pkgutil.walk_packages(oc_perception.__path__, "oc_perception."):
    if not module.name.split(".")[1].startswith(("nodes", "msg", "oc_perception_s__")):
        importlib.import_module(module.name)
        print(module.name)
"""
    )
    result = run(code, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "oc_perception.types" in result.stdout


def test_only_nodes_name_rclpy_and_only_bags_name_rosbags():
    allowed = {"rclpy": "nodes", "rosbags": "bags"}
    for path in sorted((REPOSITORY / "oc_perception").rglob("*.py")):
        part = path.relative_to(REPOSITORY / "oc_perception").parts[0]
        for name in re.findall(r"^\s*(?:from|import) (rclpy|rosbags)\b", path.read_text(), re.M):
            assert part == allowed[name], f"{path} imports {name}"


def test_messages_import_beside_the_sources_where_ros_is_required(tmp_path):
    if not os.environ.get("OC_REQUIRE_ROS"):
        pytest.skip("OC_REQUIRE_ROS is not set (make test sets it)")
    code = "import rclpy, oc_perception.types; from oc_perception.msg import TrackArray"
    for directory in (tmp_path, REPOSITORY):
        result = run(code, cwd=directory)
        assert result.returncode == 0, result.stderr
