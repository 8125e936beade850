// The dashboard: /v1/status every two seconds as charts. Keeps five minutes in memory and nothing else.
import { ServiceError, getJson, key } from "./api.js";
import { draw } from "./charts.js";
import { size } from "./files.js";

const $ = (id) => document.getElementById(id);
const EVERY = 2000, SPAN = 300;
const ms = (value) => (value === null ? null : value * 1000);
const number = (digits) => (value) => value.toLocaleString("en", { maximumFractionDigits: digits });
const share = (value) => `${Math.round(value * 100)} %`;
const milliseconds = (value) => (value >= 1000 ? `${number(1)(value / 1000)} s` : `${number(value < 10 ? 1 : 0)(value)} ms`);
const bytes = (value) => (value < 1e9 ? size(value) : `${number(1)(value / 1e9)} GB`);

/** title, words, how a value is written, and series: name → its value in (model, host), null where there is none. */
const CHARTS = [
  ["Tokens a second", "of answers, and of prompts read", number(1), {
    answers: (model) => model.completion_tokens_per_second, prompts: (model) => model.prompt_tokens_per_second }],
  ["Time to first token", "of the last minute", milliseconds, {
    median: (model) => ms(model.time_to_first_token.p50), "99th percentile": (model) => ms(model.time_to_first_token.p99) }],
  ["Inter-token latency", "of the last minute", milliseconds, {
    median: (model) => ms(model.inter_token_latency.p50), "99th percentile": (model) => ms(model.inter_token_latency.p99) }],
  ["Requests", "answered now, and in line", number(0), { running: (model) => model.running, waiting: (model) => model.waiting }],
  ["Memory", "of this process; the dotted line is its ceiling", bytes, {
    resident: (_, host) => host.resident_bytes, "cache of this model": (model) => model.cache && model.cache.bytes + model.cache.prefix_bytes },
  (host) => host.ceiling_bytes],
  ["Cache", "tokens under way of those that have room; prompts found in the cache", share, {
    used: (model) => model.cache && model.cache.active_tokens / Math.max(1, model.cache.capacity_tokens), "found again": (model) => model.prefix_hit_ratio }],
  ["Utilization", "0.3 CPU + 0.2 memory + 0.5 waiting for disks; new work waits above the dotted line", share, {
    utilization: (_, host) => host.utilization }, () => 0.85],
  ["Temperature", "of the processor", (value) => `${number(0)(value)} °C`, { temperature: (_, host) => host.temperature_celsius }],
  ["Power", "of the machine or its processor", (value) => `${number(1)(value)} W`, { power: (_, host) => host.power_watts }],
];

let samples = []; // {at, status}
let paused = false;

const make = (name, text = "", className = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

const panels = CHARTS.map(([title, words, format, series, limit]) => {
  const panel = make("section", "", "panel");
  const [chart, legend, table] = [make("div"), make("ul", "", "legend"), make("tbody")];
  const details = make("details");
  const whole = make("table");
  const head = make("tr");
  head.append(make("th", "Seconds ago"), ...Object.keys(series).map((name) => make("th", name)));
  const thead = make("thead");
  thead.append(head);
  whole.append(thead, table);
  details.append(make("summary", "As a table"), whole);
  panel.append(make("h2", title), make("p", words, "hint"), legend, chart, details);
  $("charts").append(panel);
  return { panel, chart, legend, table, details, title, format, series, limit };
});

const known = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const modelOf = (status) => status.models.find((one) => one.name === $("model").value) ?? status.models[0];

function show() {
  const now = performance.now();
  const shown = samples.filter((one) => modelOf(one.status));
  const latest = shown.at(-1)?.status;
  if (!latest) return;
  const seconds = shown.map((one) => (one.at - now) / 1000);
  for (const { panel, chart, legend, table, details, title, format, series, limit } of panels) {
    const told = Object.entries(series).map(([name, value]) => ({
      name, values: shown.map(({ status }) => known(value(modelOf(status), status.host))) }));
    // What this machine does not tell is left out; an empty chart would say zero.
    panel.hidden = ["Temperature", "Power"].includes(title) && told.every((one) => one.values.every((value) => value === null));
    if (panel.hidden) continue;
    draw(chart, { title: `${title}, the last five minutes`, series: told, seconds, format, span: SPAN, limit: known(limit?.(latest.host) ?? null), least: title === "Requests" ? 3.8 : 0 });
    legend.replaceChildren(...told.map((one, index) => {
      const value = one.values.at(-1);
      const item = make("li", "", `key-${index}`);
      item.append(make("span", one.name), make("strong", value === null ? "–" : format(value)));
      return item;
    }));
    if (details.open) table.replaceChildren(...shown.map((one, at) => {
      const row = make("tr");
      row.append(make("td", String(Math.round(-seconds[at]))), ...told.map(({ values }) => make("td", values[at] === null ? "–" : format(values[at]))));
      return row;
    }).reverse().slice(0, 30));
  }
  showWords(latest);
}

function showWords(status) {
  const model = modelOf(status);
  $("model-state").textContent = model.state === "ready" ? "" : model.state;
  $("model-state").title = model.problem;
  const hours = status.uptime_seconds / 3600;
  const words = [
    status.ready ? (status.accepting ? "Ready." : "Stopping: no new requests.") : "Not ready.",
    `Running for ${hours < 1 ? `${Math.round(hours * 60)} min` : `${hours.toFixed(1)} h`} on ${status.host.device}, version ${status.version}.`,
    model.batch_rows ? `${model.batch_rows.toFixed(1)} answers a step on average.` : "",
  ];
  $("summary").textContent = words.filter(Boolean).join(" ");
  $("missing").hidden = !status.host.missing.length;
  $("missing").querySelector("ul").replaceChildren(...status.host.missing.map((one) => make("li", one)));
  const rows = Object.entries(status.refusals).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  const list = make("dl");
  for (const [reason, count] of rows) list.append(make("dt", reason.replaceAll("_", " ")), make("dd", count.toLocaleString("en")));
  $("refusals").querySelector("div").replaceChildren(rows.length ? list : make("p", "Nothing.", "hint"));
}

function showModels(status) {
  const names = status.models.map((one) => one.name);
  if ([...$("model").options].map((one) => one.value).join("\n") === names.join("\n")) return;
  const chosen = $("model").value;
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) $("model").value = chosen;
}

async function look() {
  if (!paused && !document.hidden) {
    try {
      const status = await getJson("/v1/status");
      samples = [...samples.filter((one) => performance.now() - one.at < SPAN * 1000), { at: performance.now(), status }];
      $("notice").hidden = $("key-form").hidden = true;
      showModels(status);
      show();
    } catch (failure) {
      if (!(failure instanceof ServiceError)) throw failure;
      $("notice").textContent = `${failure.message} ${failure.hint}`;
      $("notice").hidden = false;
      $("key-form").hidden = failure.status !== 401;
    }
  }
  setTimeout(look, EVERY);
}

$("model").addEventListener("change", show);
$("pause").addEventListener("click", () => { paused = !paused; $("pause").textContent = paused ? "Go on" : "Pause"; });
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key.set($("key").value.trim()); $("key-form").hidden = true; });
look();
