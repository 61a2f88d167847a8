// The viewer: what is shown, and how it is drawn. Gestures and keys are in gestures.js.
// Above 300 lines: drawing, tools and state of one picture.

import { askJson, element, session } from "./api.js";
import * as colours from "./colours.js";
import { listen } from "./gestures.js";
import { outline, region, statistics, within } from "./region.js";
import { Slices } from "./slices.js";

const PRESETS = [
  ["Soft tissue", 40, 400],
  ["Lung", -600, 1500],
  ["Bone", 400, 1800],
  ["Brain", 40, 80],
  ["Full", 1024, 4096],
];
// The mode "alone" is of a series without another to compare with.
const SINGLE = { difference: "difference", noise: "noise", error: "error", alone: "after" };
// Maps that are fetched; each has a range of its own, from 0.
const MAPS = { noise: "predicted noise (SD)", error: "expected error (SD)" };
const find = (id) => document.getElementById(id);
const capital = (words) => words[0].toUpperCase() + words.slice(1);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const stage = find("stage");
const views = ["view-a", "view-b"].map((id) => ({
  box: find(id),
  frame: find(id).querySelector(".frame"),
  canvas: find(id).querySelector("canvas"),
  mark: find(id).querySelector("svg"),
  caption: find(id).querySelector("figcaption"),
}));

const state = {
  mode: "wipe", tool: "scroll", slice: 0, step: 1, low: -160, high: 240, range: 20, noiseMost: {},
  wipe: 0.5, blink: "before", region: null, zoom: 1, panX: 0, panY: 0,
};
let manifest;
let slices;
let tables = {};
let waiting = 0;
let asked = null;
const labels = {};

const single = () => SINGLE[state.mode];
const mapped = () => Boolean(single()) && state.mode !== "alone";
const pair = () => (state.mode === "alone" ? ["after"] : ["before", "after"]);
const fetched = () => state.mode in MAPS;
const needed = () => (fetched() ? [...pair(), state.mode] : pair());
const contentOf = (order) => (order ? single() ?? "after" : "before");

export function requestPaint() {
  waiting ||= requestAnimationFrame(() => { waiting = 0; paint(); });
}

export async function setSlice(wanted) {
  const index = clamp(Math.round(wanted), 0, manifest.slices - 1);
  if (asked && index === state.slice) return;
  state.step = index < state.slice ? -1 : 1;
  state.slice = index;
  asked = { index, at: performance.now() };
  find("slice").value = index + 1;
  const place = `${index + 1} of ${manifest.slices}, ${manifest.positions_mm[index].toFixed(1)} mm`;
  find("place").textContent = place;
  find("slice").setAttribute("aria-valuetext", place);
  await show();
}

// Draws as soon as everything of the slice is there, unless another one is asked for meanwhile.
async function show() {
  const index = state.slice;
  const layers = needed();
  if (!layers.every((layer) => slices.get(layer, index))) {
    // What takes seconds; other layers would only flicker.
    const slow = layers.includes("noise");
    if (slow) say("Predicting the noise");
    stage.toggleAttribute("data-busy", slow);
    try {
      await Promise.all(layers.map((layer) => slices.load(layer, index)));
    } catch (error) {
      if (index === state.slice) say(error.message);
      return;
    }
  }
  if (index !== state.slice || layers.join() !== needed().join()) return;
  say("");
  stage.removeAttribute("data-busy");
  requestPaint();
  slices.prefetch(layers, index, state.step);
}

const say = (words) => { find("message").textContent = words; };

function shown(layer) {
  if (layer !== "difference") return slices.get(layer, state.slice);
  const [before, after] = ["before", "after"].map((name) => slices.get(name, state.slice));
  const values = new Int16Array(before.length);
  for (let i = 0; i < values.length; i += 1) values[i] = clamp(after[i] - before[i], -32768, 32767);
  return values;
}

function tableOf(layer) {
  if (layer === "difference") return (tables.difference ??= colours.differenceTable(state.range));
  if (!(layer in MAPS)) return (tables.grey ??= colours.greyTable(state.low, state.high));
  if (!state.noiseMost[layer]) {
    const most = slices.get(layer, state.slice).reduce((a, b) => Math.max(a, b));
    setNoiseMost(layer, Math.max(5, 5 * Math.ceil((most * labels[layer].hu_per_unit) / 5)));
    drawScale();
  }
  return (tables[layer] ??= colours.noiseTable(state.noiseMost[layer], labels[layer].hu_per_unit));
}

// A new object: a drag keeps the one it began with.
function setNoiseMost(layer, most) {
  state.noiseMost = { ...state.noiseMost, [layer]: most };
}

