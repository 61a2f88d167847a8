// The viewer of the report.
// Above 300 lines: the page embeds one script and allows no other.
"use strict";
(() => {
  const source = document.getElementById("slices");
  // Without this the still pictures stay, which need no script.
  if (!source || typeof DecompressionStream === "undefined") return;
  const data = JSON.parse(source.textContent);
  const find = (id) => document.getElementById(id);
  const viewer = find("viewer");
  const decoded = new Map();
  const state = { slice: -1, low: 0, high: 1, row: 0, column: 0, side: 1 };
  let shown = null;

  const element = (tag, name, parent) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    parent.append(made);
    return made;
  };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // Whole HU: folded differences along the rows, all low bytes before all high bytes.
  async function unpack(text, width, height) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = width * height;
    const hu = new Int16Array(count);
    for (let i = 0; i < count; i += 1) {
      const folded = planes[i] | (planes[count + i] << 8);
      const before = i % width ? hu[i - 1] : i ? hu[i - width] : 0;
      hu[i] = before + ((folded >>> 1) ^ -(folded & 1));
    }
    return hu;
  }

  function load(index) {
    if (!decoded.has(index)) {
      const { images, width, height } = data.slices[index];
      decoded.set(index, Promise.all(images.map((image) => unpack(image.data, width, height))));
    }
    return decoded.get(index);
  }

  function grey(width, height, low, high, valueAt) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    const scale = 255 / (high - low);
    for (let i = 0; i < width * height; i += 1) {
      // A Uint8ClampedArray rounds and clips by itself.
      const level = (valueAt(i) - low) * scale;
      pixels.data[4 * i] = pixels.data[4 * i + 1] = pixels.data[4 * i + 2] = level;
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  // Panels: one per row of the evaluation, the reference first.
  const panels = data.slices[0].images.map((image) => {
    const panel = { name: image.name, isReference: image.name === data.reference };
    const box = element("figure", "panel", find("panels"));
    element("h3", "", box).textContent = image.name;
    panel.scores = element("p", "scores", box);
    panel.whole = element("canvas", "whole", box);
    panel.whole.tabIndex = 0;
    panel.zoom = element("canvas", "zoom", box);
    panel.region = element("p", "region", box);
    if (panel.isReference) {
      const scale = element("div", "scale", box);
      scale.append("Lower pictures: row minus reference");
      element("i", "", scale);
      const ends = element("span", "", scale);
      const [low, high] = data.difference;
      [low, (low + high) / 2, high].forEach((hu) => {
        element("b", "", ends).textContent = `${hu} HU`;
      });
    } else {
      panel.difference = element("canvas", "difference", box);
    }
    for (const canvas of [panel.whole, panel.zoom, panel.difference]) {
      if (canvas) canvas.setAttribute("role", "img");
    }
    panel.whole.setAttribute("aria-describedby", "help");
    return panel;
  });

  function withBox(canvas, picture) {
    const { width, height } = picture;
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    for (const [colour, thick] of [["#000", width / 90], ["#ffd60a", width / 180]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.strokeRect(state.column, state.row, state.side, state.side);
    }
  }

  function statistics(hu, width) {
    let sum = 0;
    let squares = 0;
    for (let row = state.row; row < state.row + state.side; row += 1) {
      for (let column = state.column; column < state.column + state.side; column += 1) {
        const value = hu[row * width + column];
        sum += value;
        squares += value * value;
      }
    }
    const count = state.side * state.side;
    const mean = sum / count;
    return `region: mean ${mean.toFixed(1)}, SD ${Math.sqrt(Math.max(0, squares / count - mean * mean)).toFixed(1)} HU`;
  }

  function drawRegion() {
    const { width, pixel_mm: pixel } = data.slices[state.slice];
    panels.forEach((panel, order) => {
      withBox(panel.whole, panel.picture);
      if (panel.difference) withBox(panel.difference, panel.differencePicture);
      const side = 480;
      panel.zoom.width = side;
      panel.zoom.height = Math.round((side * pixel[0]) / pixel[1]);
      const context = panel.zoom.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(panel.picture, state.column, state.row, state.side, state.side, 0, 0, panel.zoom.width, panel.zoom.height);
      panel.region.textContent = statistics(shown[order], width);
    });
  }

  function draw() {
    const { width, height, pixel_mm: pixel, place, images } = data.slices[state.slice];
    const shape = `${width * pixel[1]} / ${height * pixel[0]}`;
    const reference = shown[panels.findIndex((panel) => panel.isReference)];
    panels.forEach((panel, order) => {
      const hu = shown[order];
      panel.picture = grey(width, height, state.low, state.high, (i) => hu[i]);
      panel.whole.style.aspectRatio = shape;
      panel.scores.textContent = images[order].scores || "\u00a0";
      const window = `window ${state.low} to ${state.high} HU`;
      panel.whole.setAttribute("aria-label", `${panel.name}, ${place}, ${window}`);
      panel.zoom.setAttribute("aria-label", `${panel.name}, region enlarged`);
      if (panel.difference) {
        panel.differencePicture = grey(width, height, ...data.difference, (i) => hu[i] - reference[i]);
        panel.difference.style.aspectRatio = shape;
        panel.difference.setAttribute("aria-label", `${panel.name} minus reference, ${place}`);
      }
    });
    drawRegion();
    viewer.dataset.painted = panels.length;
  }

  function setRegion(row, column, side) {
    const { width, height } = data.slices[state.slice];
    state.side = clamp(Math.round(side), 8, Math.min(width, height));
    state.row = clamp(Math.round(row), 0, height - state.side);
    state.column = clamp(Math.round(column), 0, width - state.side);
    if (shown) drawRegion();
  }

  async function setSlice(index) {
    const next = clamp(index, 0, data.slices.length - 1);
    if (next === state.slice) return;
    state.slice = next;
    find("slice").value = next;
    const item = data.slices[next];
    find("place").textContent = `${item.place} (${next + 1} of ${data.slices.length} shown)`;
    const images = await load(next);
    // Another slice may have been asked for meanwhile.
    if (state.slice !== next) return;
    shown = null;
    setRegion(...item.region);
    shown = images;
    draw();
  }

  function setWindow(low, high) {
    if (!(high > low)) return;
    Object.assign(state, { low, high });
    find("level").value = (low + high) / 2;
    find("width").value = high - low;
    [...find("presets").children].forEach((button, order) => {
      const [presetLow, presetHigh] = data.presets[order].window;
      button.setAttribute("aria-pressed", presetLow === low && presetHigh === high);
    });
    if (shown) draw();
  }

  data.presets.forEach(({ name, window: [low, high] }) => {
    const button = element("button", "", find("presets"));
    button.type = "button";
    button.textContent = name;
    button.title = `${low} to ${high} HU`;
    button.addEventListener("click", () => setWindow(low, high));
  });
  for (const id of ["level", "width"]) {
    find(id).addEventListener("change", () => {
      const level = Number(find("level").value);
      const half = Number(find("width").value) / 2;
      setWindow(level - half, level + half);
    });
  }
  find("slice").addEventListener("input", (event) => setSlice(Number(event.target.value)));

  // Row and column of the slice under the pointer.
  function pixelAt(event, canvas) {
    const frame = canvas.getBoundingClientRect();
    const isZoom = canvas.classList.contains("zoom");
    const { width, height } = data.slices[state.slice];
    const right = (event.clientX - frame.left) / frame.width;
    const down = (event.clientY - frame.top) / frame.height;
    return isZoom
      ? { row: state.row + down * state.side, column: state.column + right * state.side }
      : { row: down * height, column: right * width };
  }

  function readOut(at) {
    const { width, height } = data.slices[state.slice];
    const row = clamp(Math.floor(at.row), 0, height - 1);
    const column = clamp(Math.floor(at.column), 0, width - 1);
    panels.forEach((panel, order) => {
      const stated = panel.region.textContent.split("; here")[0];
      panel.region.textContent = `${stated}; here ${shown[order][row * width + column]} HU`;
    });
  }

  function follow(canvas, moved) {
    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!shown) return;
      canvas.setPointerCapture(event.pointerId);
      start = { ...pixelAt(event, canvas), x: event.clientX, y: event.clientY, from: { ...state }, dragged: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!shown) return;
      if (!start) return readOut(pixelAt(event, canvas));
      start.dragged ||= Math.hypot(event.clientX - start.x, event.clientY - start.y) > 4;
      if (start.dragged) moved(start, event);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (start && !start.dragged) {
        const { row, column } = pixelAt(event, canvas);
        setRegion(row - state.side / 2, column - state.side / 2, state.side);
      }
      start = null;
    });
    canvas.addEventListener("pointercancel", () => { start = null; });
  }

  let turned = 0;
  function turn(event) {
    const step = Math.sign(event.deltaY);
    const next = state.slice + step;
    // At either end the page scrolls on.
    if (event.ctrlKey || !step || next < 0 || next >= data.slices.length) return;
    event.preventDefault();
    if (event.timeStamp - turned < 150) return;
    turned = event.timeStamp;
    setSlice(next);
  }

  function press(event) {
    const { row, column, side } = state;
    const step = Math.max(1, side / 8);
    const preset = data.presets[Number(event.key) - 1];
    const actions = {
      ArrowUp: () => setRegion(row - step, column, side),
      ArrowDown: () => setRegion(row + step, column, side),
      ArrowLeft: () => setRegion(row, column - step, side),
      ArrowRight: () => setRegion(row, column + step, side),
      "+": () => setRegion(row - step / 2, column - step / 2, side + step),
      "-": () => setRegion(row + step / 2, column + step / 2, side - step),
      PageUp: () => setSlice(state.slice - 1),
      PageDown: () => setSlice(state.slice + 1),
    };
    const action = preset ? () => setWindow(...preset.window) : actions[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  }

  for (const panel of panels) {
    for (const canvas of [panel.whole, panel.difference].filter(Boolean)) {
      follow(canvas, (start, event) => {
        const at = pixelAt(event, canvas);
        const side = Math.max(Math.abs(at.row - start.row), Math.abs(at.column - start.column));
        setRegion(at.row < start.row ? start.row - side : start.row, at.column < start.column ? start.column - side : start.column, side);
      });
      canvas.addEventListener("wheel", turn, { passive: false });
    }
    panel.whole.addEventListener("keydown", press);
    follow(panel.zoom, (start, event) => {
      const scale = start.from.side / panel.zoom.getBoundingClientRect().width;
      setRegion(start.from.row - (event.clientY - start.y) * scale, start.from.column - (event.clientX - start.x) * scale, start.from.side);
    });
  }

  document.documentElement.classList.add("live");
  setWindow(...data.presets[0].window);
  setSlice(0);
})();
