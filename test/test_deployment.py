# SPDX-License-Identifier: Apache-2.0
"""One table of node sets, read by the launch files and by `oc-perception up`."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from oc_perception import deployment
from oc_perception.cli import UserError, main
from oc_perception.commands import up
from oc_perception.resources import share_directory

ROOT = share_directory()
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
HAS_ROS = all(importlib.util.find_spec(m) for m in ("rclpy", "oc_perception.msg"))


def has_launch() -> bool:
    """The directory launch/ of the source tree imports as an empty package: ask for a module of
    the real one."""
    try:
        return all(importlib.util.find_spec(m) for m in ("launch.actions", "launch_ros.actions"))
    except ModuleNotFoundError:
        return False


needs_ros = pytest.mark.skipif(not HAS_ROS, reason="ROS 2 is not installed: run `make setup`")
needs_launch = pytest.mark.skipif(
    not has_launch(),
    reason="launch and launch_ros are not importable (no sourced ROS installation)",
)


def arguments_of(name: str) -> dict[str, str]:
    return {"bag": "some.mcap"} if name == "replay" else {}


@pytest.mark.parametrize("name", deployment.DEPLOYMENTS)
def test_every_topic_that_a_node_reads_is_written_by_another_or_given(name) -> None:
    nodes = deployment.nodes(name, arguments_of(name))
    assert {"discovery_node", "tracking_node", "visualization_node"} <= {
        n.executable for n in nodes
    }
    names = {node.executable for node in nodes}
    for node in nodes:
        for _, target in node.remappings:
            owner, slash, _ = target.partition("/")
            if slash and owner:
                assert owner in names or owner == "image"
    assert all((ROOT / "oc_perception" / "nodes" / f"{n}.py").is_file() for n in names)


def test_several_cameras_get_all_nodes_once_in_a_namespace_each() -> None:
    nodes = deployment.nodes("perception", {"cameras": "front, rear", "namespace": "robot"})
    spaces = [node.namespace for node in nodes]
    assert spaces == ["robot/front"] * 3 + ["robot/rear"] * 3
    assert len({(node.namespace, node.executable) for node in nodes}) == 6


def test_a_compressed_image_topic_follows_the_raw_one() -> None:
    (discovery, *_) = deployment.nodes("perception", {"image": "/cam/image"})
    assert dict(discovery.remappings)["image/compressed"] == "/cam/image/compressed"


def test_a_replay_runs_on_the_time_of_the_bag_and_ends_with_it() -> None:
    player, *others = deployment.nodes("replay", {"bag": "x.mcap", "loop": "true"})
    assert player.leads and player.parameters["loop"] is True
    assert Path(player.parameters["bag"]).is_absolute()
    assert all(node.parameters["use_sim_time"] is True for node in others)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("perceptron", {}, "Did you mean 'perception'"),
        ("perception", {"imag": "x"}, "Did you mean 'image'"),
        ("perception", {"cameras": "front,front"}, "names a camera twice"),
        ("perception", {"cameras": "a,b", "image": "/image_raw"}, "topic of all cameras"),
        ("replay", {}, "needs a bag"),
        ("replay", {"bag": "x", "rate": "fast"}, "rate must be a number"),
    ],
)
def test_what_cannot_be_started_is_refused_with_the_cure(name, arguments, reason) -> None:
    with pytest.raises(deployment.DeploymentError, match=reason):
        deployment.nodes(name, arguments)


def test_a_parameter_file_that_is_missing_is_refused() -> None:
    with pytest.raises(deployment.DeploymentError, match="no parameter file"):
        deployment.parameter_files("demo", "missing.yaml")


@pytest.mark.parametrize("name", deployment.DEPLOYMENTS)
def test_the_parameter_files_are_of_nodes_of_the_deployment(name) -> None:
    names = {node.executable for node in deployment.nodes(name, arguments_of(name))}
    for path in deployment.parameter_files(name):
        assert {key.rpartition("/")[2] for key in yaml.safe_load(path.read_text())} <= names


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("discovery_node.model", "not of the form"),
        ("discovery.model=grid", "Did you mean 'discovery_node'"),
    ],
)
def test_up_refuses_a_setting_that_reaches_no_node(setting, reason) -> None:
    with pytest.raises(UserError, match=reason):
        up._settings([setting], ["discovery_node", "tracking_node"])


def test_up_without_ros_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["up", "perception"]) == 2
    assert ". ./activate" in capsys.readouterr().err


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_files_compile_and_take_their_nodes_from_the_table(path, tmp_path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "x.pyc"), doraise=True)
    name = path.name.removesuffix(".launch.py")
    if name in deployment.DEPLOYMENTS:
        text = path.read_text()
        assert f'describe("{name}")' in text
        assert "Node(" not in text


@needs_launch
@needs_ros
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_files_declare_every_argument_with_a_description(path) -> None:
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    declared = get_launch_description_from_python_launch_file(str(path)).get_launch_arguments()
    assert all(argument.description for argument in declared)
    name = path.name.removesuffix(".launch.py")
    if name in deployment.DEPLOYMENTS:
        assert {argument.name for argument in declared} == set(deployment.ARGUMENTS[name])


@needs_launch
@needs_ros
@pytest.mark.parametrize("name", deployment.DEPLOYMENTS)
def test_launch_starts_the_nodes_of_the_table(name) -> None:
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchContext
    from oc_perception.nodes.launching import describe

    context = LaunchContext(argv=[])
    started = []
    for entity in describe(name).entities:
        if isinstance(entity, DeclareLaunchArgument):
            context.launch_configurations[entity.name] = arguments_of(name).get(entity.name, "")
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            started = entity.execute(context)
    assert [node.node_executable for node in started] == [
        node.executable for node in deployment.nodes(name, arguments_of(name))
    ]


@needs_ros
def test_up_starts_all_nodes_and_ends_all_on_interrupt(tmp_path) -> None:
    parameters = tmp_path / "p.yaml"
    parameters.write_text("/**/tracking_node:\n  ros__parameters:\n    horizon_s: 0.7\n")
    command = [sys.executable, "-m", "oc_perception.cli", "up", "perception"]
    command += ["--namespace", "robot", "--model", "grid", "--param-file", str(parameters)]
    command += ["--set", "visualization_node.pixel_size_m=0.003", "--set", "tracking_node.modle=1"]
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(1 + (os.getpid() + 50) % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    deadline_s, lines = time.monotonic() + 60, []
    try:
        while sum("active after" in line for line in lines) < 3 and time.monotonic() < deadline_s:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    output = "".join(lines) + rest
    assert process.returncode == 0, output
    for name in ("discovery_node", "tracking_node", "visualization_node"):
        assert any(line.startswith(f"[robot/{name}") and "active after" in line for line in lines)
    assert "Unknown parameter 'modle'" in output
    assert "Traceback" not in output


@needs_ros
def test_up_reports_the_status_of_a_leading_node_that_fails(tmp_path, capfd) -> None:
    missing = tmp_path / "missing.mcap"
    assert main(["up", "replay", "--bag", str(missing), "--model", "grid"]) == 1
    assert "bag_player_node" in capfd.readouterr().out


def test_the_rviz_layout_shows_topics_that_the_visualization_publishes() -> None:
    layout = yaml.safe_load((ROOT / "config" / "rviz" / "perception.rviz").read_text())
    displays = layout["Visualization Manager"]["Displays"]
    topics = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert topics == {"visualization_node/image", "visualization_node/markers"}
    source = (ROOT / "oc_perception" / "nodes" / "visualization_node.py").read_text()
    assert all(f'"~/{topic.partition("/")[2]}"' in source for topic in topics)
