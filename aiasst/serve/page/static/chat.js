// The chat page: what is said, shown and kept. Requests are api.js's, elements of a text markdown.js's, what stays store.js's.
import { ServiceError, getJson, key, stream } from "./api.js";
import { CHARACTERS_A_TOKEN, readText, size, withFiles } from "./files.js";
import { render } from "./markdown.js";
import { asMarkdown, conversations, current, download, settings } from "./store.js";

const $ = (id) => document.getElementById(id);
const [log, question, composer, notice, live] = ["log", "question", "composer", "notice", "live"].map($);
let models = [];
let conversation = conversations.all().find((one) => one.id === current.get()) ?? conversations.fresh();
let attached = [];
let answering = null; // an AbortController while an answer comes
let countdown = 0;

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) element.addEventListener(attribute.slice(2), value);
    else if (value === true) element.setAttribute(attribute, "");
    else if (value !== false && value !== null) element.setAttribute(attribute, value);
  }
  element.append(...children);
  return element;
};
const say = (text) => { live.textContent = ""; setTimeout(() => { live.textContent = text; }, 50); };
const model = () => models.find((one) => one.id === $("model").value);

// ---------------------------------------------------------------- notices

function tell(message, { hint = "", retry = null, seconds = null } = {}) {
  clearInterval(countdown);
  const follow = atEnd();
  const sentence = /[.!?]$/.test(message) ? message : `${message}.`;
  notice.replaceChildren(make("p", {}, make("strong", {}, sentence), hint ? ` ${hint}` : ""));
  if (retry) {
    const again = make("button", { type: "button", class: "quiet", onclick: () => { hush(); retry(); } }, "Try again");
    if (seconds) {
      const until = performance.now() + seconds * 1000;
      const show = () => {
        const left = Math.ceil((until - performance.now()) / 1000);
        again.disabled = left > 0;
        again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
        if (left <= 0) clearInterval(countdown);
      };
      countdown = setInterval(show, 250);
      show();
    }
    notice.append(again);
  }
  notice.append(make("button", { type: "button", class: "icon close", title: "Close", onclick: hush }, "×"));
  notice.hidden = false;
  if (follow) log.scrollTop = log.scrollHeight;
}
function hush() { clearInterval(countdown); notice.hidden = true; }
function fail(failure, retry) {
  if (!(failure instanceof ServiceError)) throw failure;
  tell(failure.message, { hint: failure.hint, retry, seconds: failure.retryAfter });
  if (failure.status === 401) openSettings("key");
}

// ---------------------------------------------------------------- models

const STATES = { ready: "", unloaded: "loads with your first message", loading: "is loading", unloading: "is being unloaded", failed: "cannot be used" };

async function loadModels() {
  try {
    const answer = await getJson("/v1/models");
    const wanted = $("model").value || conversation.model;
    models = answer.data.filter((one) => one.kind !== "encoder");
    $("model").replaceChildren(...models.map((one) => make("option", { value: one.id }, one.id)));
    if (models.some((one) => one.id === wanted)) $("model").value = wanted;
    if (!models.length) tell("This service has no model that writes text.", { hint: "Start it with the folder of one." });
    showModel();
  } catch (failure) { fail(failure, loadModels); }
}
function showModel() {
  const chosen = model();
  $("model-state").textContent = STATES[chosen?.state] ?? "";
  $("model-state").title = chosen?.problem ?? "";
  const continues = chosen?.has_chat_template === false;
  question.placeholder = continues ? "Begin a text; the model goes on with it" : "Write a message";
  for (const part of document.querySelectorAll("[name=system]")) part.disabled = continues;
}

// ---------------------------------------------------------------- showing

const STATS = (stats) => [
  stats.tokensPerSecond && `${stats.tokensPerSecond.toFixed(stats.tokensPerSecond < 100 ? 1 : 0)} tokens/s`,
  stats.firstSeconds !== undefined && `first after ${stats.firstSeconds < 1 ? `${Math.round(stats.firstSeconds * 1000)} ms` : `${stats.firstSeconds.toFixed(1)} s`}`,
  stats.tokens && `${stats.tokens} tokens`,
  stats.finish === "length" && "cut at the limit of tokens",
  stats.finish === "stopped" && "stopped",
  stats.finish === "lost" && "not finished",
].filter(Boolean).join(" · ");

