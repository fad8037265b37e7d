// What people can ask for and by which key or gamepad button, and what the states mean.

// Events of robot_rl/teleop/panel.py. A pad's button with "LB+" is pressed while the left bumper is held.
export const EVENTS = [
  {name: "start", label: "Start", key: "Digit1", pad: "A", hint: "begin to record; again: skip the countdown"},
  {name: "stop", label: "Stop", key: "Digit2", pad: "B", hint: "end the episode"},
  {name: "success", label: "Success", key: "Digit3", pad: "Y", hint: "mark it as a success"},
  {name: "failure", label: "Failure", key: "Digit4", pad: "X", hint: "mark it as a failure"},
  {name: "save", label: "Save", key: "Digit5", pad: "Start", hint: "keep the episode"},
  {name: "discard", label: "Discard", key: "Digit6", pad: "Back", hint: "put the episode aside"},
  {name: "rerecord", label: "Record again", key: "Digit7", pad: "L3", hint: "put aside, and the same start again"},
  {name: "reset", label: "Reset", key: "Digit8", pad: "LB+Back", hint: "scene and robot to the start"},
  {name: "pause", label: "Pause", key: "KeyP", pad: "LB+B", hint: "hold; nothing is recorded"},
  {name: "resume", label: "Resume", key: "KeyO", pad: "LB+A", hint: "go on"},
  {name: "undo", label: "Undo", key: "KeyU", pad: "LB+X", hint: "take back the last label, mark or discard"},
  {name: "subtask", label: "Subtask", key: "KeyM", pad: "LB+Y", hint: "mark where a part of the task begins", text: "Subtask (may be empty)"},
  {name: "note", label: "Note", key: "KeyN", pad: "LB+L3", hint: "write something down", text: "Note"},
  {name: "save_last", label: "Keep last seconds", key: "Digit9", pad: "LB+Start", hint: "make an episode of what just happened"},
  {name: "release", label: "Release stop", key: "KeyL", pad: "LB+R3", hint: "allow motion after a stop or fault"},
  {name: "quit", label: "End session", key: "KeyK", pad: "LB+Down", hint: "close down", confirm: true},
  {name: "estop", label: "STOP", key: "Escape", pad: "R3", hint: "stop the robot now"},
];

// State -> sign, title, and what to do where the session says nothing itself.
export const STATES = {
  idle: ["○", "idle", "Start (1) begins."],
  ready: ["◇", "ready", "Drive to where you want to begin; Start (1) records."],
  recording: ["●", "recording", "Do the task. Then Success (3), Failure (4) or Stop (2)."],
  paused: ["❚❚", "paused", "Resume (O) goes on."],
  review: ["?", "review", "Success (3) or Failure (4), then Save (5). Discard (6) puts it aside."],
  saving: ["⇩", "saving", "Wait."],
  resetting: ["↻", "resetting", "Put the scene back. Start (1) skips the countdown."],
  fault: ["▲", "fault", "Find out why; then Release stop (L)."],
  estop: ["■", "stopped", "Make it safe; then Release stop (L)."],
  closed: ["–", "closed", "The session has ended."],
};

// Axes of TeleopCommand.motion: x forward, y left, z up, and turns about them.
export const AXES = ["x forward", "y left", "z up", "roll", "pitch", "yaw"];
export const MOTION_KEYS = {
  KeyW: [0, 1], KeyS: [0, -1], KeyA: [1, 1], KeyD: [1, -1], KeyE: [2, 1], KeyQ: [2, -1], KeyC: [3, 1], KeyZ: [3, -1],
  ArrowUp: [4, 1], ArrowDown: [4, -1], ArrowLeft: [5, 1], ArrowRight: [5, -1],
};
export const GRIP_KEYS = {KeyR: 1, KeyF: -1};
export const OTHER_KEYS = [
  ["Space", "hold: clutch, nothing moves without it"], ["W S", "forward, back"], ["A D", "left, right"], ["E Q", "up, down"],
  ["↑ ↓", "pitch"], ["← →", "yaw: left, right"], ["C Z", "roll"], ["R F", "gripper: open, close"],
  ["Shift", "hold: a quarter of the speed"], ["T", "take over, or ask to"], ["V", "view: drawn, rendered, both"], ["H", "this list"],
];
export const PAD_HELP = [
  ["RB", "hold: clutch"], ["left stick", "forward, left"], ["right stick", "up, turn"], ["pad cross", "pitch, roll"],
  ["RT LT", "gripper: close, open"], ["LB", "hold: second meaning of buttons"],
];
// Buttons of the standard mapping of the Gamepad API.
export const PAD = {A: 0, B: 1, X: 2, Y: 3, LB: 4, RB: 5, LT: 6, RT: 7, Back: 8, Start: 9, L3: 10, R3: 11, Up: 12, Down: 13, Left: 14, Right: 15};

const SHORT = {Escape: "Esc", Space: "Space"};
export const keyName = (code) => SHORT[code] || code.replace(/^(Key|Digit)/, "");
