// The operator's page: its connection, who drives, and fifty commands a second.
import {Changes} from "./changes.js";
import {element, Episodes} from "./episodes.js";
import {Inputs} from "./input.js";
import {EVENTS} from "./names.js";
import {Shown} from "./shown.js";
import {Hand} from "./xr.js";

const $ = (id) => document.getElementById(id);
const MOST_BUFFERED = 4096; // bytes; behind a network that stalls, old commands are worth nothing
const QUIET_MS = 1000;

let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token") ?? "";
if (token) sessionStorage.setItem("token", token);
if (location.hash) history.replaceState(null, "", location.pathname);
let socket = null, isDriving = false, lease = {}, seq = 0, heardAt = 0, retryMs = 250, hello = false;

const say = (text, kind = "said") => {
  const old = document.querySelector(`#alerts .${kind}`);
  if (old?.textContent === text) return;
  old?.remove();
  if (text) $("alerts").append(element("p", text, kind));
};
let saidTimer;
const sayBriefly = (text) => { say(text); clearTimeout(saidTimer); saidTimer = setTimeout(() => say(""), 5000); };

const send = (message) => {
  if (socket?.readyState !== WebSocket.OPEN || !hello) return false;
  socket.send(JSON.stringify(message));
  return true;
};
const sendEvent = (name, text = "", t = performance.now()) => {
  if (!send({type: "event", name, text, t})) sayBriefly("Not connected: this was not sent.");
};

// Every event comes through here, from keys, buttons and gamepads.
let textOf = null, textAt = 0;
const ask = (name) => {
  const event = EVENTS.find((one) => one.name === name);
  if (name === "estop") return sendEvent(name);
  if (!isDriving) return sayBriefly("You only look on: take over first (T).");
  if (!shown.view.allowed?.includes(name)) return sayBriefly(`${event.label} does nothing in this state.`);
  if (event.confirm) { inputs.release("a question is open"); return $("confirm").showModal(); }
  if (event.text) {
    [textOf, textAt] = [name, performance.now()]; // a subtask begins when it is asked for, not when its name is typed
    $("text-label").textContent = event.text;
    $("text-form").hidden = false;
    return $("text").focus();
  }
  const button = shown.buttons.get(name);
  button.classList.add("pressed");
  setTimeout(() => button.classList.remove("pressed"), 200);
  sendEvent(name);
};
const endText = () => { $("text-form").hidden = true; $("text").value = ""; $("drive").focus(); };
$("text-form").onsubmit = (event) => { event.preventDefault(); sendEvent(textOf, $("text").value, textAt); endText(); };
$("text-cancel").onclick = endText;
$("text").addEventListener("keydown", (event) => { if (event.key === "Escape") { event.preventDefault(); endText(); } });
$("confirm-yes").onclick = () => { $("confirm").close(); sendEvent("quit"); };
$("confirm-no").onclick = () => $("confirm").close();

const shown = new Shown(ask);
const inputs = new Inputs(ask, sayBriefly);
const fetchApi = (path) => fetch(path, {headers: token ? {authorization: `Bearer ${token}`} : {}});
const episodes = new Episodes(fetchApi, () => $("drive").focus());
const open = episodes.open.bind(episodes);
episodes.open = (number) => { inputs.release("an episode is looked at"); return open(number); };

const whyNot = (name) => !isDriving ? "You only look on: take over first (T)." : !shown.view.allowed?.includes(name)
  ? "Saved episodes are changed while nothing is recorded or saved." : "";
const sendEdit = (name, episode, text) => {
  if (!send({type: "edit", name, episode, text, t: performance.now()})) sayBriefly("Not connected: this was not sent.");
};
const changes = new Changes(episodes, whyNot, sendEdit);

const wish = (want) => send({type: "lease", want});
inputs.extraKeys = {
  KeyT: () => isDriving || wish(lease.operator ? "ask" : "take"),
  KeyV: () => shown.views.next(),
  KeyH: () => { $("keys").open = !$("keys").open; },
};
$("take").onclick = () => wish("take");
$("ask").onclick = () => wish("ask");
$("give").onclick = () => { inputs.release("you stopped driving"); wish("give"); };

const sendCommand = () => {
  const command = inputs.read(Number($("speed").value));
  shown.command(command, isDriving);
  if (!isDriving || socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > MOST_BUFFERED) return;
  seq += 1;
  socket.send(JSON.stringify({type: "command", seq, t: performance.now(), ...command}));
};
// The clutch opens at once, not at the next tick.
inputs.released = sendCommand;

