# SPDX-License-Identifier: Apache-2.0
"""The library and `oc-perception` without ROS (a robot builds the ROS package with colcon)."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
NAME = "oc_perception"
H5PY = "h5py>=3.12.1,<4"
MATPLOTLIB = "matplotlib>=3.8,<4"
SCIKIT_LEARN = "scikit-learn>=1.5,<2"


def data_files(*directories: str) -> list[tuple[str, list[str]]]:
    """Every file below `directories`, to be installed under share/oc_perception with its path."""
    by_directory: dict[str, list[str]] = {}
    for directory in directories:
        for path in sorted((HERE / directory).rglob("*")):
            if path.is_file():
                relative = path.relative_to(HERE)
                by_directory.setdefault(f"share/{NAME}/{relative.parent}", []).append(
                    str(relative)
                )
    return sorted(by_directory.items())


setup(
    name=NAME,
    version=ElementTree.parse(HERE / "package.xml").findtext("version"),
    description="Object-centric perception: discovers, tracks and keeps predicting objects",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=data_files("config", "launch", "msg", "weights"),
    install_requires=[
        'backports.zstd>=1,<2; python_version < "3.14"',
        "jinja2>=3.1,<4",
        "lz4>=4,<5",
        "numpy>=1.26,<3",
        "opencv-python-headless>=4.10,<6",
        "pyyaml>=6.0,<7",
        "rosbags>=0.11,<0.12",
        "safetensors>=0.5,<1",
        "scipy>=1.13,<2",
        "torch>=2.6,<3",
    ],
    extras_require={
        "datasets": [H5PY, SCIKIT_LEARN],
        "figures": [MATPLOTLIB],
        "fleet": ["ray>=2.50,<3"],
        "test": [
            H5PY,
            MATPLOTLIB,
            "pillow>=10",
            "pytest>=8,<10",
            "ruff>=0.9,<1",
            SCIKIT_LEARN,
        ],
    },
    entry_points={"console_scripts": [f"oc-perception = {NAME}.cli:main"]},
    zip_safe=False,
)
