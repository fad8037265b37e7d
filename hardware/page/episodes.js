// The list of saved episodes, one of them played step by step, and what the checks of the dataset say.
import {drawEpisode} from "./plots.js";

const BATCH = 50, SHOWN = 30;
const $ = (id) => document.getElementById(id);
export const element = (tag, text = "", className = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
};

export class Episodes {
  constructor(fetchApi, closed) {
    this.fetch = fetchApi;
    this.list = [];
    this.shown = SHOWN;
    this.pictures = new Map();
    this.seen = new IntersectionObserver((entries) => entries.forEach((one) => one.isIntersecting && this.loadThumbnail(one.target)), {rootMargin: "300px"});
    $("older").onclick = () => { this.shown += SHOWN; this.render(); };
    $("check").onclick = () => this.check();
    $("player-close").onclick = () => $("player").close();
    $("player").addEventListener("close", () => { this.stop(); closed(); });
    $("player-play").onclick = () => this.timer ? this.stop() : this.play();
    $("player-step").oninput = () => { this.stop(); this.showStep(); };
    $("player-previous").onclick = () => this.neighbour(-1);
    $("player-next").onclick = () => this.neighbour(1);
  }

  // An episode that is looked at is shown as it is now; one that is gone, no more.
  set(list) {
    const before = this.list.find((one) => one.number === this.number);
    this.list = list;
    this.render();
    if (!before?.id || !$("player").open) return;
    const now = list.find((one) => one.id === before.id);
    if (!now) $("player").close();
    else if (JSON.stringify(now) !== JSON.stringify(before)) this.open(now.number);
  }

  render() {
    const newest = [...this.list].reverse().slice(0, this.shown);
    $("episodes").replaceChildren(...newest.map((one) => this.card(one)));
    if (!newest.length) $("episodes").append(element("p", "None saved yet.", "soft"));
    $("older").hidden = this.shown >= this.list.length;
  }

  card(one) {
    const card = element("button", "", "episode");
    card.type = "button";
    card.dataset.number = one.number;
    card.dataset.key = `${one.number}?episode=${one.id ?? one.length ?? ""}`;
    const isLabelled = one.success === true || (one.success === false && one.label !== "");
    const image = element("span", "no picture", "thumb"), verdict = !isLabelled ? "– no label" : one.success ? "✓ success" : "✗ failure";
    const seconds = one.seconds == null ? "" : ` · ${one.seconds.toFixed(1)} s`, rate = one.rate_hz == null ? "" : ` · ${one.rate_hz.toFixed(1)} Hz`;
    const label = one.label && !["success", "failure"].includes(one.label) ? ` · ${one.label}` : "";
    card.append(image, element("strong", `Episode ${one.number}`), element("span", verdict + label, !isLabelled ? "soft" : one.success ? "ok" : "bad"));
    card.append(element("small", `${one.length} steps${seconds}${rate}`, "soft"));
    for (const text of one.notes ?? []) card.append(element("small", `“${text}”`, "soft"));
    for (const text of one.problems ?? []) card.append(element("small", `! ${text}`, "warn"));
    card.onclick = () => this.open(one.number);
    if (this.pictures.has(card.dataset.key)) this.showThumbnail(card); else this.seen.observe(card);
    return card;
  }

  async loadThumbnail(card) {
    this.seen.unobserve(card);
    const key = card.dataset.key;
    if (!this.pictures.has(key)) {
      const answer = await this.fetch(`/api/thumbnail/${key}`).catch(() => null);
      if (!answer?.ok) return;
      this.pictures.set(key, answer.status === 204 ? "" : URL.createObjectURL(await answer.blob()));
    }
    this.showThumbnail(card);
  }

  showThumbnail(card) {
    const url = this.pictures.get(card.dataset.key);
    if (!url) return;
    const image = new Image();
    image.src = url;
    image.alt = `last picture of episode ${card.dataset.number}`;
    card.querySelector(".thumb").replaceChildren(image);
  }

