"""ament_python package: the code is robot_rl's own (pip), here are its executables, launch files and profiles."""

from glob import glob

from setuptools import setup

NAME = "robot_rl_bridge"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*"))),
    ],
    zip_safe=True,
    maintainer="robot-rl",
    maintainer_email="maintainers@robot-rl.invalid",
    description="Policies of robot-rl on a robot arm.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "bridge = robot_rl_bridge.bridge:main",
            "sim_robot = robot_rl_bridge.sim_robot:main",
            "recorder = robot_rl_bridge.recorder:main",
        ]
    },
)
