// Pointer, wheel, touch and keys of the viewer.

import * as viewer from "./viewer.js";

const find = (id) => document.getElementById(id);
const REGIONS = ["rectangle", "ellipse"];
const WHEEL_STEP = 60;
// Of the screen, from one slice to the next.
const SCROLL_STEP = 14;

export function listen({ stage, state, manifest }) {
  const pointers = new Map();
  let drag = null;
  let turned = 0;

  function pixelAt(event) {
    const seen = [...stage.querySelectorAll(".view:not([hidden]) canvas")]
      .map((canvas) => canvas.getBoundingClientRect());
    const frame = seen.find((box) => event.clientX >= box.left && event.clientX < box.right
      && event.clientY >= box.top && event.clientY < box.bottom) ?? drag?.frame ?? seen[0];
    const used = drag?.frame ?? frame;
    const inside = (value, most) => Math.min(Math.max(value, 0), most - 1e-6);
    return {
      frame: used,
      row: inside(((event.clientY - used.top) / used.height) * manifest.rows, manifest.rows),
      column: inside(((event.clientX - used.left) / used.width) * manifest.columns, manifest.columns),
    };
  }

  const middle = () => {
    const held = [...pointers.values()];
    return {
      x: held.reduce((sum, at) => sum + at.clientX, 0) / held.length,
      y: held.reduce((sum, at) => sum + at.clientY, 0) / held.length,
    };
  };

  function begin(event) {
    const windowing = event.button === 2 || pointers.size > 1;
    const action = windowing ? "window" : event.button === 1 ? "pan" : state.tool;
    const at = pixelAt(event);
    drag = { action, start: middle(), from: { ...state }, at, frame: at.frame };
  }

  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    if (event.target === find("divider")) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    drag = null;
    begin(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) {
      const { row, column } = pixelAt(event);
      viewer.readOut({ row: Math.floor(row), column: Math.floor(column) });
      return;
    }
    pointers.set(event.pointerId, event);
    const { x, y } = middle();
    const [right, down] = [x - drag.start.x, y - drag.start.y];
    if (drag.action === "scroll") viewer.setSlice(drag.from.slice + Math.trunc(down / SCROLL_STEP));
    else if (drag.action === "window") viewer.dragWindow(drag.from, right, down);
    else if (drag.action === "pan") viewer.setZoom(state.zoom, drag.from.panX + right, drag.from.panY + down);
    else if (Math.hypot(right, down) > 3) viewer.draw(drag.action, drag.at, pixelAt(event));
  });
  const end = (event) => {
    pointers.delete(event.pointerId);
    // A finger that stays would otherwise go on with another meaning.
    if (drag && pointers.size) pointers.clear();
    if (!pointers.size) drag = null;
  };
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);
  stage.addEventListener("pointerleave", () => viewer.readOut(null));

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey) {
      const factor = Math.min(Math.max(state.zoom * 2 ** (-event.deltaY / 300), 1), 16) / state.zoom;
      const box = stage.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
      viewer.setZoom(state.zoom * factor, x - (x - state.panX) * factor, y - (y - state.panY) * factor);
      return;
    }
    // A wheel turns by a hundred, a touch pad by a few at a time.
    const pixels = event.deltaMode ? event.deltaY * WHEEL_STEP : event.deltaY;
    turned += Math.sign(pixels) * Math.min(Math.abs(pixels), WHEEL_STEP);
    const steps = Math.trunc(turned / WHEEL_STEP);
    turned -= steps * WHEEL_STEP;
    if (steps) viewer.setSlice(state.slice + steps);
  }, { passive: false });

  const divider = find("divider");
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.stopPropagation();
  });
  divider.addEventListener("pointermove", (event) => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const { offsetLeft, offsetWidth } = stage.querySelector("#view-a .frame");
    viewer.setWipe((event.clientX - stage.getBoundingClientRect().left - offsetLeft) / offsetWidth);
  });

  function arrow(event, right, down) {
    const { tool, region } = state;
    const far = event.shiftKey ? 5 : 1;
    if (document.activeElement === divider && right) viewer.setWipe(state.wipe + 0.02 * far * right);
    else if (tool === "window") viewer.dragWindow({ ...state }, 10 * far * right, 10 * far * down);
    else if (tool === "pan") viewer.setZoom(state.zoom, state.panX - 20 * far * right, state.panY - 20 * far * down);
    else if (REGIONS.includes(tool) && region && event.shiftKey) viewer.setRegion({ ...region, width: region.width + 2 * right, height: region.height + 2 * down });
    else if (REGIONS.includes(tool) && region) viewer.setRegion({ ...region, row: region.row + down, column: region.column + right });
    else viewer.setSlice(state.slice + (down || right));
  }

  function place() {
    if (!REGIONS.includes(state.tool)) return;
    const [height, width] = [Math.ceil(manifest.rows / 12), Math.ceil(manifest.columns / 12)];
    const [row, column] = [manifest.rows / 2 - height / 2, manifest.columns / 2 - width / 2].map(Math.floor);
    viewer.setRegion({ kind: state.tool, row, column, height, width });
  }

  const help = find("help");
  const keys = {
    ArrowUp: (event) => arrow(event, 0, -1),
    ArrowDown: (event) => arrow(event, 0, 1),
    ArrowLeft: (event) => arrow(event, -1, 0),
    ArrowRight: (event) => arrow(event, 1, 0),
    PageUp: () => viewer.setSlice(state.slice - 1),
    PageDown: () => viewer.setSlice(state.slice + 1),
    Home: () => viewer.setSlice(0),
    End: () => viewer.setSlice(manifest.slices - 1),
    a: () => viewer.setMode("wipe"),
    l: () => viewer.setMode("side"),
    b: () => viewer.setMode("blink"),
    d: () => viewer.setMode("difference"),
    n: () => viewer.setMode("noise"),
    u: () => viewer.setMode("error"),
    s: () => viewer.setTool("scroll"),
    w: () => viewer.setTool("window"),
    p: () => viewer.setTool("pan"),
    r: () => viewer.setTool("rectangle"),
    e: () => viewer.setTool("ellipse"),
    Enter: place,
    Delete: () => viewer.setRegion(null),
    Backspace: () => viewer.setRegion(null),
    ",": () => viewer.setWipe(state.wipe - 0.02),
    ".": () => viewer.setWipe(state.wipe + 0.02),
    "+": () => viewer.setZoom(state.zoom * 1.25, state.panX * 1.25, state.panY * 1.25),
    "-": () => viewer.setZoom(state.zoom / 1.25, state.panX / 1.25, state.panY / 1.25),
    0: () => viewer.setZoom(1),
    h: () => help.showModal(),
    "?": () => help.showModal(),
  };
  keys["="] = keys["+"];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const own = event.target.closest("input, select");
    const arrows = event.key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(event.key);
    if (own && (own.type === "number" || arrows)) return;
    if (event.key === "Enter" && event.target.closest("button, a, input")) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = /^[1-5]$/.test(name) ? () => viewer.setPreset(Number(name) - 1) : keys[name];
    if (!action) return;
    event.preventDefault();
    action(event);
  });

  find("slice").addEventListener("input", (event) => viewer.setSlice(Number(event.target.value) - 1));
  for (const id of ["level", "width"]) {
    find(id).addEventListener("change", () => viewer.setWindow(Number(find("level").value), Number(find("width").value)));
  }
  find("range").addEventListener("change", (event) => viewer.setRange(Number(event.target.value)));
  for (const button of document.querySelectorAll("[data-mode]")) {
    if (button !== stage) button.addEventListener("click", () => viewer.setMode(button.dataset.mode));
  }
  for (const button of find("tools").querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => viewer.setTool(button.dataset.tool));
  }
  find("remove").addEventListener("click", () => {
    viewer.setRegion(null);
    stage.focus();
  });
  find("zoom-in").addEventListener("click", keys["+"]);
  find("zoom-out").addEventListener("click", keys["-"]);
  find("zoom-fit").addEventListener("click", keys[0]);
  find("help-button").addEventListener("click", () => help.showModal());
}
