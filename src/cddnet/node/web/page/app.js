// The queue: what came, what became of it, and what a person can do about it.

import { askJson, element, session } from "./api.js";

const REFRESH_MS = 3000;
const UPLOADS_AT_ONCE = 3;
const STATES = {
  receiving: "receiving",
  complete: "waiting for its turn",
  waiting: "waiting",
  processing: "denoising",
  ready: "ready",
  sending: "sending",
  done: "done",
  failed: "failed",
  refused: "refused",
  ignored: "ignored: no rule fits",
  purged: "removed",
};
const find = (id) => document.getElementById(id);

function age(seconds) {
  const steps = [[60, "s"], [60, "min"], [24, "h"], [Infinity, "d"]];
  let value = seconds;
  for (const [most, unit] of steps) {
    if (value < most) return `${Math.floor(value)} ${unit} ago`;
    value /= most;
  }
  return "";
}

const badge = (state) => element("span", { className: `badge ${state}`, textContent: STATES[state] ?? state });

function cell(label, ...children) {
  const made = element("td", {}, ...children);
  made.dataset.label = label;
  return made;
}

function progress(series) {
  if (!["processing", "complete", "receiving"].includes(series.state) || !series.total || series.done >= series.total) return [];
  const bar = element("progress", { max: series.total, value: series.done });
  bar.setAttribute("aria-label", "Slices denoised");
  return [bar, element("small", { textContent: `${series.done} of ${series.total}` })];
}

function result(output, removed) {
  const box = element("div", { className: "result" }, element("b", { textContent: output.label }), badge(output.state));
  if (output.attempts > 1) box.append(element("small", { textContent: `${output.attempts} attempts` }));
  for (const { name, queued, sent, failed } of output.destinations) {
    const told = [[sent, "sent"], [queued, "queued"], [failed, "failed"]].filter(([count]) => count);
    const words = told.map(([count, word]) => `${count} ${word}`).join(", ") || (removed && output.state === "done" ? "all sent" : "nothing sent yet");
    box.append(element("small", { textContent: `${name}: ${words}` }));
  }
  for (const note of output.notes) box.append(element("p", { className: "hint", textContent: note }));
  if (output.error) box.append(element("p", { className: "error", textContent: output.error }));
  output.versions.forEach(({ key, objects }, order) => {
    // Of an output that was made again with other weights each is offered.
    const which = output.versions.length > 1 ? ` ${order ? "older" : "newest"} (${objects})` : "";
    const view = element("a", { className: "button", href: `/view#${key}`, textContent: `View${which}` });
    const download = element("a", { className: "button", href: `/api/download/${key}.zip`, textContent: "Download" });
    view.setAttribute("aria-label", `View ${output.label}${which}`);
    download.setAttribute("aria-label", `Download ${output.label}${which}`);
    box.append(element("div", { className: "links" }, view, download));
  });
  return box;
}

function row(series) {
  const expected = series.expected ? ` of ${series.expected}` : "";
  const retry = element("button", { type: "button", textContent: "Retry" });
  retry.setAttribute("aria-label", `Retry series ${series.key}`);
  retry.addEventListener("click", () => act(retry, `/api/series/${series.key}/retry`, { method: "POST" }));
  const told = series.outputs.map((output) => output.error);
  const own = series.error && !told.includes(series.error)
    ? [element("p", { className: "error", textContent: series.error })] : [];
  if (series.removed) own.push(element("small", { textContent: "images removed after their time" }));
  const name = element("th", { scope: "row" }, element("code", { textContent: series.key.slice(0, 8) }));
  if (series.rule) name.append(element("small", { textContent: `rule ${series.rule}` }));
  return element("tr", {},
    name,
    cell("State", badge(series.state), ...progress(series), ...own),
    cell("Slices", element("span", { className: "short", textContent: `${series.received}${expected}` })),
    cell("Last slice", element("span", { className: "short", textContent: age(series.age_s) })),
    cell("Results", ...(series.outputs.length ? series.outputs.map((output) => result(output, series.removed)) : ["none"])),
    cell("", ...(["failed", "refused"].includes(series.state) ? [retry] : [])),
  );
}

async function act(button, ...request) {
  button.disabled = true;
  try {
    await askJson(...request);
    find("problem").textContent = "";
  } catch (error) {
    find("problem").textContent = error.message;
  }
  refresh();
}

