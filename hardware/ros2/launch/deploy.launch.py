"""The bridge on a robot whose drivers already run: configure (load and warm the policy), then activate (motion).

ros2 launch robot_rl_bridge deploy.launch.py policy:=/data/policy.onnx robot:=ur5e
robot-rl ros2 up deploy.launch.py policy:=/data/policy.onnx robot:=sim_panda     (a machine without `ros2 launch`)
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, Shutdown
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def generate_launch_description() -> LaunchDescription:
    """One lifecycle bridge; the whole launch ends with it."""
    bridge = LifecycleNode(
        package="robot_rl_bridge",
        executable="bridge",
        name="robot_rl_bridge",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            {
                "policy": LaunchConfiguration("policy"),
                "robot": LaunchConfiguration("robot"),
                "log_folder": LaunchConfiguration("log_folder"),
                "delta_gain": LaunchConfiguration("delta_gain"),
            }
        ],
        on_exit=Shutdown(reason="the bridge has ended"),
    )
    configure = EmitEvent(
        event=ChangeState(lifecycle_node_matcher=matches_action(bridge), transition_id=Transition.TRANSITION_CONFIGURE)
    )
    activate = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=bridge,
            start_state="configuring",
            goal_state="inactive",
            entities=[
                EmitEvent(
                    event=ChangeState(
                        lifecycle_node_matcher=matches_action(bridge), transition_id=Transition.TRANSITION_ACTIVATE
                    )
                )
            ],
        ),
        condition=IfCondition(LaunchConfiguration("activate")),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("policy", description="exported policy, an .onnx file"),
            DeclareLaunchArgument("robot", description="robot card: a name or a YAML file"),
            DeclareLaunchArgument("namespace", default_value="", description="of this arm, for several arms"),
            DeclareLaunchArgument("log_folder", default_value="black_box", description="for the last seconds of stops"),
            DeclareLaunchArgument("delta_gain", default_value="1.0", description="above 1 where readings come late"),
            DeclareLaunchArgument("activate", default_value="true", description="false: a person activates motion"),
            bridge,
            activate,
            configure,
        ]
    )
