// Changes of saved episodes: asked for in the player, by button or key, and confirmed before they are sent.
const $ = (id) => document.getElementById(id);
const KEYS = {Digit3: "edit_success", Digit4: "edit_failure", KeyN: "edit_note", Delete: "edit_delete"};
const QUESTIONS = {
  edit_success: (number) => `Mark episode ${number} as a success?`, edit_failure: (number) => `Mark episode ${number} as a failure?`,
  edit_note: (number) => `Add a note to episode ${number}.`, edit_delete: (number) => `Delete episode ${number}? It can be brought back while this session runs.`,
};

export class Changes {
  // why() gives a text when nothing may be changed now; send(name, episode id, text) does it.
  constructor(episodes, why, send) {
    Object.assign(this, {episodes, why, send});
    for (const button of document.querySelectorAll("[data-edit]")) button.onclick = () => this.ask(button.dataset.edit);
    $("player").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !(event.code in KEYS)) return;
      event.preventDefault();
      this.ask(KEYS[event.code]);
    });
    $("change-no").onclick = () => $("change").close();
    $("change-form").onsubmit = (event) => {
      event.preventDefault();
      const {name, id} = this.asked, text = name === "edit_note" ? $("change-note").value.trim() : "";
      if (name === "edit_note" && !text) return $("change-note").focus();
      $("change").close();
      const refusal = this.why(name);
      if (refusal) return this.say(refusal);
      this.send(name, id, text);
      this.say("Asked for.");
    };
    $("restore").onclick = () => this.send("edit_restore", this.deleted.at(-1), "");
  }

  say(text) { $("player-said").textContent = text; }

  ask(name) {
    const one = this.episodes.list.find((row) => row.number === this.episodes.number), refusal = one?.id ? this.why(name) : "This session does not change saved episodes.";
    if (refusal) return this.say(refusal);
    this.asked = {name, id: one.id};
    $("change-text").textContent = QUESTIONS[name](one.number);
    $("change-note").hidden = name !== "edit_note";
    $("change-note").value = "";
    $("change-yes").textContent = name === "edit_delete" ? "Delete it" : name === "edit_note" ? "Add it" : "Change it";
    $("change").showModal();
    (name === "edit_note" ? $("change-note") : $("change-no")).focus();
  }

  // What the session says of it.
  take(view, isDriving) {
    this.deleted = view.totals?.deleted ?? [];
    $("restore").hidden = !this.deleted.length || !isDriving || !view.allowed?.includes("edit_restore");
    if ($("player").open && $("player-said").textContent && view.message && view.message !== this.message) this.say(view.message);
    this.message = view.message;
  }
}