function paint() {
  if (!needed().every((layer) => slices.get(layer, state.slice))) return;
  views.forEach((view, order) => {
    const layer = contentOf(order);
    const seen = !(single() && order === 0) && (state.mode !== "blink" || state.blink === layer);
    view.box.hidden = !seen;
    if (seen) colours.paint(view.canvas, shown(layer), tableOf(layer));
    const name = { difference: "after minus before", ...MAPS }[layer] ?? labels[layer]?.label ?? "";
    view.caption.textContent = order && layer === "after" && state.mode !== "alone" && name !== "after" ? `after: ${name}` : name;
    view.canvas.setAttribute("aria-label", `${name}, slice ${find("place").textContent}`);
  });
  drawRegion();
  if (asked && Number(stage.dataset.painted) !== asked.index) {
    stage.dataset.painted = asked.index;
    stage.dataset.ms = performance.now() - asked.at;
    stage.dispatchEvent(new CustomEvent("painted"));
  }
}

export function layout() {
  const { rows, columns, row_mm: rowMm, column_mm: columnMm } = manifest;
  const box = stage.getBoundingClientRect();
  const side = state.mode === "side";
  const across = side && box.width >= box.height;
  const [width, height] = [across ? box.width / 2 : box.width, side && !across ? box.height / 2 : box.height];
  const scale = Math.min(width / (columns * columnMm), height / (rows * rowMm));
  const [wide, high] = [columns * columnMm * scale, rows * rowMm * scale];
  stage.dataset.mode = state.mode;
  views.forEach((view, order) => {
    Object.assign(view.box.style, {
      left: `${across && order ? width : 0}px`,
      top: `${side && !across && order ? height : 0}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
    Object.assign(view.frame.style, {
      left: `${(width - wide) / 2}px`,
      top: `${(height - high) / 2}px`,
      width: `${wide}px`,
      height: `${high}px`,
      transform: `translate(${state.panX}px, ${state.panY}px) scale(${state.zoom})`,
    });
    view.frame.style.setProperty("--zoom", state.zoom);
  });
  const border = (width - wide) / 2 + state.wipe * wide;
  const wipes = state.mode === "wipe";
  views[1].box.style.clipPath = wipes ? `inset(0 0 0 ${border}px)` : "none";
  const divider = find("divider");
  divider.hidden = !wipes;
  divider.style.left = `${border}px`;
  divider.setAttribute("aria-valuenow", Math.round(100 * state.wipe));
}

export function setWindow(level, width) {
  if (!Number.isFinite(level) || !(width >= 1)) return;
  const [middle, wide] = [clamp(Math.round(level), -4000, 8000), clamp(Math.round(width), 1, 12000)];
  Object.assign(state, { low: middle - wide / 2, high: middle + wide / 2 });
  delete tables.grey;
  find("level").value = middle;
  find("width").value = wide;
  [...find("presets").children].forEach((button, order) => {
    const [, presetLevel, presetWidth] = PRESETS[order];
    button.setAttribute("aria-pressed", presetLevel === middle && presetWidth === wide);
  });
  if (slices) requestPaint();
}

export const setPreset = (order) => PRESETS[order] && setWindow(...PRESETS[order].slice(1));

// Of the map that is shown.
export function setRange(most) {
  if (!(most >= 1)) return;
  const wanted = clamp(Math.round(most), 1, 4000);
  if (fetched()) setNoiseMost(state.mode, wanted);
  else state.range = wanted;
  tables = { grey: tables.grey };
  drawScale();
  requestPaint();
}

// Sideways and downwards in pixels of the screen.
export function dragWindow(from, right, down) {
  if (mapped()) return setRange((fetched() ? from.noiseMost[state.mode] : from.range) * 2 ** (right / 150));
  const width = from.high - from.low;
  const speed = Math.max(0.5, width / 300);
  return setWindow((from.low + from.high) / 2 - down * speed, width + right * speed);
}

export function setMode(mode) {
  if (state.mode === "alone" || (mode in MAPS && !labels[mode])) return;
  if (mode === "blink") state.blink = state.mode === "blink" && state.blink === "before" ? "after" : "before";
  state.mode = mode;
  press("modes", "mode", mode);
  drawScale();
  layout();
  show();
}

export function setTool(tool) {
  state.tool = tool;
  stage.dataset.tool = tool;
  press("tools", "tool", tool);
}

function press(group, name, value) {
  find(group).querySelectorAll(`[data-${name}]`)
    .forEach((button) => button.setAttribute("aria-pressed", button.dataset[name] === value));
}

export function setWipe(fraction) {
  state.wipe = clamp(fraction, 0, 1);
  layout();
}

export function setZoom(zoom, panX = state.panX, panY = state.panY) {
  state.zoom = clamp(zoom, 1, 16);
  const still = state.zoom === 1;
  Object.assign(state, { panX: still ? 0 : panX, panY: still ? 0 : panY });
  layout();
}

function drawScale() {
  const most = fetched() ? state.noiseMost[state.mode] : state.range;
  find("scale").hidden = !mapped() || !most;
  find("window").hidden = mapped();
  if (find("scale").hidden) return;
  const positive = fetched();
  find("scale").querySelector("legend").textContent = capital(MAPS[state.mode] ?? "after minus before");
  colours.paintBar(find("scale").querySelector("canvas"), positive ? colours.noiseColour : colours.differenceColour, positive ? 0 : -1);
  const ends = positive ? [0, most / 2, most] : [-most, 0, most];
  [...find("scale").querySelectorAll(".ends span")].forEach((span, at) => {
    span.textContent = `${at === 2 && !positive ? "+" : ""}${ends[at]} HU`;
  });
  find("range").value = most;
}

export function setRegion(wanted) {
  state.region = wanted && within(wanted, manifest);
  drawRegion();
}

export const draw = (kind, from, to) => setRegion(region(kind, from, to, manifest));

function drawRegion() {
  for (const view of views) outline(view.mark, state.region, manifest);
  const [box, area] = [find("region"), state.region];
  box.querySelector(".hint").hidden = Boolean(area);
  box.querySelector("table").hidden = find("region-facts").hidden = find("remove").hidden = !area;
  const shownOf = pair().map((layer) => [layer, slices.get(layer, state.slice)]);
  if (!area || !shownOf.every(([, values]) => values)) return;
  const found = shownOf.map(([name, values]) => [name, statistics(values, manifest.columns, area)]);
  for (const [name, told] of found) {
    const [mean, sd] = find(`row-${name}`).querySelectorAll("td");
    mean.textContent = told.mean.toFixed(1);
    sd.textContent = told.sd.toFixed(1);
  }
  const { before, after } = Object.fromEntries(found);
  const areaMm2 = after.count * manifest.row_mm * manifest.column_mm;
  const ratio = before?.sd > 0 ? (after.sd / before.sd).toFixed(2) : "undefined";
  const compared = before ? `SD after / before: ${ratio}\n` : "";
  find("region-facts").textContent = `${compared}n = ${after.count} pixels, ${areaMm2.toFixed(1)} mm\u00b2`;
}

// HU under the pointer.
export function readOut(at) {
  const found = at && needed().map((layer) => slices.get(layer, state.slice));
  if (!found?.every(Boolean)) return void (find("readout").textContent = "");
  const place = at.row * manifest.columns + at.column;
  const hu = found.slice(0, pair().length).map((values) => values[place]).join(" \u2192 ");
  const sd = fetched() ? `, ${MAPS[state.mode]} ${(found.at(-1)[place] * labels[state.mode].hu_per_unit).toFixed(1)} HU` : "";
  find("readout").textContent = `${hu} HU${sd}`;
}

async function start() {
  const offered = await session();
  find("to-queue").hidden = !offered.queue;
  const key = location.hash.slice(1) || offered.first;
  if (!key) return say("Choose a result in the queue.");
  manifest = await askJson(`/api/pairs/${encodeURIComponent(key)}`);
  slices = new Slices(encodeURIComponent(key), manifest);
  for (const layer of manifest.layers) labels[layer.name] = layer;
  document.querySelector("[data-mode=error]").hidden = find("error-key").hidden = !labels.error;
  if (manifest.layers.length === 1) {
    state.mode = "alone";
    find("modes").hidden = find("row-before").hidden = true;
  }
  for (const view of views) Object.assign(view.canvas, { width: manifest.columns, height: manifest.rows });
  PRESETS.forEach(([name, level, width], order) => {
    const button = element("button", { type: "button", textContent: name, title: `level ${level}, width ${width} HU` });
    button.setAttribute("aria-keyshortcuts", order + 1);
    button.addEventListener("click", () => setPreset(order));
    find("presets").append(button);
  });
  const thick = manifest.thickness_mm ? `, ${manifest.thickness_mm} mm thick` : "";
  find("facts").textContent = `${manifest.slices} slices, ${manifest.columns} \u00d7 ${manifest.rows}${thick}`;
  find("notes").textContent = manifest.notes.join("; ");
  find("slice").max = manifest.slices;
  setPreset(0);
  setTool("scroll");
  press("modes", "mode", state.mode);
  listen({ stage, state, manifest });
  new ResizeObserver(layout).observe(stage);
  layout();
  await setSlice(Math.floor(manifest.slices / 2));
}

start().catch((error) => say(error.message));
window.addEventListener("hashchange", () => location.reload());
