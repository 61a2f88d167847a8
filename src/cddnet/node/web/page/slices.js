// Slices of a pair: fetched once, kept while there is room, neighbours fetched ahead.

import { ask } from "./api.js";

const KEPT_BYTES = 384 * 2 ** 20;
const AT_ONCE = 4;

export class Slices {
  constructor(key, manifest) {
    this.key = key;
    this.manifest = manifest;
    this.held = new Map();
    this.ready = new Map();
    this.most = Math.max(16, Math.floor(KEPT_BYTES / (2 * manifest.rows * manifest.columns)));
    this.ahead = [];
    this.running = 0;
  }

  // What is there already, without waiting.
  get(layer, index) {
    return this.ready.get(`${layer}/${index}`);
  }

  load(layer, index) {
    const name = `${layer}/${index}`;
    const held = this.held.get(name) ?? this.fetch(name);
    // The map keeps its order of insertion: the first are those not used for longest.
    this.held.delete(name);
    this.held.set(name, held);
    for (const [old] of this.held) {
      if (this.held.size <= this.most) break;
      this.held.delete(old);
      this.ready.delete(old);
    }
    return held;
  }

  fetch(name) {
    const { rows, columns } = this.manifest;
    const loading = (async () => {
      const response = await ask(`/api/pairs/${this.key}/${name}`);
      const values = new Int16Array(await response.arrayBuffer());
      if (values.length !== rows * columns) throw new Error("the slice came incomplete");
      if (this.held.has(name)) this.ready.set(name, values);
      return values;
    })();
    loading.catch(() => this.held.delete(name));
    return loading;
  }

  // Replaces what was to be fetched ahead.
  prefetch(layers, index, step) {
    const order = [1, 2, 3, 4, -1, 5, 6, -2, 7, 8].map((far) => index + far * step);
    this.ahead = order
      .filter((at) => at >= 0 && at < this.manifest.slices)
      .flatMap((at) => layers.map((layer) => [layer, at]))
      .filter(([layer, at]) => !this.held.has(`${layer}/${at}`));
    while (this.running < AT_ONCE && this.ahead.length) this.next();
  }

  async next() {
    const [layer, at] = this.ahead.shift();
    this.running += 1;
    try {
      await this.load(layer, at);
    } catch {
      // Shown when the slice itself is asked for.
    }
    this.running -= 1;
    if (this.ahead.length) this.next();
  }
}
