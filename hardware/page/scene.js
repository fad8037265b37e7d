// The drawn view: base frame, arm, tool, its trail, and what a simulator knows. Own projection on a canvas.

const COLOURS = ["#f4796b", "#58c98b", "#5aa9ff"];

const turn = ([w, x, y, z], [a, b, c]) => {
  const u = [y * c - z * b, z * a - x * c, x * b - y * a].map((e) => 2 * e);
  return [a + w * u[0] + y * u[2] - z * u[1], b + w * u[1] + z * u[0] - x * u[2], c + w * u[2] + x * u[1] - y * u[0]];
};
const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
const times = (a, s) => a.map((e) => e * s);

export class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.azimuth = Math.PI - 0.4; // from behind the robot: forward is away from who looks, left is left
    this.height = 0.5;
    this.zoom = 1;
    this.trail = [];
    this.centre = null;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      this.azimuth -= (event.clientX - from[0]) * 0.01;
      this.height = Math.max(0.05, Math.min(1.5, this.height + (event.clientY - from[1]) * 0.01));
      from = [event.clientX, event.clientY];
      this.isTurned = true;
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { from = null; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.shiftKey) return; // without it the page scrolls
      event.preventDefault();
      this.isTurned = true;
      this.zoom = Math.max(0.4, Math.min(4, this.zoom * Math.exp(-event.deltaY * 0.002)));
    }, {passive: false});
  }

  // Point in the base frame -> [x, y, depth] in pixels.
  at(p) {
    const [x, y, z] = [p[0] - this.centre[0], p[1] - this.centre[1], p[2] - this.centre[2]];
    const {azimuth, height} = this.panel;
    const ca = Math.cos(azimuth), sa = Math.sin(azimuth), ch = Math.cos(height), sh = Math.sin(height);
    const right = -sa * x + ca * y, into = ca * x + sa * y, depth = 2.2 - (into * ch + z * sh);
    const scale = this.size * this.zoom / this.radius * 2.2 / Math.max(depth, 0.3) / 2;
    return [this.panel.middle + right * scale, this.tall / 2 - (z * ch - into * sh) * scale, depth];
  }

  line(a, b, colour, width = 1, dash = []) {
    const [p, q] = [this.at(a), this.at(b)], c = this.context;
    c.strokeStyle = colour; c.lineWidth = width; c.setLineDash(dash);
    c.beginPath(); c.moveTo(p[0], p[1]); c.lineTo(q[0], q[1]); c.stroke();
  }

  label(p, text, colour) {
    const [x, y] = this.at(p), c = this.context;
    c.font = "12px system-ui, sans-serif";
    c.lineWidth = 3; c.setLineDash([]); c.strokeStyle = "#12161a"; c.strokeText(text, x + 8, y - 6);
    c.fillStyle = colour; c.fillText(text, x + 8, y - 6);
  }

  draw(view, motion) {
    const ratio = devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    [this.width, this.tall] = [box.width, box.height];
    const tool = view.pose?.length >= 3 ? view.pose.slice(0, 3) : null;
    if (!this.width) return this.words(view, tool); // the rendered view stands in its place
    const isWide = this.width > 760, wide = isWide ? this.width / 2 : this.width;
    this.size = Math.min(wide * 0.8, this.tall);
    if (this.canvas.width !== Math.round(box.width * ratio)) { this.canvas.width = Math.round(box.width * ratio); }
    if (this.canvas.height !== Math.round(box.height * ratio)) { this.canvas.height = Math.round(box.height * ratio); }
    const c = this.context = this.canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.tall);
    c.lineCap = c.lineJoin = "round";
    this.aim(tool, view.scene ?? {});
    if (tool) this.remember(tool);
    const panels = [{azimuth: this.azimuth, height: this.height, middle: wide / 2, title: ""}];
    if (isWide) panels.push({azimuth: Math.PI, height: 1.56, middle: 1.5 * wide, title: "from above"});
    panels.forEach((panel, index) => {
      c.save();
      c.beginPath(); c.rect(index * wide, 0, wide, this.tall); c.clip();
      this.panel = panel;
      this.all(view, tool, motion);
      c.fillStyle = "#a2b0bd"; c.fillText(panel.title, index * wide + 10, 18);
      c.restore();
    });
    return this.words(view, tool);
  }

  all(view, tool, motion) {
    this.grid();
    for (const axis of [0, 1, 2]) this.line([0, 0, 0], [0, 1, 2].map((i) => i === axis ? 0.12 : 0), COLOURS[axis], 2);
    this.label([0, 0, 0], "base", "#9fb0bf");
    const entries = Object.entries(view.scene ?? {}), arm = entries.filter(([name]) => name.startsWith("link:")).map(([, p]) => p);
    if (arm.length) this.arm(arm);
    for (const [name, p] of entries) {
      if (!name.startsWith("link:")) p.length === 6 ? this.box(p) : this.thing(name, p);
    }
    if (!tool) return;
    if (!arm.length) this.line([0, 0, 0], tool, "#73828f", 2, [3, 6]);
    this.tool(tool, view.pose.length === 7 ? view.pose.slice(3) : [1, 0, 0, 0], motion);
  }

  // Behind what it may hide; its last part is thin, as the tool is drawn there.
  arm(points) {
    const last = points.length - 2;
    points.slice(1).forEach((p, i) => this.line(points[i], p, "#596875", i === last ? 4 : 10));
    points.slice(0, -1).forEach((p) => this.dot(p, 5, "#8b9aa7"));
  }

  words(view, tool) {
    if (!tool) return "No pose of the tool.";
    const named = Object.entries(view.scene ?? {}).filter(([name, p]) => p.length === 3 && !name.startsWith("link:"));
    const near = named.map(([name, p]) => `${name} ${(100 * Math.hypot(...add(p, times(tool, -1)))).toFixed(1)} cm away`);
    return [`Tool at ${tool.map((e) => e.toFixed(3)).join(", ")} m`, ...near].join(" · ");
  }

  // Look at the middle between the tool and all that is there, slowly; the base may be out of sight then.
  aim(tool, scene) {
    const things = Object.entries(scene).filter(([name, p]) => p.length === 3 && !name.startsWith("link:")).map(([, p]) => p);
    const points = [...(tool ? [tool] : []), ...things, ...(things.length ? [] : [[0, 0, 0.05]])];
    const middle = [0, 1, 2].map((i) => (Math.min(...points.map((p) => p[i])) + Math.max(...points.map((p) => p[i]))) / 2);
    const radius = Math.max(0.2, ...points.map((p) => 0.06 + Math.hypot(...add(p, times(middle, -1)))));
    this.centre = this.centre ? add(times(this.centre, 0.95), times(middle, 0.05)) : middle;
    this.radius = this.radius ? 0.95 * this.radius + 0.05 * radius : radius;
  }

  grid() {
    const [x0, y0] = [Math.round(this.centre[0] * 10) / 10, Math.round(this.centre[1] * 10) / 10];
    for (let i = -5; i <= 5; i++) {
      this.line([x0 - 0.5, y0 + i / 10, 0], [x0 + 0.5, y0 + i / 10, 0], i ? "#273038" : "#2f3a44", 1);
      this.line([x0 + i / 10, y0 - 0.5, 0], [x0 + i / 10, y0 + 0.5, 0], "#273038", 1);
    }
  }

  dot(p, radius, colour, hollow = false) {
    const [x, y] = this.at(p), c = this.context;
    c.beginPath(); c.arc(x, y, radius, 0, 2 * Math.PI); c.setLineDash([]);
    if (hollow) { c.strokeStyle = colour; c.lineWidth = 2.5; c.stroke(); } else { c.fillStyle = colour; c.fill(); }
  }

  // Goals are rings, other things are cubes; each with its foot on the ground, so that its height is seen.
  thing(name, p) {
    const isGoal = /goal|target/.test(name), colour = isGoal ? "#7fe3a6" : "#f2b84b", s = 0.02;
    this.line(p, [p[0], p[1], 0], colour, 1, [2, 4]);
    this.dot([p[0], p[1], 0], 2, colour);
    if (isGoal) this.dot(p, 9, colour, true);
    else this.box([p[0] - s, p[1] - s, p[2] - s, p[0] + s, p[1] + s, p[2] + s], colour, 2, []);
    this.label(p, name, colour);
  }

  box([x, y, z, X, Y, Z], colour = "#66788a", width = 1, dash = [4, 4]) {
    const corners = [[x, y, z], [X, y, z], [X, Y, z], [x, Y, z], [x, y, Z], [X, y, Z], [X, Y, Z], [x, Y, Z]];
    const edges = [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]];
    for (const [a, b] of edges) this.line(corners[a], corners[b], colour, width, dash);
  }

  remember(p) {
    const last = this.trail.at(-1);
    if (last && Math.hypot(...add(p, times(last, -1))) > 0.05) this.trail = []; // it was reset
    this.trail.push(p);
    if (this.trail.length > 120) this.trail.shift();
  }

  tool(p, q, motion) {
    this.trail.slice(1).forEach((e, i) => this.line(this.trail[i], e, `rgba(90,169,255,${0.05 + 0.5 * i / this.trail.length})`, 2));
    this.line(p, [p[0], p[1], 0], "#8fa3b5", 1, [2, 4]);
    this.dot([p[0], p[1], 0], 3, "#8fa3b5");
    const local = (v) => add(p, turn(q, v));
    this.line(local([0, -0.03, -0.045]), local([0, 0.03, -0.045]), "#e9eef3", 4);
    for (const side of [-0.03, 0.03]) this.line(local([0, side, -0.045]), local([0, side, 0]), "#e9eef3", 4);
    this.line(local([0, 0, -0.045]), local([0, 0, -0.09]), "#e9eef3", 5);
    for (const axis of [0, 1, 2]) this.line(p, local([0, 1, 2].map((i) => i === axis ? 0.05 : 0)), COLOURS[axis], 2);
    this.label(p, "tool", "#e9eef3");
    if (motion?.slice(0, 3).some((e) => e)) {
      const end = add(p, times(motion.slice(0, 3), 0.12));
      this.line(p, end, "#ffffff", 3);
      this.dot(end, 4, "#ffffff");
    }
  }
}
