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

# Parameters of the bridge: those that must be given, and the others with their defaults.
NEEDED = {
    "policy": "exported policy, an .onnx file, or ws://host:port of robot-rl serve",
    "robot": "robot card: a name or a YAML file",
}
OPTIONAL = {
    "log_folder": ("black_box", "for the last seconds of stops"),
    "points_camera": ("", "camera whose hand-eye calibration brings clouds into the base frame"),
    "delta_gain": ("1.0", "above 1 where readings come late"),
    "runtime": ("onnx", "onnx, openvino, tensorrt or auto"),
    "threads": ("1", "of onnxruntime or OpenVINO"),
    "execution": ("async", "async, sync, ensemble or rtc"),
    "chunks_every": ("0", "actions between two questions; 0: as execution has it"),
    "blend_steps": ("0", "actions over which a new chunk takes over"),
}
PARAMETERS = (*NEEDED, *OPTIONAL)


def generate_launch_description() -> LaunchDescription:
    """One lifecycle bridge; the whole launch ends with it."""
    bridge = LifecycleNode(
        package="robot_rl_bridge",
        executable="bridge",
        name="robot_rl_bridge",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[{name: LaunchConfiguration(name) for name in PARAMETERS}],
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
            *(DeclareLaunchArgument(name, description=text) for name, text in NEEDED.items()),
            DeclareLaunchArgument("namespace", default_value="", description="of this arm, for several arms"),
            DeclareLaunchArgument("activate", default_value="true", description="false: a person activates motion"),
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in OPTIONAL.items()
            ),
            bridge,
            activate,
            configure,
        ]
    )
