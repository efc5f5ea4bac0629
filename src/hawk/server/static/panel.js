// One picture on the page: while it is drawn, and afterwards with the source and the step of each cell.

const LABELS = {
  stale: "guessed in an earlier forward",
  above: "copied from the cell above",
  drafter: "proposed by a trained drafter",
  recovered: "drawn by the model itself",
};

export class Panel {
  /** Show an empty picture of `facts.width` x `facts.height` pixels and `facts.rows` x `facts.columns` cells. */
  constructor(parent, facts, title, detail) {
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.element.querySelector("strong").textContent = title;
    this.detail = this.element.querySelector("figcaption span");
    this.detail.textContent = detail;
    [this.canvas, this.cells] = this.element.querySelectorAll("canvas");
    this.rows = facts.rows;
    this.columns = facts.columns;
    this.size = facts.rows * facts.columns;
    for (const canvas of [this.canvas, this.cells]) Object.assign(canvas, { width: facts.width, height: facts.height });
    this.canvas.setAttribute("aria-label", `${title}: being drawn`);
    this.bar = this.element.querySelector("progress");
    this.bar.setAttribute("aria-label", `${title}: tokens committed`);
    this.title = title;
    this.steps = [1]; // tokens committed after each forward; the first one is the prompt's
    this.pictured = 0; // tokens that the picture on the canvas shows
    this.drawn = null;
    parent.append(this.element);
    this.cover(0);
  }

  accepted(data) {
    this.seed = data.seed;
    this.detail.textContent = `seed ${data.seed}`;
  }

  step(data) {
    this.steps.push(data.committed);
    this.figures(data.committed, data.nfe, data.seconds);
    this.cover(data.committed);
  }

  async partial(data) {
    const bitmap = await picture(data.picture);
    if (this.drawn) return;
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.pictured = data.committed;
    this.cover(this.steps.at(-1));
  }

  async finish(data) {
    this.drawn = data;
    this.seed = data.seed;
    this.steps = data.forwards;
    this.figures(this.size, data.nfe, data.seconds);
    this.canvas.getContext("2d").drawImage(await picture(data.picture), 0, 0);
    this.detail.textContent = `seed ${data.seed}`;
    this.canvas.setAttribute("aria-label", `${this.title}: the finished picture`);
    this.cover(this.size);
  }

  figures(committed, nfe, seconds) {
    const put = (name, text) => (this.element.querySelector(`[data-of=${name}]`).textContent = text);
    put("seconds", seconds.toFixed(1));
    put("nfe", nfe);
    put("committed", committed);
    put("accept", (committed / nfe).toFixed(1));
    this.bar.value = committed / this.size;
  }

  /** Veil the cells without a committed token, and mark those that the picture does not show yet. */
  cover(committed) {
    const pen = this.pen();
    for (let cell = this.drawn ? committed : this.pictured; cell < this.size; cell++) {
      pen.fillStyle = style(cell < committed ? "--stale" : "--veil");
      pen.globalAlpha = cell < committed ? 0.35 : 1;
      pen.fillRect(...this.rectangle(cell));
    }
    pen.globalAlpha = 1;
  }

  /** Show the picture after its step number `step` (from 1), with the source of each cell where `sources` is true. */
  show(step, sources) {
    const committed = this.steps[step - 1], before = step > 1 ? this.steps[step - 2] : 0;
    this.cover(committed);
    const pen = this.pen(false);
    for (let cell = 0; cell < committed; cell++) {
      if (sources) {
        pen.globalAlpha = 0.75;
        pen.fillStyle = style(`--${this.kind(cell)}`);
        pen.fillRect(...this.rectangle(cell));
        pen.globalAlpha = 1;
      }
      if (cell >= before && step < this.steps.length) {
        const [x, y, width, height] = this.rectangle(cell), line = Math.max(1, Math.round(width / 10));
        pen.lineWidth = line;
        pen.strokeStyle = style("--ink");
        pen.strokeRect(x + line / 2, y + line / 2, width - line, height - line);
      }
    }
    return { committed, fresh: committed - before };
  }

  /** How a cell came: the name of a colour and of an entry in `LABELS`. */
  kind(cell) {
    const origin = this.drawn.origins[cell], source = origin < 0 ? "recovered" : this.drawn.sources[origin];
    return source in LABELS ? source : "drafter";
  }

  /** The number of cells of each kind, with the label of the kind. */
  kinds() {
    const counts = {};
    for (let cell = 0; cell < this.size; cell++) counts[this.kind(cell)] = (counts[this.kind(cell)] ?? 0) + 1;
    return Object.keys(LABELS)
      .filter((kind) => counts[kind])
      .map((kind) => ({ kind, label: LABELS[kind], count: counts[kind] }));
  }

  rectangle(cell) {
    const width = this.cells.width / this.columns, height = this.cells.height / this.rows;
    return [(cell % this.columns) * width, Math.floor(cell / this.columns) * height, width, height];
  }

  pen(clear = true) {
    const pen = this.cells.getContext("2d");
    if (clear) pen.clearRect(0, 0, this.cells.width, this.cells.height);
    return pen;
  }
}

/** The bytes of a base64 text. */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function picture(base64) {
  return createImageBitmap(new Blob([bytesOf(base64)], { type: "image/png" }));
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