function destination({ name, configured, queued, failed, problem }, others) {
  const waiting = [[queued, "queued"], [failed, "failed"]].filter(([count]) => count)
    .map(([count, word]) => `${count} ${word}`).join(", ") || "nothing queued";
  const item = element("li", {}, element("b", { textContent: name }), ` ${waiting}. `);
  if (problem) item.append(element("span", { className: "error", textContent: `${problem}. ` }));
  if (configured) return item;
  item.append(element("span", { className: "error", textContent: "No longer configured. " }));
  const change = (words, to) => {
    const button = element("button", { type: "button", textContent: words });
    button.setAttribute("aria-label", `${words}: objects for ${name}`);
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name, to }) };
    button.addEventListener("click", () => act(button, "/api/destinations", request));
    item.append(button, " ");
  };
  for (const other of others) change(`Send to ${other}`, other);
  change("Drop", null);
  return item;
}

function showState(health, destinations) {
  const files = health.set_aside ?? 0;
  find("aside").hidden = !files;
  find("aside").textContent = files
    ? `${files} ${files === 1 ? "file" : "files"} in the node's folder could not be used and lie in its folder "aside".` : "";
  const shown = destinations.filter(({ configured, problem }) => !configured || problem);
  const others = destinations.filter(({ configured }) => configured).map(({ name }) => name);
  find("destinations").hidden = !shown.length;
  find("destinations").replaceChildren(...shown.map((item) => destination(item, others)));
}

let last = "";
let lastState = "";

async function refresh() {
  let series;
  try {
    const state = await Promise.all([askJson("/health"), askJson("/api/destinations")]);
    if (JSON.stringify([state[0].set_aside, state[1]]) !== lastState) {
      lastState = JSON.stringify([state[0].set_aside, state[1]]);
      showState(...state);
    }
    series = await askJson("/api/queue");
    find("refreshed").textContent = "";
  } catch (error) {
    find("refreshed").textContent = error.status ? error.message : "The node does not answer.";
    return;
  }
  // Only what changed is drawn again, so that focus and reading are not disturbed.
  const now = JSON.stringify(series.map((item) => [{ ...item, age_s: 0 }, age(item.age_s)]));
  if (now === last) return;
  last = now;
  const counts = new Map();
  for (const { state } of series) counts.set(state, (counts.get(state) ?? 0) + 1);
  find("counts").replaceChildren(...[...counts].map(([state, count]) =>
    element("li", {}, element("b", { textContent: count }), " ", badge(state))));
  find("empty").hidden = series.length > 0;
  find("series").hidden = series.length === 0;
  const focused = document.activeElement?.getAttribute("aria-label");
  find("series").tBodies[0].replaceChildren(...series.map(row));
  const again = focused && [...find("series").querySelectorAll("a, button")]
    .find((item) => item.getAttribute("aria-label") === focused);
  again?.focus();
}

async function upload(input) {
  const files = [...input.files];
  input.value = "";
  if (!files.length) return;
  const problems = new Map();
  let [done, taken] = [0, 0];
  const bar = find("upload-progress");
  const state = find("upload-state");
  state.hidden = false;
  bar.hidden = false;
  const tell = (words) => { state.querySelector("span").textContent = words; };
  const note = (reason, count) => problems.set(reason, (problems.get(reason) ?? 0) + count);
  find("upload-problems").replaceChildren();
  bar.max = files.length;
  const waiting = [...files];
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      try {
        const headers = { "Content-Type": "application/octet-stream" };
        const told = await askJson("/api/upload", { method: "POST", headers, body: file });
        taken += told.taken;
        Object.entries(told.refused).forEach(([reason, count]) => note(reason, count));
      } catch (error) {
        note(error.status ? error.message : "The node does not answer.", 1);
      }
      done += 1;
      bar.value = done;
      tell(`${done} of ${files.length} files sent`);
    }
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, work));
  bar.hidden = true;
  tell(`${taken} ${taken === 1 ? "slice" : "slices"} taken`);
  find("upload-problems").replaceChildren(...[...problems].map(([reason, count]) =>
    element("li", { textContent: `${count} not taken: ${reason}` })));
  refresh();
}

for (const id of ["files", "folder"]) {
  find(id).addEventListener("change", (event) => upload(event.target));
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, REFRESH_MS);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
session().finally(run);