function messageElement(message, index) {
  const mine = message.role === "user";
  const body = make("div", { class: "body" });
  if (mine) body.textContent = message.content;
  else body.append(...render(message.content));
  const tools = make("div", { class: "tools" });
  const button = (label, act) => tools.append(make("button", { type: "button", class: "quiet", onclick: act }, label));
  if (!mine && message.stats) tools.append(make("span", { class: "stats" }, STATS(message.stats)));
  button("Copy", (event) => copy(message.content, event.target));
  const end = conversation.messages.length - 1;
  if (mine && (index === end || index === end - 1)) button("Edit", edit);
  if (!mine && index === end) button("Regenerate", regenerate);
  const files = (message.files ?? []).map((file) => make("li", {}, `${file.name} · ${size(new Blob([file.text]).size)}`));
  const heading = make("h2", { class: "sr" }, mine ? "You" : "Assistant");
  return make("article", { class: message.role }, heading, files.length ? make("ul", { class: "files" }, ...files) : "", body, tools);
}
function show() {
  if (conversation.messages.length) log.replaceChildren(...conversation.messages.map(messageElement));
  else log.replaceChildren(make("div", { class: "empty" }, make("h2", {}, "What is on your mind?"), make("p", {}, "The answer is computed on this machine. Nothing leaves it.")));
  log.scrollTop = log.scrollHeight;
  showList();
}
function showList() {
  const all = conversations.all();
  $("conversation-list").replaceChildren(...all.map((one) => make("li", { class: one.id === conversation.id ? "chosen" : "" },
    make("button", { type: "button", class: "open", "aria-current": one.id === conversation.id ? "true" : null, onclick: () => open(one) }, one.title || "Untitled"),
    make("button", { type: "button", class: "icon", title: "Delete", onclick: () => remove(one) }, "×", make("span", { class: "sr" }, `Delete ${one.title || "Untitled"}`)))));
  for (const id of ["export-markdown", "export-json"]) $(id).disabled = !conversation.messages.length;
}
const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;
log.addEventListener("scroll", () => { $("to-end").hidden = atEnd(); });
$("to-end").addEventListener("click", () => { log.scrollTop = log.scrollHeight; });
log.addEventListener("click", (event) => {
  if (event.target.matches(".copy-code")) copy(event.target.closest("figure").querySelector("code").textContent, event.target);
});
async function copy(text, button) {
  const label = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
  setTimeout(() => { button.textContent = label; }, 1500);
}

// ---------------------------------------------------------------- conversations

function keep() {
  conversation.model = $("model").value;
  if (!conversation.title) conversation.title = conversation.messages[0]?.content.trim().split("\n")[0].slice(0, 60) ?? "";
  if (!conversations.keep(conversation)) tell("This browser has no room left for conversations.", { hint: "Delete some, or save them as files." });
  current.set(conversation.id);
}
function open(one) {
  if (answering) stop();
  conversation = one;
  current.set(one.id);
  if (models.some((known) => known.id === one.model)) $("model").value = one.model;
  showModel(); hush(); show(); sidebar(false);
  question.focus();
}
function remove(one) {
  if (!confirm(`Delete “${one.title || "Untitled"}”?`)) return;
  conversations.remove(one.id);
  if (one.id === conversation.id) open(conversations.all()[0] ?? conversations.fresh()); else showList();
}
function sidebar(shown) {
  document.body.classList.toggle("sidebar", shown);
  $("conversations-button").setAttribute("aria-expanded", String(shown));
}

// ---------------------------------------------------------------- answering

function wanted() {
  const chosen = {};
  const kept = settings.get();
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const value = Number.parseFloat(kept[name]);
    if (Number.isFinite(value)) chosen[name] = value;
  }
  return { model: model().id, stream: true, stream_options: { include_usage: true }, ...chosen };
}
function body() {
  const said = conversation.messages;
  if (model().has_chat_template === false) {
    const text = said.map((message, index) => (index && message.role === "user" ? "\n" : "") + withFiles(message)).join("");
    return ["/v1/completions", { max_tokens: 256, ...wanted(), prompt: text }]; // the protocol's own default is 16
  }
  const system = settings.get().system?.trim();
  const messages = said.map((message) => ({ role: message.role, content: withFiles(message) }));
  return ["/v1/chat/completions", { ...wanted(), messages: system ? [{ role: "system", content: system }, ...messages] : messages }];
}

