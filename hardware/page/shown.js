// A view of the session (SessionView of robot_rl/teleop/panel.py) on the screen.
import {element} from "./episodes.js";
import {AXES, EVENTS, keyName, OTHER_KEYS, PAD_HELP, STATES} from "./names.js";
import {Sparklines} from "./plots.js";
import {Scene} from "./scene.js";
import {Views} from "./views.js";

const $ = (id) => document.getElementById(id);
const set = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
const number = (x, digits = 1) => x == null ? "–" : x.toFixed(digits);
const MARKS = {ok: "✓", warn: "!", bad: "✕"};

// A row: name, value, and a verdict that is a sign and a word besides its colour.
const row = (name, value, verdict = "") => {
  const line = element("tr");
  line.append(element("th", name), element("td", value), element("td", verdict ? `${MARKS[verdict]} ${{ok: "ok", warn: "watch", bad: "bad"}[verdict]}` : "", verdict));
  return line;
};
const graded = (value, warn, bad) => value == null || value >= bad ? "bad" : value >= warn ? "warn" : "ok";
export const bytes = (count) => count >= 1e12 ? `${(count / 1e12).toFixed(1)} TB` : count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${(count / 1e6).toFixed(0)} MB`;

export class Shown {
  constructor(ask) {
    this.plots = {action: new Sparklines($("plot-action")), proprio: new Sparklines($("plot-proprio"))};
    this.scene = new Scene($("scene"));
    this.views = new Views();
    this.cameras = new Map();
    this.view = {};
    this.buttons = new Map();
    for (const event of EVENTS) this.addButton(event, ask);
    for (const name of AXES) {
      const bar = element("div", "", "bar"), fill = element("i");
      bar.append(element("span", name), fill);
      $("motion").append(bar);
    }
    this.keyList();
    setInterval(() => this.drawPlots(), 100);
    const frame = () => {
      requestAnimationFrame(frame);
      if (!this.view.state || !(this.isNew || this.scene.isTurned)) return;
      this.isNew = this.scene.isTurned = false;
      set("scene-text", this.scene.draw(this.view, this.motion));
    };
    requestAnimationFrame(frame);
  }

  addButton(event, ask) {
    const button = event.name === "estop" ? $("estop") : element("button", event.label);
    if (event.name !== "estop") {
      button.type = "button";
      button.dataset.event = event.name;
      button.append(" ", element("kbd", keyName(event.key)));
      $("events").append(button);
    }
    button.title = `${event.hint} (key ${keyName(event.key)}, gamepad ${event.pad})`;
    button.onclick = () => ask(event.name);
    this.buttons.set(event.name, button);
  }

  keyList() {
    const rows = (pairs) => pairs.map(([key, text]) => { const line = element("tr"); line.append(element("th", key), element("td", text)); return line; });
    const table = (title, pairs) => { const made = element("table"); made.append(element("caption", title), ...rows(pairs)); return made; };
    $("key-list").append(
      table("Keyboard: motion", OTHER_KEYS), table("Gamepad: motion", PAD_HELP),
      table("Events: key, gamepad", EVENTS.map((event) => [`${keyName(event.key)}, ${event.pad}`, `${event.label}: ${event.hint}`])),
    );
  }

  take(view) {
    this.view = view;
    this.isNew = true;
    this.state(view);
    this.loop(view);
    this.ages(view.ages_ms ?? {});
    this.totals(view.totals ?? {});
    for (const key of ["action", "proprio"]) this.plots[key].push(view[key] ?? {});
    for (const [name, button] of this.buttons) {
      const isAllowed = name === "estop" || view.allowed.includes(name);
      button.setAttribute("aria-disabled", String(!isAllowed));
    }
    this.problems([...(view.episode?.problems ?? []), ...(view.device?.problems ?? [])]);
  }

  state(view) {
    const [mark, title, next] = STATES[view.state] ?? ["·", view.state, ""], episode = view.episode ?? {};
    document.body.dataset.state = view.state;
    set("state-mark", mark);
    set("state", title);
    set("message", view.message || next);
    set("next", view.message && view.message !== next && view.message.length < 60 ? next : "");
    document.title = `${mark} ${title} · robot-rl`;
    const facts = [];
    if (episode.number != null) facts.push(["episode", String(episode.number)]);
    if (episode.seconds != null) facts.push(["time", `${number(episode.seconds)} s`]);
    if (episode.steps != null) facts.push(["steps", String(episode.steps)]);
    if (episode.source) facts.push(["acting", episode.source]);
    if (episode.interventions) facts.push(["take-overs", String(episode.interventions)]);
    if (episode.subtask) facts.push(["subtask", episode.subtask]);
    if (episode.label) facts.push(["label", `${{success: "✓ ", failure: "✗ "}[episode.label] ?? ""}${episode.label}`]);
    if ($("facts").dataset.text === JSON.stringify(facts)) return;
    $("facts").dataset.text = JSON.stringify(facts);
    $("facts").replaceChildren(...facts.map(([name, text]) => { const made = element("span", `${name} `, "fact"); made.append(element("b", text)); return made; }));
  }

  loop({loop = {}, limits = [], totals = {}}) {
    const rows = [];
    if (loop.wanted_hz != null) {
      const share = loop.achieved_hz / loop.wanted_hz;
      rows.push(row("rate", `${number(loop.achieved_hz)} of ${number(loop.wanted_hz, 0)} Hz`, loop.achieved_hz == null ? "" : graded(1 - share, 0.02, 0.1)));
    }
    const period = loop.wanted_hz ? 1000 / loop.wanted_hz : 20;
    if (loop.late_p99_ms != null) rows.push(row("late, p99", `${number(loop.late_p99_ms, 2)} ms`, graded(loop.late_p99_ms, 0.1 * period, 0.5 * period)));
    if (loop.skipped != null) rows.push(row("skipped periods", String(loop.skipped), loop.skipped ? "warn" : "ok"));
    if (loop.queued != null) rows.push(row("rows to write", String(loop.queued), graded(loop.queued, 50, 500)));
    if (loop.lost) rows.push(row("rows lost", String(loop.lost), "bad"));
    if (totals.disk_bytes_left != null) {
      const minutes = (totals.seconds ?? Infinity) / 60, room = minutes < 600 ? `${minutes.toFixed(0)} min` : `${(minutes / 60).toFixed(0)} h`;
      rows.push(row("disk left", bytes(totals.disk_bytes_left), graded(1e10 / (totals.disk_bytes_left + 1), 1, 10)));
      if (Number.isFinite(minutes)) rows.push(row("room for", room, graded(1 / (minutes + 0.01), 1 / 60, 1 / 5)));
    }
    rows.forEach((line) => line.append(element("td", "", "meter")));
    $("loop").replaceChildren(...rows);
    set("limits", limits.length ? `▲ held back by: ${limits.join(", ")}` : "✓ no limit reached");
    $("limits").className = limits.length ? "warn" : "ok";
  }

  // A camera of 30 Hz is up to 70 ms old; 200 ms are felt.
  ages(ages) {
    const table = element("table");
    this.views.take(ages.render);
    for (const [name, age] of Object.entries(ages)) {
      if (name === "render") continue; // its age stands at the picture
      const line = row(name.replace("image/", ""), age == null ? "none yet" : `${number(age, 0)} ms`, graded(age, 100, 250)), cell = element("td", "", "meter"), fill = element("i");
      fill.style.width = `${Math.min(100, (age ?? 300) / 3)}%`;
      fill.className = graded(age, 100, 250);
      cell.append(fill);
      line.append(cell);
      table.append(line);
    }
    $("ages").replaceChildren(table);
    for (const [name, tile] of this.cameras) {
      const age = ages[name] ?? ages[`image/${name}`];
      if (age === undefined) continue;
      const grade = graded(age, 100, 250);
      tile.note.textContent = age == null ? "" : `${MARKS[grade]} ${number(age, 0)} ms`;
      tile.note.className = grade;
    }
  }

  totals({saved, wanted, successes, failures, discarded, takeover, policy_success: alone}) {
    if (saved == null) return;
    const parts = [`${saved}${wanted ? ` of ${wanted}` : ""} saved`];
    if (successes != null) parts.push(`✓ ${successes} success`);
    if (failures != null) parts.push(`✗ ${failures} failure`);
    if (discarded) parts.push(`${discarded} discarded`);
    if (takeover) parts.push(`taken over ${(100 * takeover).toFixed(0)} %`);
    this.hasPolicy ||= ["policy", "intervention"].includes(this.view.episode?.source);
    if (alone != null && this.hasPolicy) parts.push(`policy alone ${(100 * alone).toFixed(0)} % success`);
    set("totals", parts.join(" · "));
    $("progress").hidden = !wanted;
    if (wanted) { $("progress").max = wanted; $("progress").value = Math.min(saved, wanted); $("progress").setAttribute("aria-label", `${saved} of ${wanted} episodes`); }
  }

  problems(texts) {
    const shown = JSON.stringify(texts);
    if (this.problemsShown === shown) return;
    this.problemsShown = shown;
    document.querySelectorAll("#alerts .problem").forEach((one) => one.remove());
    $("alerts").append(...texts.map((text) => element("p", `! ${text}`, "problem")));
  }

  picture(name, blob) {
    if (name !== "render" && !this.cameras.has(name)) {
      const figure = element("figure"), image = new Image(), caption = element("figcaption", name), note = element("span");
      image.alt = `camera ${name}`;
      caption.append(" ", note);
      figure.append(image, caption);
      figure.onclick = () => figure.classList.toggle("big");
      $("cameras").append(figure);
      document.body.dataset.cameras = "some";
      this.cameras.set(name, {image, note});
    }
    const {image} = name === "render" ? this.views : this.cameras.get(name), old = image.src;
    image.src = URL.createObjectURL(blob);
    if (old) URL.revokeObjectURL(old);
  }

  drawPlots() {
    if (document.hidden) return;
    const left = this.plots.action.draw() + this.plots.proprio.draw();
    set("plot-more", left ? `${left} more elements are not drawn.` : "");
  }

  // What this page sends now.
  command(command, isDriving) {
    this.motion = command.engaged && isDriving ? command.motion : null;
    const bars = $("motion").children;
    command.motion.forEach((x, axis) => {
      const fill = bars[axis].querySelector("i");
      fill.style.left = `${50 + Math.min(0, x) * 50}%`;
      fill.style.width = `${Math.abs(x) * 50}%`;
    });
    // The session has the last word: it wants to see the clutch let go before it follows.
    const isOpen = ["ready", "recording"].includes(this.view.state) && (this.view.episode?.clutch ?? "engaged") === "engaged";
    const isFollowed = command.engaged && isDriving && isOpen;
    set("clutch", !isDriving ? "looking on" : isFollowed ? "driving" : command.engaged ? "not followed" : "clutch open");
    $("clutch-box").dataset.engaged = String(isFollowed);
  }
}
