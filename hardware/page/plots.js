// Sparklines of named numbers on one canvas, and the curves of a finished episode.

const KEPT = 300, ROW = 20, MOST = 14;
const INK = "#dbe3ea", SOFT = "#93a1ae", LINE = "#5aa9ff", RULE = "#29323a";

export const fit = (canvas, height) => {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, width, height);
  return [c, width];
};

export class Sparklines {
  constructor(canvas) { this.canvas = canvas; this.rows = new Map(); }

  push(values) {
    for (const name of this.rows.keys()) if (!(name in values)) this.rows.delete(name);
    for (const [name, value] of Object.entries(values)) {
      if (!this.rows.has(name)) this.rows.set(name, []);
      const kept = this.rows.get(name);
      kept.push(value);
      if (kept.length > KEPT) kept.shift();
    }
  }

  // Draws the first elements; returns how many are left out.
  draw() {
    const shown = [...this.rows].slice(0, MOST), [c, width] = fit(this.canvas, Math.max(1, shown.length) * ROW + 2);
    const left = Math.min(150, width * 0.4), right = 58, room = width - left - right;
    c.font = "12px system-ui, sans-serif";
    shown.forEach(([name, kept], row) => {
      const y = row * ROW, known = kept.filter((e) => e !== null);
      const low = Math.min(...known), high = Math.max(...known), span = high - low || 1;
      c.fillStyle = SOFT; c.textAlign = "left";
      c.fillText(shortened(c, name, left - 8), 0, y + 14);
      c.fillStyle = INK; c.textAlign = "right";
      const last = kept.at(-1);
      c.fillText(last === null ? "–" : last.toFixed(3), width, y + 14);
      c.strokeStyle = RULE; c.lineWidth = 1;
      c.beginPath(); c.moveTo(left, y + ROW - 0.5); c.lineTo(width - right, y + ROW - 0.5); c.stroke();
      c.strokeStyle = LINE; c.lineWidth = 1.5; c.lineJoin = "round";
      c.beginPath();
      kept.forEach((e, i) => e !== null && c.lineTo(left + room * (KEPT - kept.length + i) / (KEPT - 1), high === low ? y + ROW / 2 : y + ROW - 4 - (ROW - 8) * (e - low) / span));
      c.stroke();
    });
    return this.rows.size - shown.length;
  }
}

const shortened = (c, text, room) => {
  if (c.measureText(text).width <= room) return text;
  while (text.length > 2 && c.measureText(`…${text}`).width > room) text = text.slice(1);
  return `…${text}`;
};

// Action elements over all steps known so far, with a line at `step`. Intervened steps are hatched at the foot.
export const drawEpisode = (canvas, episode, step) => {
  const names = episode.names.action.slice(0, 8), [c, width] = fit(canvas, names.length * 30 + 12), left = Math.min(130, width * 0.35);
  const x = (i) => left + (width - left - 2) * i / Math.max(1, episode.steps - 1);
  c.font = "12px system-ui, sans-serif";
  names.forEach((name, row) => {
    const y = row * 30, values = episode.action.map((one) => one?.[row]), known = values.filter((e) => e != null);
    const low = Math.min(...known), span = Math.max(...known) - low || 1;
    c.fillStyle = SOFT; c.fillText(shortened(c, name, left - 8), 0, y + 18);
    c.strokeStyle = RULE; c.beginPath(); c.moveTo(left, y + 29.5); c.lineTo(width, y + 29.5); c.stroke();
    c.strokeStyle = LINE; c.lineWidth = 1.5; c.beginPath();
    values.forEach((e, i) => e != null && c.lineTo(x(i), y + 26 - 22 * (e - low) / span));
    c.stroke();
  });
  c.fillStyle = "#f2b84b";
  episode.source.forEach((one, i) => one === "intervention" && c.fillRect(x(i), names.length * 30 + 4, Math.max(2, x(1) - x(0)), 6));
  c.fillStyle = "#58c98b";
  const hit = episode.success.findIndex(Boolean);
  if (hit >= 0) { c.fillRect(x(hit) - 1, 0, 2, names.length * 30); c.fillText("success", Math.min(x(hit) + 5, width - 50), 10); }
  c.fillStyle = INK; c.fillRect(x(step) - 0.75, 0, 1.5, names.length * 30 + 12);
};
