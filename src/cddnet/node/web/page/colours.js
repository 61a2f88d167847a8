// Stored values -> colours, by a table over all 16-bit values, so that a slice is one pass.

const VALUES = 65536;

function table(colourOf) {
  const made = new Uint32Array(VALUES);
  const [bytes, view] = [new Uint8ClampedArray(4), new DataView(new ArrayBuffer(4))];
  for (let place = 0; place < VALUES; place += 1) {
    const value = place < VALUES / 2 ? place : place - VALUES;
    const colour = colourOf(value);
    // The clamped array rounds and clips.
    [bytes[0], bytes[1], bytes[2], bytes[3]] = [...colour, 255];
    bytes.forEach((byte, at) => view.setUint8(at, byte));
    made[place] = view.getUint32(0, true);
  }
  return made;
}

export function greyTable(low, high) {
  const made = new Uint32Array(VALUES);
  const level = new Uint8ClampedArray(1);
  for (let place = 0; place < VALUES; place += 1) {
    const value = place < VALUES / 2 ? place : place - VALUES;
    level[0] = ((value - low) / (high - low)) * 255;
    made[place] = 0xff000000 | (level[0] * 0x010101);
  }
  return made;
}

// Black at zero, because the room is dark; blue and orange are apart for colour-blind readers.
export function differenceColour(fraction) {
  const part = Math.min(Math.abs(fraction), 1);
  const near = fraction < 0 ? [0, 110, 255] : [255, 110, 0];
  const far = fraction < 0 ? [170, 225, 255] : [255, 230, 150];
  return near.map((level, at) =>
    part < 0.6 ? (level * part) / 0.6 : level + ((far[at] - level) * (part - 0.6)) / 0.4);
}

// Green, Bull. Astron. Soc. India 39:289, 2011, with its usual start, turns and hue.
export function noiseColour(fraction) {
  const part = Math.min(Math.max(fraction, 0), 1);
  const turn = 2 * Math.PI * (0.5 / 3 + 1 - 1.5 * part);
  const amplitude = (part * (1 - part)) / 2;
  const [c, s] = [Math.cos(turn), Math.sin(turn)];
  return [-0.14861 * c + 1.78277 * s, -0.29227 * c - 0.90649 * s, 1.97294 * c]
    .map((shift) => 255 * (part + amplitude * shift));
}

export const differenceTable = (range) => table((hu) => differenceColour(hu / range));
export const noiseTable = (most, huPerUnit) => table((stored) => noiseColour((stored * huPerUnit) / most));

export function paint(canvas, values, colours) {
  const context = canvas.getContext("2d", { alpha: false });
  canvas.pixels ??= context.createImageData(canvas.width, canvas.height);
  const out = new Uint32Array(canvas.pixels.data.buffer);
  for (let i = 0; i < out.length; i += 1) out[i] = colours[values[i] & 0xffff];
  context.putImageData(canvas.pixels, 0, 0);
}

// A bar of `colourOf(fraction)` over a range of fractions, for reading values off.
export function paintBar(canvas, colourOf, from) {
  const context = canvas.getContext("2d", { alpha: false });
  const pixels = context.createImageData(canvas.width, 1);
  for (let column = 0; column < canvas.width; column += 1) {
    const fraction = from + ((1 - from) * column) / (canvas.width - 1);
    pixels.data.set([...colourOf(fraction), 255].map(Math.round), 4 * column);
  }
  context.putImageData(pixels, 0, 0);
}
