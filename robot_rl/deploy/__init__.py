"""What runs on the robot computer: numpy (and onnxruntime) only, no torch."""
