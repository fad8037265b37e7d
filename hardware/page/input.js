// Keyboard, gamepad, on-screen sticks and tracked hand, made into one command. Whatever is doubtful opens the clutch.
import {AXES, EVENTS, GRIP_KEYS, MOTION_KEYS, PAD} from "./names.js";

const DEAD_ZONE = 0.12;
const clip = (x) => Math.max(-1, Math.min(1, x));
const live = (x) => Math.abs(x) < DEAD_ZONE ? 0 : Math.sign(x) * (Math.abs(x) - DEAD_ZONE) / (1 - DEAD_ZONE);
const isTyping = (target) => target instanceof Element && target.matches("input:not([type=range]), textarea");
const dialogOpen = () => document.querySelector("dialog[open]") !== null;

export class Inputs {
  // ask(event name) is called at each press; said(text) tells why the clutch was opened.
  constructor(ask, said) {
    this.ask = ask;
    this.said = said;
    this.pressed = new Set();
    this.sticks = new Map();
    this.grip = 0;
    this.pad = {engaged: false, motion: [0, 0, 0, 0, 0, 0], grip: 0, name: ""};
    this.padArmed = false; // a bumper that is down when the page opens is no grip
    this.padHeld = new Set();
    this.hand = null;
    this.extraKeys = {};
    this.listen();
  }

  listen() {
    addEventListener("keydown", (event) => this.keyDown(event));
    addEventListener("keyup", (event) => this.pressed.delete(event.code));
    addEventListener("blur", () => this.release("the window lost the focus"));
    addEventListener("pagehide", () => this.release("the page was left"));
    document.addEventListener("visibilitychange", () => document.hidden && this.release("the tab was hidden"));
    addEventListener("gamepaddisconnected", () => this.release("the gamepad was unplugged"));
    document.addEventListener("focusin", (event) => isTyping(event.target) && this.release("a text is written"));
    document.addEventListener("contextmenu", (event) => event.target.closest?.(".stick") && event.preventDefault());
    for (const stick of document.querySelectorAll(".stick")) this.listenToStick(stick);
    for (const button of document.querySelectorAll("[data-grip]")) this.listenToGrip(button);
  }

  keyDown(event) {
    if (event.key === "Meta" || event.metaKey) return this.release("a key of the system was pressed");
    if (event.ctrlKey || event.altKey || isTyping(event.target) || dialogOpen()) return;
    const code = event.code.replace("Numpad", "Digit").replace("ShiftRight", "ShiftLeft");
    const isDrive = code === "Space" || code in MOTION_KEYS || code in GRIP_KEYS || code === "ShiftLeft";
    if (isDrive) {
      if (code !== "ShiftLeft") event.preventDefault(); // Space would click, arrows would scroll
      // One that repeats was held when everything was let go of: it must be pressed again.
      if (!event.repeat) this.pressed.add(event.code);
      return;
    }
    if (event.repeat) return;
    const asked = EVENTS.find((one) => one.key === code);
    if (asked) this.ask(asked.name);
    else if (code in this.extraKeys) this.extraKeys[code]();
    else return;
    event.preventDefault();
  }

  listenToStick(stick) {
    const knob = stick.querySelector("i");
    const move = (event) => {
      const box = stick.getBoundingClientRect(), radius = box.width / 2;
      let x = (event.clientX - box.left - radius) / radius, y = (event.clientY - box.top - radius) / radius;
      const length = Math.hypot(x, y);
      if (length > 1) { x /= length; y /= length; }
      this.sticks.set(stick, [live(x), live(y)]);
      knob.style.transform = `translate(${x * radius * 0.7}px, ${y * radius * 0.7}px)`;
    };
    const end = () => { this.sticks.delete(stick); knob.style.transform = ""; };
    stick.addEventListener("pointerdown", (event) => { event.preventDefault(); stick.setPointerCapture(event.pointerId); move(event); });
    stick.addEventListener("pointermove", (event) => this.sticks.has(stick) && move(event));
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) stick.addEventListener(kind, end);
    stick.end = end;
  }

  listenToGrip(button) {
    const set = (value) => { this.grip = value; };
    button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); set(Number(button.dataset.grip)); });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(kind, () => set(0));
  }

  // Everything is let go of; a clutch that is still held must be pressed again.
  release(why) {
    const was = this.engaged();
    this.pressed.clear();
    for (const stick of [...this.sticks.keys()]) stick.end();
    this.grip = 0;
    this.padArmed = false;
    this.hand?.release();
    this.released?.();
    if (was) this.said(`Clutch opened: ${why}.`);
  }

  engaged() {
    return this.pressed.has("Space") || this.sticks.size > 0 || (this.padArmed && this.pad.engaged) || Boolean(this.hand?.engaged);
  }

  readPad() {
    let pad = null;
    for (const one of navigator.getGamepads?.() ?? []) if (one?.connected && one.mapping === "standard") { pad = one; break; }
    if (!pad) {
      if (this.pad.name) {
        this.pad.name = ""; // release() comes back here
        this.release("the gamepad is gone");
      }
      this.pad = {engaged: false, motion: [0, 0, 0, 0, 0, 0], grip: 0, name: ""};
      return;
    }
    const held = (name) => Boolean(pad.buttons[PAD[name]]?.pressed), value = (name) => pad.buttons[PAD[name]]?.value ?? 0;
    const shift = held("LB"), [lx = 0, ly = 0, rx = 0, ry = 0] = pad.axes;
    if (!held("RB")) this.padArmed = true;
    this.pad = {
      name: pad.id, engaged: held("RB"), grip: live(value("LT")) - live(value("RT")),
      motion: [-live(ly), -live(lx), -live(ry), held("Right") - held("Left"), shift ? 0 : held("Up") - held("Down"), -live(rx)],
    };
    for (const event of EVENTS) {
      const second = event.pad.startsWith("LB+"), button = event.pad.replace("LB+", "");
      const isHeld = held(button) && (second === shift || event.name === "estop");
      if (isHeld && !this.padHeld.has(event.name)) this.ask(event.name);
      if (isHeld) this.padHeld.add(event.name); else if (!held(button)) this.padHeld.delete(event.name);
    }
  }

  // Fields of a command, as of now.
  read(speed) {
    this.readPad();
    const motion = AXES.map((_, axis) => this.pad.motion[axis]);
    for (const code of this.pressed) if (code in MOTION_KEYS) motion[MOTION_KEYS[code][0]] += MOTION_KEYS[code][1];
    for (const [stick, [x, y]] of this.sticks) {
      if (stick.dataset.axes === "xy") { motion[0] -= y; motion[1] -= x; } else { motion[2] -= y; motion[5] -= x; }
    }
    let grip = this.pad.grip + this.grip;
    for (const code of this.pressed) if (code in GRIP_KEYS) grip += GRIP_KEYS[code];
    if (this.hand) grip += this.hand.grip;
    const slow = this.pressed.has("ShiftLeft") || this.pressed.has("ShiftRight") ? 0.25 : 1;
    return {
      engaged: this.engaged() && !document.hidden && !dialogOpen(),
      motion: motion.map((x) => clip(x) * speed * slow), gripper: clip(grip), pose: this.hand?.pose ?? null, buttons: [],
    };
  }
}