async function answer() {
  if (!model()) { tell("There is no model to ask.", { retry: loadModels }); return; }
  hush();
  const mine = conversation;
  const [path, request] = body();
  const message = { role: "assistant", content: "", stats: {} };
  mine.messages.push(message);
  answering = new AbortController();
  busy(true);
  show();
  const shown = log.lastElementChild;
  shown.classList.add("coming");
  let drawn = 0, due = false;
  const draw = () => {
    due = false; drawn = performance.now();
    if (conversation !== mine) return;
    const follow = atEnd();
    shown.querySelector(".body").replaceChildren(...render(message.content));
    if (follow) log.scrollTop = log.scrollHeight; else $("to-end").hidden = false;
  };
  const asked = performance.now();
  let first = 0, last = 0, pieces = 0, failure = null;
  try {
    for await (const event of stream(path, request, answering.signal)) {
      const choice = event.choices?.[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      if (text) {
        last = performance.now();
        first ||= last;
        pieces += 1;
        message.content += text;
        if (!due) { due = true; setTimeout(() => requestAnimationFrame(draw), Math.max(0, 50 - (last - drawn))); }
      }
      if (choice?.finish_reason) message.stats.finish = choice.finish_reason;
      if (event.usage) message.stats.tokens = event.usage.completion_tokens;
    }
  } catch (problem) {
    message.stats.finish = problem.name === "AbortError" ? "stopped" : "lost";
    if (problem.name !== "AbortError") failure = problem;
  }
  const tokens = message.stats.tokens ?? pieces;
  if (first) message.stats.firstSeconds = (first - asked) / 1000;
  if (tokens > 1 && last > first) message.stats.tokensPerSecond = (tokens - 1) * 1000 / (last - first);
  if (!message.content) mine.messages.splice(mine.messages.indexOf(message), 1);
  answering = null;
  busy(false);
  if (conversation === mine) { keep(); show(); } else conversations.keep(mine);
  if (failure) { fail(failure, regenerate); return; }
  say(message.content ? `Answer: ${message.content}` : "No answer.");
  loadModels();
}
function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
  log.setAttribute("aria-busy", String(now));
  if (now) say("The answer is coming.");
}
function stop() { answering?.abort(); }
function send() {
  const content = question.value.trim();
  if (answering || (!content && !attached.length)) return;
  const message = { role: "user", content };
  if (attached.length) message.files = attached;
  conversation.messages.push(message);
  attached = [];
  question.value = "";
  grow(); showFiles(); keep();
  answer();
}
function regenerate() {
  if (answering) return;
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  if (conversation.messages.length) answer();
}
function edit() {
  if (answering) return;
  const at = conversation.messages.findLastIndex((message) => message.role === "user");
  if (at < 0) return;
  const [message] = conversation.messages.splice(at);
  question.value = message.content;
  attached = message.files ?? [];
  grow(); showFiles(); show();
  question.focus();
}

// ---------------------------------------------------------------- files

async function attach(files) {
  for (const file of files) {
    try { attached.push(await readText(file)); } catch (problem) { tell(problem.message); }
  }
  const tokens = attached.reduce((sum, file) => sum + file.text.length, 0) / CHARACTERS_A_TOKEN;
  const room = model()?.context_length;
  if (room && tokens > room * 0.9) tell(`These files have about ${Math.round(tokens).toLocaleString()} tokens; the model reads ${room.toLocaleString()} at once.`, { hint: "Take a part of them." });
  showFiles();
}
function showFiles() {
  $("files").replaceChildren(...attached.map((file, index) => make("li", {}, `${file.name} · ${size(new Blob([file.text]).size)}`,
    make("button", { type: "button", class: "icon", onclick: () => { attached.splice(index, 1); showFiles(); question.focus(); } }, "×", make("span", { class: "sr" }, `Take ${file.name} away`)))));
}

// ---------------------------------------------------------------- settings

function openSettings(focus) {
  if ($("settings").open) return;
  const form = $("settings").querySelector("form");
  const kept = settings.get();
  for (const field of form.elements) if (field.name) field.value = field.name === "key" ? key.get() : kept[field.name] ?? "";
  $("settings").showModal();
  if (focus) form.elements[focus].focus();
}
$("settings").addEventListener("close", () => {
  if ($("settings").returnValue !== "ok") return;
  const given = Object.fromEntries(new FormData($("settings").querySelector("form")));
  const changed = given.key !== key.get();
  key.set(given.key.trim());
  delete given.key;
  settings.set({ ...settings.get(), ...given });
  if (changed) { hush(); loadModels(); }
});

// ---------------------------------------------------------------- keys and the like

function grow() { question.style.height = "auto"; question.style.height = `${Math.min(question.scrollHeight + 2, innerHeight * 0.4)}px`; }
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  else if (event.key === "ArrowUp" && event.altKey) { event.preventDefault(); edit(); }
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (answering) stop(); else sidebar(false);
});
composer.addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => { stop(); question.focus(); });
$("new").addEventListener("click", () => open(conversations.fresh()));
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async (event) => { await attach([...event.target.files]); event.target.value = ""; question.focus(); });
$("model").addEventListener("change", () => { conversation.model = $("model").value; showModel(); });
$("settings-button").addEventListener("click", () => openSettings());
$("conversations-button").addEventListener("click", () => sidebar(!document.body.classList.contains("sidebar")));
$("export-markdown").addEventListener("click", () => download("conversation.md", "text/markdown", asMarkdown(conversation)));
$("export-json").addEventListener("click", () => download("conversation.json", "application/json", JSON.stringify(conversation, null, 2)));
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, (event) => {
  if (![...event.dataTransfer?.types ?? []].includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", kind === "dragover");
  if (kind === "drop") attach([...event.dataTransfer.files]);
});

show();
question.focus();
loadModels();
