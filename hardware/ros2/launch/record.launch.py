"""Records episodes from a robot's topics, one raw MCAP file each; `robot-rl data import` makes the dataset.

ros2 launch robot_rl_bridge record.launch.py robot:=ur5e dataset:=recordings
robot-rl ros2 up record.launch.py robot:=sim_panda dataset:=recordings
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    """One recorder; its services start and stop episodes."""
    names = ("robot", "dataset")
    recorder = Node(
        package="robot_rl_bridge",
        executable="recorder",
        name="robot_rl_recorder",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[{name: LaunchConfiguration(name) for name in names}],
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", description="robot card: a name or a YAML file"),
            DeclareLaunchArgument("dataset", description="folder of the MCAP files, made or continued"),
            DeclareLaunchArgument("namespace", default_value="", description="of this arm, for several arms"),
            recorder,
        ]
    )
