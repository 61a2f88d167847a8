// A region of pixels: rectangle or ellipse, its statistics, its outline.

const SMALLEST = 2;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// Whole pixels; row and column are those of the upper left one.
export function region(kind, from, to, size) {
  const [top, bottom] = [from.row, to.row].sort((a, b) => a - b);
  const [left, right] = [from.column, to.column].sort((a, b) => a - b);
  return within({
    kind,
    row: Math.floor(top),
    column: Math.floor(left),
    height: Math.floor(bottom) - Math.floor(top) + 1,
    width: Math.floor(right) - Math.floor(left) + 1,
  }, size);
}

export function within(wanted, { rows, columns }) {
  const height = clamp(wanted.height, SMALLEST, rows);
  const width = clamp(wanted.width, SMALLEST, columns);
  return {
    ...wanted,
    height,
    width,
    row: clamp(wanted.row, 0, rows - height),
    column: clamp(wanted.column, 0, columns - width),
  };
}

// A pixel counts if its centre lies in the shape. SD: root of the mean square about the mean.
export function statistics(values, columns, area) {
  const { kind, row, column, height, width } = area;
  const [middleRow, middleColumn] = [row + height / 2, column + width / 2];
  let [count, sum] = [0, 0];
  const counted = [];
  for (let y = row; y < row + height; y += 1) {
    for (let x = column; x < column + width; x += 1) {
      const far = ((y + 0.5 - middleRow) / (height / 2)) ** 2 + ((x + 0.5 - middleColumn) / (width / 2)) ** 2;
      if (kind === "ellipse" && far > 1) continue;
      const value = values[y * columns + x];
      counted.push(value);
      count += 1;
      sum += value;
    }
  }
  const mean = sum / count;
  const squares = counted.reduce((total, value) => total + (value - mean) ** 2, 0);
  return { count, mean, sd: Math.sqrt(squares / count) };
}

export function outline(svg, area, { rows, columns }) {
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren();
  if (!area) return;
  const ellipse = area.kind === "ellipse";
  const attributes = ellipse
    ? { cx: area.column + area.width / 2, cy: area.row + area.height / 2, rx: area.width / 2, ry: area.height / 2 }
    : { x: area.column, y: area.row, width: area.width, height: area.height };
  for (const name of ["under", "over"]) {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", ellipse ? "ellipse" : "rect");
    Object.entries(attributes).forEach(([key, value]) => shape.setAttribute(key, value));
    shape.setAttribute("class", name);
    svg.append(shape);
  }
}