const showLease = (told) => {
  const wasDriving = isDriving;
  lease = told;
  isDriving = told.you === "driving";
  // Also who begins to drive must take hold anew: what is held now was held while looking on.
  if (wasDriving !== isDriving) inputs.release(isDriving ? "you drive from now on, hold it again" : "you no longer drive");
  document.body.dataset.driving = String(isDriving);
  $("lease").textContent = isDriving ? `You drive (${told.name})` : told.operator ? `${told.operator} drives, you look on` : "Nobody drives";
  $("take").hidden = isDriving || Boolean(told.operator);
  $("ask").hidden = isDriving || !told.operator;
  $("give").hidden = !isDriving;
  const others = told.asking.filter((name) => name !== told.name);
  say(isDriving && others.length ? `${others.join(", ")} would like to drive.` : told.asking.includes(told.name) ? "You asked to drive." : "", "asking");
};

const hear = async (message) => {
  if (message instanceof ArrayBuffer) {
    const bytes = new Uint8Array(message), length = bytes[0];
    shown.picture(new TextDecoder().decode(bytes.subarray(1, 1 + length)), new Blob([bytes.subarray(1 + length)], {type: "image/jpeg"}));
    return;
  }
  const told = JSON.parse(message);
  // Only a view comes from the session; the server answers for itself when that hangs.
  if (told.type === "view") { heardAt = performance.now(); shown.take(told.view); changes.take(told.view, isDriving); }
  else if (told.type === "episodes") episodes.set(told.episodes);
  else if (told.type === "lease") showLease(told);
  else if (told.type === "ended") ended();
  else if (told.type === "notice") sayBriefly(told.text);
  else if (told.type === "ack") $("delay").textContent = `delay ${(performance.now() - told.t).toFixed(0)} ms there and back`;
};

let hasEnded = false;
const ended = () => {
  hasEnded = true;
  inputs.release("the session has ended");
  shown.take({...shown.view, state: "closed", allowed: [], message: "", episode: {}, device: {}});
};

const connect = () => {
  hello = false;
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    socket.send(JSON.stringify({type: "hello", token, name: $("name").value.trim()}));
    [hello, retryMs, seq, hasEnded, heardAt] = [true, 250, 0, false, performance.now()];
    say("", "lost");
  };
  socket.onmessage = (event) => hear(event.data);
  socket.onclose = (event) => {
    inputs.release("the connection is lost");
    showLease({you: "viewing", operator: null, asking: [], name: ""});
    $("take").hidden = true;
    $("lease").textContent = "not connected";
    if (event.code === 4401) return $("token").showModal();
    say(hasEnded ? "This page waits for the next session." : `✕ Connection lost${event.reason ? `: ${event.reason}` : ""}. The robot holds; trying again.`, "lost");
    setTimeout(connect, retryMs);
    retryMs = Math.min(4000, retryMs * 2);
  };
};
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = $("token-value").value.trim();
  sessionStorage.setItem("token", token);
  $("token").close();
  connect();
};
$("name").value = localStorage.getItem("name") ?? "";
$("name").onchange = () => { localStorage.setItem("name", $("name").value.trim()); socket.close(); };

const hand = inputs.hand = new Hand();
Hand.mode().then((mode) => {
  if (!mode) return;
  $("xr").hidden = false;
  $("xr").onclick = () => hand.session ? hand.session.end() : hand.start(mode, () => { $("xr").textContent = "Hand tracking"; })
    .then(() => { $("xr").textContent = "End hand tracking"; }).catch((error) => sayBriefly(`No hand tracking: ${error.message}`));
});
navigator.keyboard?.getLayoutMap?.().then((map) => {
  for (const event of EVENTS) {
    const key = shown.buttons.get(event.name).querySelector("kbd");
    if (key && map.has(event.key)) key.textContent = map.get(event.key).toUpperCase();
  }
}).catch(() => {});

new Worker("/page/worker.js").onmessage = () => {
  sendCommand();
  $("pad").textContent = inputs.pad.name ? `gamepad: ${inputs.pad.name.slice(0, 30)}` : "no gamepad";
  const quiet = performance.now() - heardAt;
  say(hello && heardAt && quiet > QUIET_MS ? `! Nothing from the session for ${(quiet / 1000).toFixed(0)} s.` : "", "quiet");
};
connect();
document.documentElement.dataset.ready = "yes";
