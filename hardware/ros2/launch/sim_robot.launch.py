"""The simulated arm behind a robot's topics.

ros2 launch robot_rl_bridge sim_robot.launch.py env:=pick_cube
robot-rl ros2 up sim_robot.launch.py env:=pick_cube latency_s:=0.02 jitter_s:=0.005
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    """One simulated arm."""
    arguments = {
        "robot": ("sim_panda", "robot card"),
        "env": ("pick_cube", "task, a name of configs/env"),
        "latency_s": ("0.0", "added to every message"),
        "jitter_s": ("0.0", "random part of it"),
    }
    arm = Node(
        package="robot_rl_bridge",
        executable="sim_robot",
        name="sim_robot",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[{name: LaunchConfiguration(name) for name in arguments}],
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]
    return LaunchDescription(
        [*declared, DeclareLaunchArgument("namespace", default_value="", description="of this arm"), arm]
    )
