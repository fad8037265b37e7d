"""A robot driver on another DDS implementation (Eclipse Cyclone DDS) that knows nothing of ROS but its names on the wire.

Publishes rt/joint_states (in the opposite order of its argument), rt/current_pose and rt/scene_state at 100 Hz, prints what it
hears on rt/forward_position_controller/commands and rt/gripper_controller/commands as JSON lines; ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import types
from dataclasses import dataclass
from typing import Any

URI = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name='lo' multicast='false'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><Peers><Peer Address='127.0.0.1'/></Peers>"
    "<ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>100</MaxAutoParticipantIndex></Discovery>"
    "</Domain></CycloneDDS>"
)


def main(joints: list[str], domain: int) -> None:
    """Until stdin ends."""
    os.environ["CYCLONEDDS_URI"] = URI
    from cyclonedds.core import Policy, Qos
    from cyclonedds.domain import DomainParticipant
    from cyclonedds.idl import IdlStruct
    from cyclonedds.idl.annotations import final
    from cyclonedds.idl.types import float64, int32, sequence, uint32
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration

    def struct(name: str, /, **fields: Any) -> Any:
        made = types.new_class(
            name.split("::")[-1].rstrip("_"), (IdlStruct,), {"typename": name},
            lambda body: body.update(__annotations__=fields),
        )  # fmt: skip
        return final(dataclass(made))

    stamp = struct("builtin_interfaces::msg::dds_::Time_", sec=int32, nanosec=uint32)
    header = struct("std_msgs::msg::dds_::Header_", stamp=stamp, frame_id=str)
    joint_state = struct(
        "sensor_msgs::msg::dds_::JointState_", header=header, name=sequence[str], position=sequence[float64],
        velocity=sequence[float64], effort=sequence[float64],
    )  # fmt: skip
    point = struct("geometry_msgs::msg::dds_::Point_", x=float64, y=float64, z=float64)
    quaternion = struct("geometry_msgs::msg::dds_::Quaternion_", x=float64, y=float64, z=float64, w=float64)
    pose = struct("geometry_msgs::msg::dds_::Pose_", position=point, orientation=quaternion)
    pose_stamped = struct("geometry_msgs::msg::dds_::PoseStamped_", header=header, pose=pose)
    dimension = struct("std_msgs::msg::dds_::MultiArrayDimension_", label=str, size=uint32, stride=uint32)
    layout = struct("std_msgs::msg::dds_::MultiArrayLayout_", dim=sequence[dimension], data_offset=uint32)
    numbers = struct("std_msgs::msg::dds_::Float64MultiArray_", layout=layout, data=sequence[float64])

    qos = Qos(
        Policy.Reliability.Reliable(duration(seconds=1)), Policy.Durability.Volatile, Policy.History.KeepLast(10),
        Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
    )  # fmt: skip
    participant = DomainParticipant(domain)

    def writer(name: str, kind: Any) -> Any:
        return DataWriter(participant, Topic(participant, f"rt/{name}", kind, qos=qos), qos=qos)

    def reader(name: str, kind: Any) -> Any:
        return DataReader(participant, Topic(participant, f"rt/{name}", kind, qos=qos), qos=qos)

    writers = [
        writer("joint_states", joint_state),
        writer("current_pose", pose_stamped),
        writer("scene_state", numbers),
    ]
    readers = {
        name: reader(f"{name}/commands", numbers) for name in ("forward_position_controller", "gripper_controller")
    }
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    values = {joint: 0.1 * (place + 1) for place, joint in enumerate(joints)}
    names = list(reversed(values))
    while not ended.is_set():
        now = time.time_ns()
        top = header(stamp=stamp(sec=now // 10**9, nanosec=now % 10**9), frame_id="panda_link0")
        position = [values[name] for name in names]
        writers[0].write(
            joint_state(header=top, name=names, position=position, velocity=[10 * x for x in position], effort=[])
        )
        place, turn = point(x=0.4, y=0.1, z=0.3), quaternion(x=0.6, y=0.0, z=0.0, w=0.8)
        writers[1].write(pose_stamped(header=top, pose=pose(position=place, orientation=turn)))
        writers[2].write(numbers(layout=layout(dim=[], data_offset=0), data=[1.0, 2.0]))
        for name, heard in readers.items():
            for message in heard.take(N=10):
                if hasattr(message, "data"):
                    sys.stdout.write(json.dumps({name: list(message.data)}) + "\n")
                    sys.stdout.flush()
        time.sleep(0.01)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
