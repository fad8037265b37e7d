// Which view of robot and target is shown: the drawn one, the simulator's own picture, or both.
const CHOICES = ["drawn", "rendered", "both"];
const STALLED_MS = 3000; // nobody may drive by a picture that stands still
const $ = (id) => document.getElementById(id);

export class Views {
  constructor() {
    const kept = localStorage.getItem("view");
    this.chosen = CHOICES.includes(kept) ? kept : innerWidth > 1000 ? "both" : "drawn";
    this.image = $("render").querySelector("img");
    this.note = $("render").querySelector("span");
    for (const button of document.querySelectorAll("#views button")) button.onclick = () => this.choose(button.dataset.view);
    this.show();
  }

  choose(name) {
    this.chosen = name;
    localStorage.setItem("view", name);
    this.show();
  }

  next() {
    if (this.isThere) this.choose(CHOICES[(CHOICES.indexOf(this.chosen) + 1) % CHOICES.length]);
  }

  // Without a picture, or behind the end of one, the drawn view is the only one.
  show() {
    $("views").hidden = !this.isThere;
    document.body.dataset.view = this.isThere ? this.chosen : "drawn";
    for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-pressed", String(button.dataset.view === this.chosen));
  }

  take(ageMs) {
    const isStalled = ageMs != null && ageMs > STALLED_MS;
    const isThere = ageMs != null && !isStalled && Boolean(this.image.src);
    $("stalled").hidden = !isStalled;
    if (isThere !== this.isThere) { this.isThere = isThere; this.show(); }
    this.note.textContent = isThere ? `${ageMs < 300 ? "✓" : ageMs < 1000 ? "!" : "✕"} ${ageMs.toFixed(0)} ms old` : "";
    this.note.className = ageMs < 300 ? "ok" : ageMs < 1000 ? "warn" : "bad";
  }
}