  async open(number) {
    this.stop();
    const listed = this.list.find((one) => one.number === number);
    this.number = number;
    if (!$("player").open) $("player-said").textContent = "";
    $("player-title").textContent = `Episode ${number}` + (listed?.success == null ? "" : listed.success ? " · ✓ success" : " · ✗ failure");
    $("player-pictures").replaceChildren();
    $("player-text").textContent = "Loading.";
    if (!$("player").open) $("player").showModal();
    const episode = this.episode = {steps: 0, times: [], proprio: [], action: [], source: [], success: [], pictures: {}};
    for (let first = 0; first === 0 || first < episode.steps; first += BATCH) {
      const answer = await this.fetch(`/api/frames/${number}?first=${first}&count=${BATCH}`).catch(() => null);
      if (this.episode !== episode || !$("player").open) return;
      if (!answer?.ok) {
        $("player-text").textContent = answer ? (await answer.json().catch(() => ({}))).detail ?? `Error ${answer.status}` : "No connection.";
        return;
      }
      const part = await answer.json();
      Object.assign(episode, {steps: part.steps, names: part.names});
      for (const key of ["times", "proprio", "action", "source", "success"]) episode[key].push(...part[key]);
      for (const [name, rows] of Object.entries(part.pictures)) (episode.pictures[name] ??= []).push(...rows);
      if (first === 0) this.begin();
      this.showStep();
    }
    if (!this.timer) $("player-text").textContent = this.summary();
  }

  summary() {
    const {episode} = this, hit = episode.success.findIndex(Boolean), sources = [...new Set(episode.source)].join(", ");
    const taken = episode.source.filter((one) => one === "intervention").length;
    return `${episode.steps} steps, ${episode.times.at(-1)?.toFixed(2)} s · acted: ${sources}` + (taken ? ` (${taken} steps taken over)` : "")
      + (hit >= 0 ? ` · first success at step ${hit}` : " · no step with success");
  }

  begin() {
    $("player-step").max = Math.max(0, this.episode.steps - 1);
    $("player-step").value = 0;
    for (const name of Object.keys(this.episode.pictures)) {
      const figure = element("figure"), image = new Image();
      image.alt = `camera ${name}`;
      image.dataset.camera = name;
      figure.append(image, element("figcaption", name, "soft"));
      $("player-pictures").append(figure);
    }
    $("player-play").focus();
  }

  showStep() {
    const {episode} = this, step = Math.min(Number($("player-step").value), episode.times.length - 1);
    if (step < 0) return;
    for (const image of $("player-pictures").querySelectorAll("img")) image.src = `data:image/jpeg;base64,${episode.pictures[image.dataset.camera][step]}`;
    $("player-at").textContent = `step ${step} of ${episode.steps} · ${episode.times[step].toFixed(2)} s · ${episode.source[step]}`;
    drawEpisode($("player-plot"), episode, step);
  }

  // At the speed at which it was recorded, by its own stamps.
  play() {
    if (!this.episode?.times.length) return;
    if (Number($("player-step").value) >= this.episode.times.length - 1) $("player-step").value = 0;
    const from = performance.now() - 1000 * this.episode.times[Number($("player-step").value)];
    $("player-play").textContent = "Pause";
    this.timer = setInterval(() => {
      const now = (performance.now() - from) / 1000, after = this.episode.times.findIndex((at) => at > now);
      $("player-step").value = after < 0 ? this.episode.times.length - 1 : Math.max(0, after - 1);
      this.showStep();
      if (after < 0) this.stop();
    }, 33);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    $("player-play").textContent = "Play";
    if (this.episode?.steps) $("player-text").textContent = this.summary();
  }

  neighbour(by) {
    const place = this.list.findIndex((one) => one.number === this.number) + by;
    if (this.list[place]) this.open(this.list[place].number);
  }

  async check() {
    $("health-text").textContent = "Checking; it takes a while for many pictures.";
    const answer = await this.fetch("/api/health").catch(() => null);
    if (!answer?.ok) {
      $("health-text").textContent = answer ? (await answer.json().catch(() => ({}))).detail ?? `Error ${answer.status}` : "No connection.";
      return;
    }
    const rows = await answer.json(), count = (kind) => rows.filter((row) => row.severity === kind).length;
    $("health-text").textContent = rows.length ? `${count("error")} errors, ${count("warning")} warnings, ${count("note")} notes` : "✓ nothing was found";
    const marks = {error: ["✕", "bad"], warning: ["!", "warn"], note: ["i", "soft"]};
    $("health").replaceChildren(...rows.slice(0, 40).map((row) => {
      const [mark, style] = marks[row.severity] ?? marks.note, line = element("details");
      line.append(element("summary", `${mark} ${row.severity}: ${row.check}, ${row.where}${row.count > 1 ? ` (${row.count} times)` : ""}`, style));
      line.append(element("p", row.got), element("p", `Fix: ${row.fix}`, "soft"));
      return line;
    }));
  }
}
